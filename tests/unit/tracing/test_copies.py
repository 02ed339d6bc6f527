"""Copies and pickles that are made while a trace is open: nothing of it stays on them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import HookRegistry, LogShapes, assert_dimensions, trace_shapes
from peft_hooks.testing import assert_no_hooks_left


def saved(model: nn.Module) -> Any:
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def test_a_copy_made_inside_has_no_hooks_when_the_block_is_over(model: nn.Module) -> None:
    with trace_shapes(model), trace_shapes(model):
        copied, part = copy.deepcopy(model), copy.deepcopy(model[1])
    for one in (model, copied, part):
        assert_no_hooks_left(one)


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, saved], ids=lambda way: way.__name__)
def test_what_a_copy_kept_of_a_trace_goes_in_its_first_forward(
    model: nn.Module, way: Callable[[nn.Module], Any]
) -> None:
    with trace_shapes(model) as trace:
        copied = way(model)
        truth = model(torch.ones(1, 2))
        assert torch.equal(copied(torch.ones(1, 2)), truth)
        assert_no_hooks_left(copied)
        model(torch.ones(1, 2))
    assert len(trace.forwards) == 2
    assert_no_hooks_left(model)


def test_the_hooks_of_a_registry_stay_on_a_copy_made_inside(model: nn.Module) -> None:
    HookRegistry(model, owner="mine").attach(LogShapes(), to="0")
    with trace_shapes(model):
        copied = copy.deepcopy(model)
    assert list(HookRegistry.adopt(copied, "mine")) == ["LogShapes"]


class Broken(Mapping[str, Any]):
    """Has keys, and raises where a value is read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("not loaded")

    def __iter__(self) -> Iterator[str]:
        return iter(["tokens"])

    def __len__(self) -> int:
        return 1


def test_a_mapping_whose_values_raise_is_watched_and_let_through(caplog: pytest.LogCaptureFixture) -> None:
    model, given = nn.Sequential(nn.Identity()), Broken()
    HookRegistry(model).attach(LogShapes(), to="**")
    with caplog.at_level("DEBUG", "peft_hooks"), trace_shapes(model) as trace:
        with assert_dimensions(model, {"0": ({"tokens": "batch", "tokens.deep": "batch"}, {"tokens": "batch"})}):
            assert model(given) is given
    assert trace.rows[0].inputs[0].text == "Broken(unreadable)"


def test_values_under_vmap_are_not_read_and_the_forward_goes_on(model: nn.Module) -> None:
    with trace_shapes(model, stats=True) as trace:
        torch.vmap(model)(torch.ones(3, 2))
        torch.func.grad(lambda x: model(x).sum())(torch.ones(2))
    assert len(trace.forwards) == 2
