"""Modules of TorchScript: hooks where PyTorch takes them, and words where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import DimensionError, HookError, HookRegistry, LogShapes, assert_dimensions, trace_shapes
from peft_hooks.testing import assert_no_hooks_left

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def scripted() -> Any:
    return torch.jit.script(nn.Linear(2, 3))


def traced() -> Any:
    return torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2))


def test_a_scripted_module_is_named_where_no_hook_can_go() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(scripted()))
    registry = HookRegistry(model)
    with pytest.raises(HookError, match=r"'1\.0' .*RecursiveScriptModule.* 'LogShapes'"):
        registry.attach(LogShapes(), to="**")
    assert not len(registry)
    assert_no_hooks_left(model)
    registry.attach(LogShapes(), to="*")  # the modules around it
    model(torch.ones(1, 2))


def test_dimensions_are_checked_around_a_scripted_module_and_on_a_traced_one() -> None:
    model = nn.Sequential(scripted(), nn.Identity())
    with assert_dimensions(model, {"1": {"input": "batch 3"}}):
        model(torch.ones(1, 2))
    for contract, at in (({"input": "batch 2"}, "0"), ({"input": "batch 2"}, "")):
        model = traced() if not at else nn.Sequential(traced())
        with assert_dimensions(model, {at: contract}):
            model(torch.ones(1, 2))
        with (
            pytest.raises(DimensionError, match=r"input is \[1, 2\]"),
            assert_dimensions(model, {at: {"input": "batch 7"}}),
        ):
            model(torch.ones(1, 2))


def test_torchscript_says_which_hook_it_cannot_compile() -> None:
    """It named a line of this library and an unknown type."""
    model = nn.Sequential(nn.Linear(2, 3))
    handle = HookRegistry(model)
    handle.attach(LogShapes(), to="0")
    with pytest.raises(
        RuntimeError, match=r"scripting the forward hook '_after' on module Linear\. If you did not want"
    ):
        torch.jit.script(model)
    handle.clear()
    with trace_shapes(model), pytest.raises(RuntimeError, match=r"on module Linear\. If you did not want"):
        torch.jit.script(model)
    assert torch.jit.script(model)(torch.ones(1, 2)).shape == (1, 3)
