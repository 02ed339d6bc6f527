"""Measure the mask hook's cost per forward, against Sentence Transformers 3.3 to 6.1 and a hook written by hand.

The time is that of one call, hooks included, of a module that only passes its features through, minus the same call
with nothing attached. Sentence Transformers 3.3 to 6.1 extend the mask in the forward.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from peft_hooks import ExtendPromptMask, HookRegistry

from .table import Row
from .timing import beyond, in_turns, ratios

BATCH, TOKENS, VIRTUAL = 32, 64, 10


class Transformer(nn.Module):
    """Pass existing token embeddings through; the backbone is a stand-in with an adapter's config."""

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
    """Extend the mask inside the forward as those releases did (models/Transformer.py in 3.3.0)."""

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


def by_hand(module: Any, args: Any, output: dict[str, Tensor]) -> dict[str, Tensor]:
    """Extend the mask as hand-written hooks usually do: right for one adapter, and in the caller's dict."""
    mask = output["attention_mask"]
    virtual = module.model.active_peft_config.num_virtual_tokens
    prefix = torch.ones(mask.size(0), virtual, dtype=mask.dtype, device=mask.device)
    output["attention_mask"] = torch.cat([prefix, mask], dim=1)
    return output


def handing_on(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Change nothing: a hook that leaves the caller's dict unchanged must also run before the forward."""
    return args, kwargs


def padding(module: Any, args: Any, output: dict[str, Tensor]) -> None:
    """Pad the mask and discard it."""
    torch.constant_pad_nd(output["attention_mask"], (VIRTUAL, 0), 1)


def measure(quick: bool = False) -> list[Row]:
    """Measure one forward."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    features = {"input_ids": mask, "attention_mask": mask}
    hooked, hand, least = Transformer(), Transformer(), Transformer()
    HookRegistry(hooked).attach(ExtendPromptMask(), to="")
    hand.register_forward_hook(by_hand)
    least.register_forward_pre_hook(handing_on, with_kwargs=True)
    least.register_forward_hook(padding, always_call=True)
    modules = {"nothing": Transformer(), "built in": Extending(), "by hand": hand, "least": least, "hook": hooked}
    calls = {name: lambda module=module: module(dict(features)) for name, module in modules.items()}
    times = in_turns(calls, 3 if quick else 400, 50)
    raw = {f"microseconds, {name}": beyond(times, name, "nothing") for name in list(modules)[1:]}
    hand_written = "a hook by hand: torch.ones, torch.cat"
    return [
        Row.of(
            "mask hook, one forward",
            "the built-in extension of 3.3 - 6.1",
            ratios(times, "hook", "built in", "nothing"),
            None,
            **raw,
        ),
        Row.of("mask hook, one forward", hand_written, ratios(times, "hook", "by hand", "nothing"), None),
        Row.of(
            "two empty hooks of PyTorch and one pad", hand_written, ratios(times, "least", "by hand", "nothing"), None
        ),
    ]
