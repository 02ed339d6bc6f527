"""What is said of errors as people make them: the raiser, the sizes, the cause and the cure, and nothing false."""

from __future__ import annotations

import pytest
import torch

from peft_hooks.tracing.aftermath import explain_afterwards

from .explain_cases import (
    again,
    cures,
    demands,
    forum,
    given,
    layers,
    losses,
    models,
    operations,
    parts,
    reported,
    rows,
)
from .explain_cases.table import CASES, Case, note_of, raised_by, wrong_with

FAMILIES = (again, cures, demands, forum, given, layers, losses, models, operations, parts, reported, rows)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
@pytest.mark.filterwarnings("ignore")
def test_the_note_is_right(one: Case) -> None:
    """It names what it must, says nothing that it must not, and has twenty lines at most."""
    note, failure = note_of(one)
    assert wrong_with(one, note, failure) == [], note


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
@pytest.mark.filterwarnings("ignore")
def test_nothing_false_is_said_without_a_trace(one: Case) -> None:
    """The traceback alone tells less, and a note made of it is as true."""
    torch.manual_seed(0)
    _, call = one.make()
    error = raised_by(call)
    assert error is not None
    failure = explain_afterwards(error)
    note = "" if failure is None else str(failure)
    assert [wrong for wrong in wrong_with(one, note, failure) if wrong.startswith("never")] == [], note


def test_a_note_that_says_something_else_is_not_right() -> None:
    """The judge can say no: every case is wrong with the note of another."""
    one, other = CASES[0], CASES[1]
    assert wrong_with(one, *note_of(other)) != []
    assert wrong_with(one, "", None) == ["no note"]
