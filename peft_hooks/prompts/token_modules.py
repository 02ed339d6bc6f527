"""Hooks for modules that work on tokens between the Transformer and Pooling: WordWeights, LSTM, CNN, masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..compat import st_modules as modules
from ..compat.pipeline import Pipeline
from ..errors import UnsupportedModelError
from ..hooks.call import Call, Hook
from . import tensors as ft


def _virtual_tokens(features: Any) -> int:
    """Return how many more rows the token embeddings have than the input has tokens; 0 if that cannot be told."""
    embeddings, length = features.get("token_embeddings"), ft.input_length(features)
    if embeddings is None or length is None or embeddings.dim() != 3:
        return 0
    return max(int(embeddings.size(1)) - length, 0)


class WeighVirtualTokens(Hook):
    """Give virtual tokens the weight of unknown words. Goes on a WordWeights module.

    WordWeights looks up weights by ``input_ids``, and raises because virtual tokens have none. While it runs, they are
    looked up as token 0 and masked out; afterwards their rows are weighted with ``unknown_word_weight``.
    """

    def before(self, call: Call) -> None:
        features = call.first
        virtual = _virtual_tokens(features)
        if virtual and features["attention_mask"].size(1) == features["token_embeddings"].size(1):
            ids, mask = features["input_ids"], features["attention_mask"]
            text = ft.extend_mask(mask[:, virtual:], virtual, counted=False)
            call.first = {**features, "input_ids": ft.extend_mask(ids, virtual, counted=False), "attention_mask": text}

    def after(self, call: Call, output: Any) -> Any:
        given = call.given_first
        if call.first is given:
            return None
        virtual, mask = _virtual_tokens(given), given["attention_mask"]
        weight = call.module.unknown_word_weight
        rows = torch.cat([given["token_embeddings"][:, :virtual] * weight, output["token_embeddings"][:, virtual:]], 1)
        total = output["token_weights_sum"] + weight * mask[:, :virtual].sum(dim=1)
        restored = {"input_ids": given["input_ids"], "attention_mask": mask}
        return {**output, **restored, "token_embeddings": rows, "token_weights_sum": total}


class ScoreVirtualTokens(Hook):
    """Apply a skiplist and a query expansion only to the text's tokens. Goes on a MultiVectorMask module.

    It acts only if the policy keeps virtual tokens: with ``"auto"`` and ``"strip"`` none get here.
    """

    def before(self, call: Call) -> None:
        features = call.first
        virtual = _virtual_tokens(features)
        if virtual and features["attention_mask"].size(1) == features["token_embeddings"].size(1):
            by_token = {key: features[key] for key in ("input_ids", "query_expansion_positions") if key in features}
            wide = {key: ft.extend_mask(value, virtual, counted=False) for key, value in by_token.items()}
            call.first = {**features, **wide}

    def after(self, call: Call, output: Any) -> Any:
        given = call.given_first
        if call.first is given:
            return None
        virtual, mask = _virtual_tokens(given), output["attention_mask"]
        kept = given["attention_mask"][:, :virtual].to(mask.dtype)
        by_token = {key: given[key] for key in ("input_ids", "query_expansion_positions") if key in given}
        return {**output, **by_token, "attention_mask": torch.cat([kept, mask[:, virtual:]], dim=1)}


class CountVirtualTokens(Hook):
    """Add the virtual tokens to ``sentence_lengths``, by which an LSTM cuts off padding. Goes on an LSTM module."""

    def before(self, call: Call) -> None:
        features = call.first
        virtual = _virtual_tokens(features)
        if virtual and "sentence_lengths" in features:
            call.first = {**features, "sentence_lengths": features["sentence_lengths"] + virtual}

    def after(self, call: Call, output: Any) -> Any:
        given = call.given_first
        return None if call.first is given else {**output, "sentence_lengths": given["sentence_lengths"]}


class SilencePadding(Hook):
    """Let a CNN read zeros at padding positions, as at the end of a text without padding. Goes on a CNN module.

    A Transformer's rows for padding are not zero, and a kernel wider than one token reads them together with the
    text's, so the embedding depends on the batch, with or without an adapter.
    """

    def before(self, call: Call) -> None:
        features = call.first
        embeddings, mask = features.get("token_embeddings"), features.get("attention_mask")
        if embeddings is None or mask is None or mask.shape != embeddings.shape[:2]:
            return
        call.first = {**features, "token_embeddings": embeddings.masked_fill((mask == 0).unsqueeze(-1), 0)}


_HOOKS: dict[str, type[Hook]] = {
    "CNN": SilencePadding,
    "LSTM": CountVirtualTokens,
    "MultiVectorMask": ScoreVirtualTokens,
    "WordWeights": WeighVirtualTokens,
}


def hooks_of_token_modules(pipeline: Pipeline) -> Iterator[tuple[str, Hook, nn.Module]]:
    """Yield the hooks that modules between Transformer and Pooling need: path, hook, module."""
    for path, module in pipeline.steps:
        hook = _HOOKS.get(modules.kind_of(module) or "")
        if hook is not None:
            yield path, hook(), module


def refuse_token_modules(pipeline: Pipeline) -> None:
    """Raise UnsupportedModelError for an LSTM if no module before it can provide the lengths of the texts."""
    before: list[str | None] = []
    for path, module in pipeline.steps:
        kind = modules.kind_of(module)
        if kind == "LSTM" and "Transformer" in before and None not in before and "WordEmbeddings" not in before:
            raise UnsupportedModelError(
                f"LSTM {path!r} needs the feature sentence_lengths, which only WordEmbeddings sets, and comes after a "
                f"Transformer, which does not: remove the LSTM, or put a module before it that sets sentence_lengths"
            )
        before.append(kind)
