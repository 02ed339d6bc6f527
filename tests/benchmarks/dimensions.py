"""What ``AssertDimensions`` costs a forward: the checks of a Transformer and a Pooling, less the bare modules.

``python -m tests.benchmarks.dimensions`` prints microseconds per forward, measured alternately in one process.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn

from peft_hooks import AssertDimensions, Hook, HookRegistry
from peft_hooks._dimensions import Bindings

from .timing import time_of

ROUNDS, CALLS, BATCH, TOKENS, WIDTH = 300, 50, 32, 64, 8


class HandOn(nn.Module):
    """Hands its features on."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class Nothing(Hook):
    """Is called before and after, and does nothing: the price of any hook."""

    def before(self, call: Any) -> None:
        return None

    def after(self, call: Any, output: Any) -> None:
        return None


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


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    features = {
        "attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.int64),
        "token_embeddings": torch.zeros(BATCH, TOKENS, WIDTH),
        "sentence_embedding": torch.zeros(BATCH, WIDTH),
    }
    models = {"bare": pipeline(None, None), "an empty hook": pipeline(Nothing(), Nothing()), "checked": checked()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            times[name].append(time_of(lambda model=model: model(features), CALLS))
    for name in ("an empty hook", "checked"):
        cost = [mine - base for mine, base in zip(times[name], times["bare"], strict=True)]
        low, middle, high = statistics.quantiles(cost, n=4)
        print(f"{name:<13} {middle:5.1f} microseconds per forward (middle half {low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
