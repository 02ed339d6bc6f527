"""What differs between the supported releases where a model is trained: losses that replay layers."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn


class Replay(Protocol):
    """What ``AdaptiveLayerLoss`` puts in the place of the Transformer's ``forward`` while it computes one value.

    Attributes:
        layer_idx: None in the pass through the Transformer; then the layer that is given out again.
    """

    layer_idx: int | None


def layer_replay(transformer: nn.Module) -> Replay | None:
    """Return the replay of ``AdaptiveLayerLoss``, while it runs and keeps nothing itself.

    Since 5.4 it writes ``all_layer_embeddings`` into the features that the Transformer's ``forward`` was given and
    reads them there, which must be the caller's own dict; before, it kept them itself, in ``embeddings``.
    """
    forward: Any = vars(transformer).get("forward")
    if forward is None or not hasattr(forward, "layer_idx") or hasattr(forward, "embeddings"):
        return None
    return cast(Replay, forward)
