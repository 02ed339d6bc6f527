"""Whose hooks are on a module and below: of which registry, or of nobody's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

from peft_hooks import Call, Hook, HookRegistry
from peft_hooks.hooks.onlookers import is_watched, onlookers

OWNER = "ours"


class Nothing(Hook):
    """Does nothing, but is called."""

    def before(self, call: Call) -> None:
        return None


def look(*_: Any) -> None:
    """See, and change nothing."""


def never(hook: Any) -> bool:
    return False


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.Identity())


@pytest.fixture(params=["whole", "copied"])
def ours(request: Any, model: nn.Module) -> nn.Module:
    """Return a model with hooks of the owner, or a copy of it: there each dispatcher is by itself."""
    registry = HookRegistry(model, owner=OWNER)
    registry.attach(Nothing(), to="**")
    return model if request.param == "whole" else copy.deepcopy(model)


def found(model: nn.Module, harmless: Any = never) -> list[tuple[str, nn.Module | None]]:
    return [tuple(one) for one in onlookers(model, OWNER, harmless)]  # type: ignore[misc]


def test_hooks_of_the_owner_are_none(ours: nn.Module) -> None:
    assert found(ours) == []


def test_hooks_of_pytorch_are_named_with_their_module(ours: nn.Module) -> None:
    """Of each kind, at any depth."""
    layer = ours[0][0]  # type: ignore[index]
    with layer.register_forward_hook(look), ours.register_full_backward_pre_hook(look):
        assert sorted(found(ours), key=str) == sorted([("forward hook", layer), ("backward pre-hook", ours)], key=str)
    assert found(ours) == []


def test_hooks_that_are_called_harmless_are_none(ours: nn.Module) -> None:
    with ours.register_forward_hook(look):
        assert found(ours, harmless=lambda hook: hook is look) == []


def test_a_hook_on_every_module_is_one_of_no_module(ours: nn.Module) -> None:
    with nn.modules.module.register_module_forward_pre_hook(look):
        assert found(ours) == [("hook", None)]


def test_a_registry_of_another_owner_is_one_while_it_runs_something(ours: nn.Module) -> None:
    """What a block has set aside runs nothing, and is none."""
    other = HookRegistry(ours)
    other.attach(Nothing(), to="1", name="mine")
    assert {module for _, module in found(ours)} == {ours[1]}  # type: ignore[index]
    with other.replaced():
        assert found(ours) == []
    other.clear()
    assert found(ours) == []


def test_a_call_of_no_dispatcher_is_watched_by_nobody(model: nn.Module) -> None:
    """A probe runs a forward by itself, whatever hooks there are."""
    with model.register_forward_hook(look):
        assert not is_watched(Call(model, "", (), {}), never)
