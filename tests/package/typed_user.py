"""A small program of a user, which ``mypy --strict`` reads against the installed package. It is never run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import peft_hooks
from peft_hooks import (
    AssertDimensions,
    Call,
    Hook,
    HookHandle,
    HookRegistry,
    PaddingReport,
    ShapeTrace,
    UnsupportedModelError,
    check_padding_invariance,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    trace_shapes,
)
from peft_hooks.testing import assert_shapes, tiny_features


class Scale(Hook):
    """A hook of the user's own."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def after(self, call: Call, output: Any) -> Any:
        return output * self.factor


def tune(model: nn.Module) -> str:
    """Use most of what there is."""
    try:
        handle: HookHandle = register_prompt_mask_hooks(model, virtual_tokens="ignore")
    except UnsupportedModelError as error:
        return str(error)
    report: PaddingReport = check_padding_invariance(model, ["a", "b c"])
    largest: float = report.worst.difference
    with prompt_mask_hooks(model, task_id=1), trace_shapes(model) as trace:
        model(tiny_features())
    shapes: ShapeTrace = trace
    handle.remove()
    loaded = peft_hooks.load("tuned")
    peft_hooks.save(loaded, "again")
    return f"{largest} {shapes.failure} {report.ok}"


def hook(model: nn.Module) -> HookRegistry:
    """Attach hooks of every kind."""
    registry = HookRegistry(model)
    name: str = registry.attach(Scale(2.0), to="0")
    registry.attach(AssertDimensions({"x": "batch seq 8"}), to=nn.Linear, order=10)
    with registry.disabled(name):
        assert_shapes({"x": torch.zeros(1, 2, 8)}, {"x": "batch seq 8"})
    return registry


# Each line is wrong in one way, and mypy has to see it: an ignore that is not needed is an error of its own.
register_prompt_mask_hooks(nn.Identity(), virtual_tokens="strp")  # type: ignore[arg-type]
register_prompt_mask_hooks("minilm")  # type: ignore[arg-type]
HookRegistry(nn.Identity()).attach(Scale, to="0")  # type: ignore[arg-type]
prompt_mask_hooks(nn.Identity(), virtual_token="strip")  # type: ignore[call-arg]
prompt_mask_hooks(nn.Identity(), task_id="1")  # type: ignore[arg-type]
peft_hooks.load("tuned", share="auto")  # type: ignore[call-arg]
peft_hooks.register_hooks  # type: ignore[attr-defined]  # noqa: B018
