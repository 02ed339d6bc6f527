"""How a case is written, and how its note is judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peft_hooks import trace_shapes

CASES: list[Case] = []


@dataclass(frozen=True)
class Case:
    """One error.

    Attributes:
        name: What is done wrong.
        make: Returns a model and a call that raises.
        raiser: The path of the module that must be named; None if no module of the model raises.
        says: Patterns that the note must have.
        cure: Patterns that the cure must have.
        never: Patterns of what would be false.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Callable[[], Any]]]
    raiser: str | None
    says: tuple[str, ...]
    cure: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def case(raiser: str | None, says: str, cure: str = "", never: str = "") -> Callable[[Any], Any]:
    """Enter a function into the table; patterns are separated by blanks, ``_`` in a pattern is one."""

    def enter(make: Any) -> Any:
        parts = [tuple(re.sub("_", r"[_\\s]", one) for one in text.split()) for text in (says, cure, never)]
        CASES.append(Case(make.__name__.replace("_", " "), make, raiser, *parts))
        return make

    return enter


def note_of(one: Case) -> tuple[str, Any]:
    """Return the note that a case's exception gains, and the failure."""
    torch.manual_seed(0)
    model, call = one.make()
    bare = raised_by(call)
    torch.manual_seed(0)
    model, call = one.make()

    def traced() -> None:
        with trace_shapes(model) as trace:
            traces.append(trace)
            call()

    traces: list[Any] = []
    error = raised_by(traced)
    assert bare is not None, "the bare call raises nothing"
    assert (type(error), str(error)) == (type(bare), str(bare)), "the trace changed what happens"
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return "\n".join(note for note in notes if note.startswith("peft_hooks")), traces[0].failure


def raised_by(call: Callable[[], Any]) -> Exception | None:
    """Return what a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


def wrong_with(one: Case, note: str, failure: Any) -> list[str]:
    """Return what is missing in a note, or false."""
    if failure is None or not note:
        return ["no note"]
    wrong = []
    if one.raiser is None and not failure.outside:
        wrong.append(f"no module raised, not {failure.where}")
    paths = [] if one.raiser is None else [repr(path) for path in one.raiser.split("|")]  # several, by release
    if paths and (failure.outside or not any(path in note.splitlines()[0] for path in paths)):
        wrong.append(f"the raiser {one.raiser!r}")
    said = "\n".join(line for line in note.splitlines()[1:] if not re.match(r"\s+at |\s{4}", line))
    wrong += [f"says {pattern}" for pattern in one.says if not re.search(pattern, said, re.IGNORECASE)]
    cure = failure.fix or ""
    wrong += [f"cure {pattern}" for pattern in one.cure if not re.search(pattern, cure, re.IGNORECASE)]
    wrong += [f"never {pattern}" for pattern in one.never if re.search(pattern, said, re.IGNORECASE)]
    if len(note.splitlines()) > 20:
        wrong.append(f"{len(note.splitlines())} lines")
    return wrong
