"""Adapts a merged model's other modules, so that its virtual tokens count where those of the hooked model do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..errors import UnsupportedModelError
from .framing import Front
from .merged_backbone import TO_USE

MEANS = frozenset({"mean", "mean_sqrt_len_tokens"})
_SILENT = -1e4
"""The bias of a virtual token's logit: so low that no text raises it above zero, also in half precision."""


def leaves_out(model: Any, policy: str) -> bool:
    """Tell whether virtual tokens do not count after the Transformer; with ``"auto"`` they count only in a Pooling."""
    if policy == "auto":
        return not releases.poolings_of(model)
    return policy in ("ignore", "strip")


def reads_first(model: Any, transformer: Any, policy: str) -> bool:
    """Tell whether the text's own first token is read, which is not the first column of the batch."""
    if policy == "pool":
        return False
    if cross.is_classifier(transformer):
        return cross.head_reads(transformer) == "first"
    return any("cls" in releases.pooling_modes(pooling) for _, pooling in releases.poolings_of(model))


def pads_right(model: Any) -> str | None:
    """Return why a model must pad on the right in older releases, as text; None if it need not."""
    found = (releases.pooling_modes(pooling) for _, pooling in releases.poolings_of(cross.root_of(model)))
    modes = sorted(frozenset().union(*found) & {"cls", "weightedmean"})
    return f"Pooling {', '.join(modes)} counts from the first column in older releases" if modes else None


def adapt_modules(model: Any, tokenizer: Any, front: Front, policy: str) -> None:
    """Change the plain model's modules in place, so that its new tokens count as the virtual ones did.

    Raises:
        UnsupportedModelError: If a module cannot be changed like that.
    """
    out = leaves_out(model, policy)
    weighted = any(modules.kind_of(module) == "WordWeights" for module in model.children())
    for place, (path, module) in reversed(list(enumerate(model.named_children()))):
        kind = modules.kind_of(module)
        if kind == "WordWeights":
            modules.lengthen_word_weights(module, _weights(module, front, out))
        elif out and kind == "MultiVectorMask":
            _skip(module, path, tokenizer, front)
        elif out and not weighted and (kind == "SpladePooling" or (kind == "Pooling" and _has_mean(module))):
            device = next(model.parameters()).device
            nothing = dict.fromkeys(front.ids, 0.0)
            modules.insert_module(model, place, modules.word_weights(max(front.all_ids) + 1, nothing).to(device))


def _weights(module: Any, front: Front, out: bool) -> dict[int, float]:
    """Return the weights of the new tokens for a WordWeights module that the model already has."""
    weights = dict.fromkeys(front.ids, 0.0 if out else float(module.unknown_word_weight))
    if front.first is not None:
        weights[front.first] = float(module.emb_layer.weight[front.stands_for])
    return weights


def _has_mean(pooling: nn.Module) -> bool:
    return bool(releases.pooling_modes(pooling) & MEANS)


def _skip(mask: Any, path: str, tokenizer: Any, front: Front) -> None:
    """Put the virtual tokens on the skiplist of queries and documents."""
    if front.names is None:
        raise UnsupportedModelError(
            f"MultiVectorMask {path!r} excludes tokens by their names, and this tokenizer's vocabulary cannot have "
            f"names for virtual tokens: {TO_USE}"
        )
    both = {"query", "document"}
    if mask.skiplist_words and not both <= set(mask.skiplist_tasks):
        raise UnsupportedModelError(
            f"MultiVectorMask {path!r} has its own skiplist for {', '.join(mask.skiplist_tasks)} only, but virtual "
            f"tokens must be excluded from both queries and documents: {TO_USE}"
        )
    mask.skiplist_words = [*mask.skiplist_words, *front.names[: len(front.ids)]]
    mask.skiplist_tasks = list(dict.fromkeys([*mask.skiplist_tasks, *sorted(both)]))
    mask.resolve_with_tokenizer(tokenizer)


def silence_logits(backbone: Any, first_id: int) -> None:
    """Keep the logits of new words below zero, because a SparseEncoder has one component for each word.

    Raises:
        UnsupportedModelError: If the output embeddings have no bias.
    """
    output = backbone.get_output_embeddings()
    bias = getattr(output, "bias", None)
    if bias is None or len(bias) != output.weight.size(0):
        raise UnsupportedModelError(
            f"the output embeddings of the backbone {backbone.config.model_type!r} have no bias that could keep "
            f"virtual tokens out of a sparse embedding: {TO_USE}"
        )
    with torch.no_grad():
        bias[first_id:] = _SILENT
