"""All that ``register_prompt_mask_hooks`` attaches, one forward, beside empty hooks on the same modules and one pad.

The modules compute nothing. What the hooks take in a real forward, whose code and data they share the caches with, is
part of what ``encode`` measures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peft_hooks import Hook, HookRegistry, register_prompt_mask_hooks
from peft_hooks._dispatch import dispatchers
from peft_hooks.testing import tiny_model

from ..methods import backbone_of, put_adapter
from .models import features_of, text_of
from .table import Row
from .timing import beyond, in_turns, ratios

BATCH, WORDS, VIRTUAL = 32, 62, 10


class Nothing(Hook):
    """Is called before and after, and does nothing: the price of any hook."""

    def before(self, call: Any) -> None:
        return None

    def after(self, call: Any, output: Any) -> None:
        return None


class Padding(Nothing):
    """Pads the mask, and does nothing with it."""

    def after(self, call: Any, output: Any) -> None:
        torch.nn.functional.pad(call.given_first["attention_mask"], (VIRTUAL, 0), value=1)


def tuned() -> Any:
    """Build a tiny BERT with a prompt."""
    model = tiny_model("bert")
    put_adapter(model, "prompt_tuning", num_virtual_tokens=VIRTUAL)
    return model


def stilled(model: Any) -> Any:
    """Make the modules that have hooks compute nothing, so that the hooks can be seen: they go on calling each other.

    After attaching, since the hooks on a module go by what it is.
    """
    rows, pooled = torch.zeros(BATCH, VIRTUAL + WORDS + 2, 32), torch.zeros(BATCH, 32)
    mask = torch.ones(BATCH, VIRTUAL + WORDS + 2)  # float32, as PEFT makes it

    class Transformer(type(model[0])):  # type: ignore[misc]
        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            backbone(inputs_embeds=rows, attention_mask=mask)
            features["token_embeddings"] = rows
            return features

    class Pooling(type(model[1])):  # type: ignore[misc]
        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            features["sentence_embedding"] = pooled
            return features

    class Backbone(type(backbone_of(model).base_model)):  # type: ignore[misc]
        def forward(self, **kwargs: Any) -> None:
            return None

    backbone = backbone_of(model).base_model
    backbone.__class__, model[0].__class__, model[1].__class__ = Backbone, Transformer, Pooling
    return model


def run(model: nn.Module, features: dict[str, Any]) -> Any:
    """Run one forward as ``encode`` does."""
    with torch.inference_mode():
        return model(dict(features))


def measure(quick: bool = False) -> list[Row]:
    """Measure one forward less the same forward with nothing attached."""
    bare, empty, full, unchecked = (tuned() for _ in range(4))
    register_prompt_mask_hooks(full)
    register_prompt_mask_hooks(unchecked, check=False)
    registry = HookRegistry(empty)
    places = [path for path, _, _ in dispatchers(full)]
    for path in places:
        registry.attach(Padding() if path == "0" else Nothing(), to=path)
    features = features_of(bare, [text_of(WORDS)] * BATCH)
    models = {"nothing": bare, "empty": empty, "full": full, "unchecked": unchecked}
    for model in models.values():
        stilled(model)
    calls = {name: lambda model=model: run(model, features) for name, model in models.items()}
    times = in_turns(calls, 3 if quick else 400, 20)
    what = "all hooks, checks on, one forward"
    raw = {f"microseconds, {name}": beyond(times, name, "nothing") for name in models}
    return [
        Row.of(
            what,
            f"empty hooks on the same {len(places)} modules, one pad",
            ratios(times, "full", "empty", "nothing"),
            3,
        ),
        Row.of(what, "no hooks", beyond(times, "full", "nothing"), 60, "us", **raw),
        Row.of("all hooks, checks off", "no hooks", beyond(times, "unchecked", "nothing"), None, "us"),
    ]
