"""Losses that replay layers, which differ between the supported releases of Sentence Transformers."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn


class Replay(Protocol):
    """What ``AdaptiveLayerLoss`` substitutes for the Transformer's ``forward`` while it computes one value.

    Attributes:
        layer_idx: None in the pass through the Transformer; afterwards the layer that is replayed.
    """

    layer_idx: int | None


def layer_replay(transformer: nn.Module) -> Replay | None:
    """Return the replay of ``AdaptiveLayerLoss`` while it runs, unless it keeps the layers itself.

    Since 5.4 it writes ``all_layer_embeddings`` into the features passed to the Transformer's ``forward`` and reads
    them from there, so these must be the caller's own dict; before, it kept them itself, in ``embeddings``.
    """
    forward: Any = vars(transformer).get("forward")
    if forward is None or not hasattr(forward, "layer_idx") or hasattr(forward, "embeddings"):
        return None
    return cast(Replay, forward)
