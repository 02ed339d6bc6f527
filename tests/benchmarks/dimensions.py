"""Measure what ``AssertDimensions`` adds to a forward of a Transformer and a Pooling, against two empty hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_hooks import AssertDimensions, Hook, HookRegistry
from peft_hooks.dimensions.hook import Bindings

from .attached import Nothing
from .table import Row
from .timing import beyond, in_turns, ratios

BATCH, TOKENS, WIDTH = 32, 64, 8


class HandOn(nn.Module):
    """Pass the features through."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def pipeline(transformer: Hook | None, pooling: Hook | None) -> nn.Module:
    """Return two modules that do nothing, with a hook on each."""
    model = nn.Sequential(HandOn(), HandOn())
    registry = HookRegistry(model)
    for path, hook in (("0", transformer), ("1", pooling)):
        if hook is not None:
            registry.attach(hook, to=path)
    return model


def checked() -> nn.Module:
    """Return the two modules with the contracts of a Transformer and a Pooling on them."""
    bindings, text = Bindings(), {"token_embeddings": "batch seq hidden", "attention_mask": "batch seq"}
    pooled = {"sentence_embedding": f"batch {WIDTH}"}
    inputs = {"token_embeddings": f"batch seq width={WIDTH}", "attention_mask": "batch seq"}
    return pipeline(
        AssertDimensions(outputs=text, bindings=bindings, starts=True),
        AssertDimensions(inputs, pooled, bindings=bindings, ends=True),
    )


def measure(quick: bool = False) -> list[Row]:
    """Measure one forward minus that of the bare modules."""
    features = {
        "attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.int64),
        "token_embeddings": torch.zeros(BATCH, TOKENS, WIDTH),
        "sentence_embedding": torch.zeros(BATCH, WIDTH),
    }
    models = {"bare": pipeline(None, None), "empty": pipeline(Nothing(), Nothing()), "checked": checked()}
    times = in_turns({n: lambda m=m: m(features) for n, m in models.items()}, 3 if quick else 300, 50)
    raw = {f"microseconds, {name}": beyond(times, name, "bare") for name in ("empty", "checked")}
    found = ratios(times, "checked", "empty", "bare")
    return [Row.of("AssertDimensions on a Transformer and a Pooling", "two empty hooks", found, None, **raw)]
