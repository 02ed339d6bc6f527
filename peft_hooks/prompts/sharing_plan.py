"""The option ``share_prompt``: which hooks it needs, and what ``handle.describe()`` says about it."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator
from typing import Any, Literal

from torch import nn

from ..compat import sentence_transformers as releases
from ..compat.backbones import is_of_transformers
from ..compat.kv_cache import NO_LAYERS, can_be_traced
from ..compat.pipeline import Encoder
from ..errors import UnsupportedModelError
from ..hooks.call import Hook
from ..hooks.onlookers import onlookers
from .prefix_probe import places_of_prefix
from .probes import NO_VALUES, can_measure
from .sharing import EncodePromptOnce, SharePrompt
from .sharing_probe import longest_shared, why_not_shared

Share = Literal["auto", "keep", True, False]

# Methods whose prompt encoder is a network, or runs on every row of the batch.
_ENCODED = ("P_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING")


def check_share(share_prompt: Any) -> None:
    """Raise ValueError unless ``share_prompt`` is one of its four values."""
    if not any(share_prompt is value for value in (True, False)) and share_prompt not in ("auto", "keep"):
        raise ValueError(f"share_prompt={share_prompt!r} is not a choice: take one of 'auto', 'keep', True, False")


def hooks_of_sharing(
    encoder: Encoder, share_prompt: Share, proven: Container[str] | None
) -> Iterator[tuple[str, Hook, nn.Module]]:
    """Yield the hooks that keep one Transformer's prompt from being computed for each row: name, hook, module.

    Args:
        encoder: The Transformer.
        share_prompt: The option.
        proven: The names of hooks that need no new proof, or None to prove by small forwards.

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
    keep = share_prompt == "keep"
    for number, network in enumerate(networks):
        yield f"once:{number}", EncodePromptOnce(keep), network
    if shared:
        yield "share", SharePrompt(longest_shared(transformer), keep), encoder.outer.base_model


def remarks(model: nn.Module, share_prompt: Share, names: Container[str], owner: Hashable) -> Iterator[str]:
    """Yield lines for each Transformer with an adapter: whether virtual tokens are shared, where a prefix is put in.

    Args:
        model: The model.
        share_prompt: The option.
        names: The names of the hooks that are on the model.
        owner: Marks these hooks.
    """
    for path, transformer in releases.transformers_of(model):
        methods = {releases.method_of(config) for config in releases.prompt_configs(transformer).values()}
        if methods.isdisjoint(releases.PREFIX_METHODS) and methods:
            where = f"virtual tokens of Transformer {path!r}"
            reason = _why_not_now(model, transformer, share_prompt, f"share:{path}" in names, owner)
            yield f"{where}: computed " + (f"for every row: {reason}" if reason else _shared(share_prompt))
        places = None if methods.isdisjoint(releases.PREFIX_METHODS) else places_of_prefix(transformer)
        if places is not None:
            how = f"put into the attention of {places.layers} layers, in rows in front of the text"
            yield f"prefix of Transformer {path!r}: {how}"
        if methods and not can_measure(releases.plain_backbone(transformer)):
            yield f"adapters of Transformer {path!r}: taken on trust: {NO_VALUES}"


def _shared(share_prompt: Share) -> str:
    """Return how virtual tokens are shared, and where this release does not allow it."""
    graphs = "" if can_be_traced() else f"; in torch.compile for every row: {NO_LAYERS}"
    kept = ", and kept between forwards in inference" if share_prompt == "keep" else ""
    return f"once for all rows of a batch{kept}{graphs}"


def _why_not_now(
    model: nn.Module, transformer: Any, share_prompt: Share, attached: bool, owner: Hashable
) -> str | None:
    """Return why the virtual tokens currently run for every row, or None if they do not."""
    if share_prompt is False:
        return "share_prompt=False"
    if not attached:
        return why_not_shared(transformer) or "they could be shared now: call `handle.refresh()`"
    backbone = releases.backbone_of(transformer).base_model
    onlooker = next(onlookers(backbone, owner, is_of_transformers), None)
    if onlooker is None:
        return None
    if onlooker.module is None:
        return "a hook that PyTorch runs on every module would see the layers run twice"
    path = next(path for path, module in model.named_modules() if module is onlooker.module)
    return (
        f"a foreign {onlooker.kind} is on {type(onlooker.module).__name__} {path!r}, and would see the layers run twice"
    )
