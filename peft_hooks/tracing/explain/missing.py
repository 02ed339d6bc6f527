"""Causes that are about something that is not there: a key, an argument, a tensor that is None."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..trace import Row
from .failure import Finding

if TYPE_CHECKING:
    from .rules import Scene


def missing_key(scene: Scene) -> Finding | None:
    """A ``KeyError``: features without a key."""
    if not issubclass(scene.kind, KeyError):
        return None
    key = scene.message.strip("'\"")
    rows = scene.history.rows
    had = [row for row in rows if row.index < scene.row.index and any(leaf.key == key for leaf in row.outputs)]
    given = sorted({leaf.key for leaf in scene.row.inputs})
    if key in given:
        return None
    cause = f"{key!r} is not among what {scene.row.where} was given ({', '.join(given) or 'nothing'})"
    last = next((row for row in reversed(had) if row.forward == scene.row.forward), None)
    if last is not None:
        cause += f"; it came out of {last.where}"
        return Finding("key", cause, f"look at what happens to {key!r} after {last.where}", culprit=last.path)
    step = next((row for row in reversed(rows) if _handed_on(row, scene.row)), None)
    if step is not None:
        cause += f"; {step.where}, which ran before it, gave {', '.join(leaf.key for leaf in step.outputs)}"
        return Finding("key", cause + scene.on(step.path), f"look at what {step.where} returns", culprit=step.path)
    return Finding("key", cause, f"put {key!r} into what the model is called with, or in a module before this one")


def _handed_on(row: Row, failing: Row) -> bool:
    """Tell whether a call ended before the failing one, beside it, and returned a dict of features."""
    beside = row.parent == failing.parent and row.forward == failing.forward and row.index < failing.index
    return beside and row.state == "done" and len(row.outputs) > 1


def _innermost_none(rows: Sequence[Row], row: Row) -> Row:
    """Return the call inside that a None came from: a module mostly returns what its last part returned."""
    inside = [other for other in rows if other.parent == row.index and other.state == "done"]
    if inside and [leaf.text for leaf in inside[-1].outputs] == ["None"]:
        return _innermost_none(rows, inside[-1])
    return row


def none(scene: Scene) -> Finding | None:
    """Something is None: a module returned it, or was given it."""
    if not re.search("NoneType|None$|got None|be None", scene.message):
        return None
    history = scene.history
    # An output of None first: optional arguments are None all the time.
    for event in reversed(history.events):
        row = event.row
        if event.side == "out" and row.state == "done" and [leaf.text for leaf in row.outputs] == ["None"]:
            row = _innermost_none(history.rows, row)
            cause = f"{row.where} returned None{scene.on(row.path)}"
            return Finding("none", cause, f"look at what {row.where} returns", culprit=row.path)
    names = [leaf.name for leaf in scene.row.inputs if leaf.text == "None"]
    named = [name for name in names if name.rpartition(".")[2] in scene.message]
    names = named or names
    if not names:
        return None
    if len(names) > 1:
        return Finding("none", f"{scene.row.where} was given None for {', '.join(names)}; one of them is needed here")
    cure = f"give it a tensor for {names[0]!r}"
    if names[0] == "task_ids" and scene.pipeline:
        cure = "peft_hooks.register_prompt_mask_hooks(model, task_id=0), with the number of the task"
    return Finding("none", f"{scene.row.where} was given None for {names[0]}", cure)


def named_argument(scene: Scene) -> Finding | None:
    """A message that names an argument, such as ``You have to specify either input_ids or inputs_embeds``."""
    if not issubclass(scene.kind, (ValueError, TypeError)) or not re.search(
        "specify|require|provide|must", scene.message
    ):
        return None
    names = [name for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", scene.message) if name not in scene.row.where]
    given = {leaf.key: leaf for leaf in scene.row.inputs}
    if not names or any(name in given and given[name].text != "None" for name in names):
        return None
    words = " and ".join(
        f"{name} is None" if name in given else f"no {name} was given" for name in dict.fromkeys(names)
    )
    return Finding(
        "none" if names[0] in given else "key", f"{scene.row.where} needs one of them: {words}", f"give it {names[0]}"
    )


def argument(scene: Scene) -> Finding | None:
    """A forward that was called with too few, too many or unknown arguments."""
    missing = re.search(r"missing (\d+ required .*)", scene.message)
    unexpected = re.search(
        r"(?:got an unexpected keyword argument|multiple values for argument) '(\w+)'", scene.message
    )
    if not issubclass(scene.kind, TypeError) or not (missing or unexpected or "positional argument" in scene.message):
        return None
    names = ", ".join(leaf.name for leaf in scene.row.inputs) or "nothing"
    if missing is not None:
        return Finding("argument", f"a forward was called with {missing[0]}; {scene.row.where} was given {names}")
    if unexpected is not None:
        return Finding("argument", f"the forward that was called takes no {unexpected[1]!r}, or has it already")
    return Finding(
        "argument", f"the arguments do not fit the forward that was called; {scene.row.where} was given {names}"
    )
