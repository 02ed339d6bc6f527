"""All that ``register_prompt_mask_hooks`` attaches, one forward, beside empty hooks on the same modules and one pad."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peft_hooks import Hook, HookRegistry, register_prompt_mask_hooks
from peft_hooks._dispatch import dispatchers
from peft_hooks.testing import tiny_model

from ..methods import put_adapter
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
    """Build a tiny BERT with a prompt, so small that the hooks can be seen beside it."""
    model = tiny_model("bert", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    put_adapter(model, "prompt_tuning", num_virtual_tokens=VIRTUAL)
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
    models = {"nothing": bare, "empty": empty, "full": full, "unchecked": unchecked}
    # Every forward pads inside its own mask's hook: without it the Pooling of 6.2 would take another way.
    features = features_of(bare, [text_of(WORDS)] * BATCH)
    calls = {name: lambda model=model: run(model, features) for name, model in models.items()}
    times = in_turns(calls, 3 if quick else 300, 4)
    what = "all that register_prompt_mask_hooks attaches, checks on"
    raw = {f"microseconds, {name}": beyond(times, name, "nothing") for name in models}
    return [
        Row.of(
            what, f"empty hooks on the same {len(places)} modules, one pad", ratios(times, "full", "empty", "nothing"), 3
        ),
        Row.of(what, "no hooks", beyond(times, "full", "nothing"), 60, "us", **raw),
        Row.of("the same, checks off", "no hooks", beyond(times, "unchecked", "nothing"), None, "us"),
    ]
