"""The option ``share_prompt``: which hooks it asks for, and what ``handle.describe()`` says of it."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any, Literal

from torch import nn

from ..compat import sentence_transformers as releases
from ..compat.pipeline import Encoder
from ..errors import UnsupportedModelError
from ..hooks.call import Hook
from .prefix_probe import places_of_prefix
from .probes import NO_VALUES, can_measure
from .sharing import EncodePromptOnce, SharePrompt
from .sharing_probe import longest_shared, why_not_shared

Share = Literal["auto", True, False]

# Their prompt encoder is a network, or gives a row to every row of the batch.
_ENCODED = ("P_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING")


def check_share(share_prompt: Any) -> None:
    """Raise ValueError unless ``share_prompt`` is one of its three values."""
    if not any(share_prompt is value for value in (True, False)) and share_prompt != "auto":
        raise ValueError(f"share_prompt={share_prompt!r} is not a choice: take one of 'auto', True, False")


def hooks_of_sharing(
    encoder: Encoder, share_prompt: Share, proven: Container[str] | None
) -> Iterator[tuple[str, Hook, nn.Module]]:
    """Yield the hooks that keep one Transformer's prompt from being computed for each row: name, hook, module.

    Args:
        encoder: The Transformer.
        share_prompt: The option.
        proven: The names of the hooks that need not be proven again, or None to prove by a small forward.

    Raises:
        UnsupportedModelError: If ``share_prompt`` is True, and the backbone cannot share its virtual tokens.
    """
    path, transformer, reason = encoder.path, encoder.entry, None
    if share_prompt is False or not encoder.prompts or not encoder.is_transformer:
        return
    if proven is None:
        reason = why_not_shared(transformer)
        if reason is not None and share_prompt is True:
            raise UnsupportedModelError(
                f'Transformer {path!r}: share_prompt=True, but {reason}: leave it at "auto", which computes the '
                f"virtual tokens for every row where they cannot be shared"
            )
    shared = reason is None if proven is None else f"share:{path}" in proven
    networks = [network for method in _ENCODED for network in releases.prompt_encoders(transformer, method)]
    for number, network in enumerate(networks):
        yield f"once:{number}", EncodePromptOnce(), network
    if shared:
        yield "share", SharePrompt(longest_shared(transformer)), encoder.outer.base_model


def remarks(model: nn.Module, share_prompt: Share, names: Container[str]) -> Iterator[str]:
    """Yield a line for each Transformer with virtual tokens: whether they are shared, or why not, or what of a prefix.

    Args:
        model: The model.
        share_prompt: The option.
        names: The names of the hooks that are on the model.
    """
    for path, transformer in releases.transformers_of(model):
        methods = {releases.method_of(config) for config in releases.prompt_configs(transformer).values()}
        if methods.isdisjoint(releases.PREFIX_METHODS) and methods:
            where = f"virtual tokens of Transformer {path!r}"
            if f"share:{path}" in names:
                yield f"{where}: computed once for all rows of a batch"
            else:
                reason = "share_prompt=False" if share_prompt is False else why_not_shared(transformer)
                yield f"{where}: computed for every row: {reason or 'it could be shared now: `handle.refresh()`'}"
        places = None if methods.isdisjoint(releases.PREFIX_METHODS) else places_of_prefix(transformer)
        if places is not None:
            how = f"put into the attention of {places.layers} layers, in rows in front of the text"
            yield f"prefix of Transformer {path!r}: {how}"
        if methods and not can_measure(releases.plain_backbone(transformer)):
            yield f"adapters of Transformer {path!r}: taken on trust: {NO_VALUES}"
