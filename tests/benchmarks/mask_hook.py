"""The mask hook's cost per forward beside the built-in extension of Sentence Transformers 3.3 to 6.1.

``python -m tests.benchmarks.mask_hook`` prints both, measured alternately in one process, hook calls included. What is
timed is one call of a module that does nothing but hand on its features, less the same call with nothing attached.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from peft_hooks import ExtendPromptMask, HookRegistry

from .timing import time_of

ROUNDS, CALLS, BATCH, TOKENS, VIRTUAL = 400, 50, 32, 64, 10


class Transformer(nn.Module):
    """Hands on token embeddings that are there already; its backbone is a stand-in with an adapter's config."""

    def __init__(self) -> None:
        super().__init__()
        config = SimpleNamespace(is_prompt_learning=True, peft_type="PROMPT_TUNING", num_virtual_tokens=VIRTUAL)
        self.model = Backbone(config)
        self.embeddings = torch.zeros(BATCH, VIRTUAL + TOKENS, 8)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features["token_embeddings"] = self.embeddings
        return features


class Backbone(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.active_peft_config = config


class Extending(Transformer):
    """Extends the mask inside its forward as the releases did (models/Transformer.py of 3.3.0)."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features = super().forward(features)
        if isinstance(self.model, Backbone) and self.model.active_peft_config.is_prompt_learning:
            batch_size = self.embeddings.size(0)
            attention_mask = features["attention_mask"]
            prefix_attention_mask = torch.ones(
                batch_size, self.model.active_peft_config.num_virtual_tokens, device=attention_mask.device
            )
            features["attention_mask"] = torch.cat((prefix_attention_mask, attention_mask), dim=1)
        return features


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    features = {"input_ids": mask, "attention_mask": mask}
    hooked = Transformer()
    HookRegistry(hooked).attach(ExtendPromptMask(), to="")
    modules = {"nothing": Transformer(), "built in": Extending(), "hook": hooked}
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(ROUNDS):
        for name, module in modules.items():
            times[name].append(time_of(lambda module=module: module(dict(features)), CALLS))
    cost = {
        name: [mine - base for mine, base in zip(times[name], times["nothing"], strict=True)]
        for name in ("built in", "hook")
    }
    for name, values in cost.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:<9} {middle:5.1f} microseconds per forward (middle half {low:.1f} to {high:.1f})")
    ratios = [hook / built for hook, built in zip(cost["hook"], cost["built in"], strict=True) if built > 0]
    print(f"hook / built in: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
