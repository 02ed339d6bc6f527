"""Which calls of a forward are drawn as boxes, and which as lines inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..leaves import Leaf
from ..records import Row
from ..trace import ShapeTrace
from .folding import Folded, fold


class Stage(NamedTuple):
    """One box of the picture.

    Attributes:
        row: The call.
        steps: What is shown of the calls inside, layers folded.
        failed: Whether the forward ended here.
        culprit: The call inside, or this one, that raised first.
    """

    row: Row
    steps: tuple[Folded, ...]
    failed: bool
    culprit: Row | None


def stages(trace: ShapeTrace, forward: int) -> list[Stage]:
    """Return the boxes: the calls of the pipeline's modules, or of the model's children."""
    rows = [row for row in trace.rows if row.forward == forward]
    inside = _inside(rows)
    outermost = inside.get(None, [])
    shown = inside.get(outermost[0].index, []) if len(outermost) == 1 else outermost
    broken = _raised_first(trace, rows)
    return [
        Stage(row, tuple(_steps(row, inside, broken)), row.state == "raised", broken if row.state == "raised" else None)
        for row in (shown or outermost)
    ]


def not_reached(trace: ShapeTrace, forward: int) -> list[tuple[str, str]]:
    """Return path and class of the model's children that a failed forward never came to."""
    if trace.failure is None or trace.failure.forward != forward:
        return []
    called = {row.path.split(".")[0] for row in trace.rows if row.forward == forward}
    children = [tap for tap in trace._taps if tap.runs and tap.path and "." not in tap.path]
    last = max((number for number, tap in enumerate(children) if tap.path in called), default=-1)
    return [(tap.path, tap.kind) for tap in children[last + 1 :]]


def _inside(rows: Sequence[Row]) -> dict[int | None, list[Row]]:
    known = {row.index for row in rows}
    inside: dict[int | None, list[Row]] = {}
    for row in rows:
        inside.setdefault(row.parent if row.parent in known else None, []).append(row)
    return inside


def _raised_first(trace: ShapeTrace, rows: Sequence[Row]) -> Row | None:
    failure = trace.failure
    if failure is None:
        return None
    return next((row for row in rows if row.index == failure.row), None)


def _steps(stage: Row, inside: dict[int | None, list[Row]], broken: Row | None) -> list[Folded]:
    """Open the calls that hold most of what is inside, such as the encoder, until single layers show."""
    shown = list(inside.get(stage.index, []))
    total = _count(stage, inside)
    while True:
        big = next((row for row in shown if _count(row, inside) > max(total // 2, 3)), None)
        if big is None:
            break
        place = shown.index(big)
        children = inside.get(big.index, [])
        shown[place : place + 1] = children
    if broken is not None and stage.state == "raised" and broken is not stage and broken not in shown:
        shown.append(broken)  # it was the last to begin
    return fold(shown)


def _count(row: Row, inside: dict[int | None, list[Row]]) -> int:
    return sum(1 + _count(child, inside) for child in inside.get(row.index, []))


def is_new(leaf: Leaf, before: Row | None) -> bool:
    """Tell whether a tensor on an arrow was not on the arrow before."""
    if before is None:
        return False
    return not any((leaf.key, leaf.shape, leaf.dtype) == (old.key, old.shape, old.dtype) for old in before.came)
