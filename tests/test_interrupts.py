"""Ctrl-C in the middle of a call leaves a model as before it or as after it; ``python -m tests.interrupts`` for all."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest
import torch

from peft_hooks.compat.quiet import quiet
from peft_hooks.hooks.undo import always, attempt, block, surely

from .interrupts import SCENARIOS, Interrupt, first_and_last, plain, registry, trials

# Where something is switched: the rest reads.
CRITICAL = ("hooks/places.py", "hooks/undo.py", "prompts/handle.py", "prompts/attach.py", "prompts/adapters.py")
EACH = 2


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def some(lines: list[str]) -> list[int]:
    """Choose a few lines, those at which something is switched, evenly."""
    critical = [number for number in first_and_last(lines) if lines[number - 1].startswith(CRITICAL)]
    return critical[:: max(len(critical) // EACH, 1)][1:]


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupted_call_is_as_not_begun_or_as_ended(name: str) -> None:
    came = list(trials(SCENARIOS[name], some))
    assert came
    assert not [(result, where) for result, where in came if result not in ("before", "after")]


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("registry")])
def test_a_registry_is_interrupted_at_every_line(name: str) -> None:
    came = list(trials(SCENARIOS[name], lambda lines: range(1, len(lines) + 1, 3)))
    assert not [(result, where) for result, where in came if result not in ("before", "after")]


def test_the_injector_raises_where_it_is_told_to() -> None:
    """The property above would not notice much if it did not."""
    model = plain()
    made = registry(model)
    with Interrupt() as counted:
        made.disable("one")
    made.enable("one")
    places = [number for number, line in enumerate(counted.lines, 1) if line.startswith("hooks/places.py")]
    assert places
    with pytest.raises(KeyboardInterrupt), Interrupt(places[0]):
        made.disable("one")
    assert made.state.hooks["one"].enabled


def test_what_pytorch_was_half_told_runs_nothing_and_is_taken_off() -> None:
    """An interrupt inside of ``register_forward_pre_hook``: the hook is there, and not how it is to be called."""
    model = plain()
    made = registry(model)
    truth = model(torch.ones(1))
    half = made._places.state
    for module in model.modules():
        module._forward_pre_hooks_with_kwargs.clear()
    assert model(torch.ones(1)) is not None
    made.clear()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    made.restore(half)
    assert torch.equal(model(torch.ones(1)), truth)


@pytest.mark.parametrize("at", range(1, 12))
def test_the_last_step_of_a_block_runs_whatever_line_is_interrupted(at: int) -> None:
    """By itself, without a model: once it was entered, it is left."""
    state: list[str] = []

    def run() -> None:
        for _ in block(lambda: state.append("on"), state.clear):
            pass

    with Interrupt(at), contextlib.suppress(KeyboardInterrupt):
        run()
    assert not state


def test_steps_run_again_only_after_an_interrupt() -> None:
    """An error of the step itself is raised once, with what undoes it."""
    ran: list[str] = []

    def fail() -> None:
        ran.append("step")
        raise ValueError

    with pytest.raises(ValueError):
        surely(fail)
    assert ran == ["step"]
    with pytest.raises(ValueError):
        attempt(fail, lambda: ran.append("undo"))
    assert ran == ["step", "step", "undo", "undo"]
    assert attempt(lambda: 3, lambda: ran.append("never")) == always(lambda: 3, lambda: None) == 3
    assert "never" not in ran
