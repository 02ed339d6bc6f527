"""Measure one forward with all of the hooks of ``register_prompt_mask_hooks``, against empty hooks and one pad.

The empty hooks are on the same modules. The modules compute nothing, and consecutive batches differ in length. What the
hooks cost in a real forward, with whose code and data they share the caches, is part of what ``encode`` measures.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peft_hooks import Hook, HookRegistry, register_prompt_mask_hooks
from peft_hooks.hooks.dispatcher import dispatchers_on
from peft_hooks.testing import tiny_model

from ..tools.methods import backbone_of, put_adapter
from .models import features_of, text_of
from .table import Row
from .timing import beyond, in_turns, ratios

BATCH, VIRTUAL = 32, 10
WORDS = range(40, 64, 3)


class Nothing(Hook):
    """Do nothing before and after: the cost of any hook."""

    def before(self, call: Any) -> None:
        return None

    def after(self, call: Any, output: Any) -> None:
        return None


class Padding(Nothing):
    """Pad the mask and discard it."""

    def after(self, call: Any, output: Any) -> None:
        torch.nn.functional.pad(call.given_first["attention_mask"], (VIRTUAL, 0), value=1)


class Rolling(Padding):
    """Also roll every text to the front: find where it begins, order the columns, and reorder three tensors."""

    def before(self, call: Any) -> None:
        features = call.args[0]
        mask = features["attention_mask"]
        columns = torch.arange(mask.size(1), device=mask.device)
        orders = torch.cat([columns, columns]).unfold(0, mask.size(1), 1)
        order = orders.index_select(0, mask.argmax(1))
        moved = {name: features[name].gather(1, order) for name in ("input_ids", "attention_mask", "token_type_ids")}
        call.args = ({**features, **moved},)


class Cutting(Nothing):
    """Cut off virtual tokens, without checking the input."""

    def after(self, call: Any, output: Any) -> Any:
        mask, embeddings = output["attention_mask"], output["token_embeddings"]
        return {**output, "attention_mask": mask[:, VIRTUAL:], "token_embeddings": embeddings[:, VIRTUAL:]}


def tuned() -> Any:
    """Build a tiny BERT with a prompt."""
    model = tiny_model("bert")
    put_adapter(model, "prompt_tuning", num_virtual_tokens=VIRTUAL)
    return model


def stilled(model: Any) -> Any:
    """Make the hooked modules compute nothing but still call each other, so that the cost of the hooks is visible.

    Call this after attaching, because the hooks attached to a module depend on its class.
    """
    made = {words + 2: rows_of(words + 2) for words in WORDS}

    class Transformer(type(model[0])):  # type: ignore[misc]
        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            rows, mask, _ = made[features["input_ids"].size(1)]
            backbone(inputs_embeds=rows, attention_mask=mask)
            features["token_embeddings"] = rows
            return features

    class Pooling(type(model[1])):  # type: ignore[misc]
        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            features["sentence_embedding"] = made[features["input_ids"].size(1)][-1]
            return features

    class Backbone(type(backbone_of(model).base_model)):  # type: ignore[misc]
        def forward(self, **kwargs: Any) -> None:
            return None

    backbone = backbone_of(model).base_model
    backbone.__class__, model[0].__class__, model[1].__class__ = Backbone, Transformer, Pooling
    return model


def rows_of(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make token embeddings, a float32 mask as PEFT makes it, and embeddings, for texts of ``length`` tokens."""
    return torch.zeros(BATCH, VIRTUAL + length, 32), torch.ones(BATCH, VIRTUAL + length), torch.zeros(BATCH, 32)


def run(model: nn.Module, batches: Iterator[Mapping[str, Any]]) -> Any:
    """Run one forward as ``encode`` does, on a batch of a different length from the last."""
    with torch.inference_mode():
        return model(dict(next(batches)))


def by_hand(places: Sequence[str], *hooks: Hook) -> Any:
    """Build a model with these hooks on the Transformer, the backbone and Pooling."""
    model = tuned()
    registry = HookRegistry(model)
    for path, hook in zip(places, hooks, strict=True):
        registry.attach(hook, to=path)
    return model


def measure(quick: bool = False) -> list[Row]:
    """Measure one forward minus the same forward with nothing attached."""
    bare, full, unchecked = (tuned() for _ in range(3))
    register_prompt_mask_hooks(full)
    register_prompt_mask_hooks(unchecked, check=False)
    places = [path for path, _, _ in dispatchers_on(full.named_modules())]
    models = {
        "nothing": bare,
        "empty": by_hand(places, Padding(), Nothing(), Nothing()),
        "operations": by_hand(places, Rolling(), Nothing(), Cutting()),
        "full": full,
        "unchecked": unchecked,
    }
    batches = [features_of(bare, [text_of(words)] * BATCH) for words in WORDS]
    for model in models.values():
        stilled(model)
    calls = {name: functools.partial(run, model, itertools.cycle(batches)) for name, model in models.items()}
    times = in_turns(calls, 3 if quick else 400, 24)
    what, empty = "all hooks, checks on, one forward", f"empty hooks on the same {len(places)} modules, one pad"
    raw = {f"microseconds, {name}": beyond(times, name, "nothing") for name in models}
    return [
        Row.of(what, "their tensor operations alone, by hand", ratios(times, "full", "operations", "nothing"), 3),
        Row.of(what, empty, ratios(times, "full", "empty", "nothing"), None),
        Row.of(what, "no hooks", beyond(times, "full", "nothing"), None, "us", **raw),
        Row.of("all hooks, checks off", empty, ratios(times, "unchecked", "empty", "nothing"), None),
        Row.of("their tensor operations alone", empty, ratios(times, "operations", "empty", "nothing"), None),
    ]
