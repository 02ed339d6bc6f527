"""Programs that work, traced: the same outputs, nothing left, no exception; the trace can be read and printed."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import HookRegistry, LogShapes, assert_dimensions, trace_shapes
from peft_hooks.testing import assert_no_hooks_left
from peft_hooks.tracing.leaves import MOST

from ...tools import healthy
from ...tools.healthy import PROGRAMS, Does, Program


def leaves(value: Any) -> list[torch.Tensor]:
    """Return the tensors of an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in leaves(part)]


def hooks_on(model: nn.Module) -> int:
    """Return how many hooks are on a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("stats", [False, True], ids=["", "stats"])
@pytest.mark.filterwarnings("ignore")
def test_a_trace_changes_nothing(make: Callable[[], Program], stats: bool) -> None:
    torch.manual_seed(0)
    _, bare = make()
    torch.manual_seed(1)
    wanted = leaves(bare())
    torch.manual_seed(0)
    model, call = make()
    before = hooks_on(model)
    torch.manual_seed(1)
    with trace_shapes(model, stats=stats) as trace:
        got = leaves(call())
    assert trace.failure is None
    assert len(wanted) == len(got)
    assert all(torch.equal(one, other) for one, other in zip(wanted, got))
    lazy = make is healthy.lazy_layers  # their own hook goes with the first forward
    assert lazy or hooks_on(model) == before
    if not before:
        assert_no_hooks_left(model)
    str(trace).encode("utf-8")
    json.dumps(trace.to_dict())
    assert trace.table().row_count >= 0
    assert [row.state for row in trace.rows if row.state == "running"] == []


def test_a_net_that_calls_itself_is_one_forward() -> None:
    model, call = healthy.a_net_that_calls_itself()
    with trace_shapes(model) as trace:
        call()
        call()
    assert trace.forwards == (1, 2)
    assert [row.state for row in trace.rows] == ["done"] * 18


def test_what_was_interrupted_does_not_count_as_running() -> None:
    """A KeyboardInterrupt runs no forward hook: the next forward is one of its own all the same."""
    interrupts = [True]

    def does(self: Any, x: torch.Tensor) -> torch.Tensor:
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return x

    model = Does(does)
    with trace_shapes(model) as trace:
        with pytest.raises(KeyboardInterrupt) as caught:
            model(torch.ones(1))
        model(torch.ones(1))
    assert trace.forwards == (1, 2)
    assert [row.parent for row in trace.rows] == [None, None]
    assert trace.failure is None
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_early_exit_gains_no_note(error: type[BaseException]) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(error) as caught, trace_shapes(model) as trace:
        model(torch.ones(1, 2))
        raise error
    assert trace.failure is None
    assert not hasattr(caught.value, "__notes__")


def test_an_exception_of_the_callers_own_gains_no_note() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="mine") as caught, trace_shapes(model) as trace:
        model(torch.ones(1, 2))
        raise ValueError("mine")
    assert trace.failure is None
    assert not hasattr(caught.value, "__notes__")


def test_many_leaves_are_not_all_written_down() -> None:
    many = [torch.ones(1)] * 100_001
    model = nn.Sequential(Does(lambda self, x: many))
    with trace_shapes(model) as trace:
        began = time.perf_counter()
        model(torch.ones(1))
        took = time.perf_counter() - began
    assert len(trace.rows[1].outputs) == MOST + 1
    assert trace.rows[1].outputs[-1].text == "more"
    assert took < 0.5  # 1.1 s before there was a cap


def test_a_nested_tensor_is_written_down_as_one() -> None:
    model, call = healthy.a_strided_nested_tensor()
    with trace_shapes(model) as trace:
        call()
    assert str(trace.rows[1].inputs[0]) == "input nested[2,*,4]"


def test_a_trace_can_be_copied_and_pickled() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with trace_shapes(model) as trace:
        model(torch.ones(1, 2))
    again = pickle.loads(pickle.dumps(trace))
    assert again.rows == copy.deepcopy(trace).rows == trace.rows


def test_a_failure_keeps_no_tensor_alive() -> None:
    import gc
    import weakref

    model = nn.Sequential(nn.Linear(2, 2))
    x = torch.ones(1, 3)
    gone = weakref.ref(x)
    with trace_shapes(model) as trace:
        with contextlib.suppress(RuntimeError):
            model(x)
        del x
        gc.collect()
        assert gone() is None
    assert trace.failure is not None


@pytest.mark.parametrize("make", [healthy.a_strided_nested_tensor, healthy.a_jagged_nested_tensor])
@pytest.mark.filterwarnings("ignore")
def test_other_watchers_let_nested_tensors_through(
    make: Callable[[], Program], caplog: pytest.LogCaptureFixture
) -> None:
    model, call = make()
    with (
        caplog.at_level(logging.DEBUG, logger="peft_hooks"),
        HookRegistry(model).attached(LogShapes(), to="lin"),
        assert_dimensions(model, {"lin": {"input": "batch seq 4"}}),
    ):
        call()
    assert "nested[2,*,4]" in caplog.messages[-1]
