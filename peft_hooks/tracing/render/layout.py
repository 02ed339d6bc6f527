"""Choose what to show of a trace: which calls are boxes in the picture, and which layers are folded into one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..leaves import Leaf
from ..records import Row

if TYPE_CHECKING:
    from ..trace import ShapeTrace


class Folded(NamedTuple):
    """Calls that are shown only once.

    Attributes:
        rows: The calls of the first layer, or a single call.
        paths: The paths of the layers that did the same, including the first; empty for a single call.
    """

    rows: tuple[Row, ...]
    paths: tuple[str, ...] = ()

    @property
    def repeats(self) -> str:
        """What is folded, as text: ``"layer.1 to layer.5 are the same"``; empty if nothing is."""
        if len(self.paths) < 2:
            return ""
        same = self.paths[1:]
        return f"{same[0]} is the same" if len(same) == 1 else f"{same[0]} to {same[-1]} are the same"


def fold(rows: Sequence[Row]) -> list[Folded]:
    """Return the rows, with runs of numbered sibling layers that did the same folded into the first."""
    layers = list(_layers(rows))
    found: list[Folded] = []
    at = 0
    while at < len(layers):
        stem, first = layers[at]
        end = at + 1
        while stem and end < len(layers) and layers[end][0] == stem and _same(first, layers[end][1]):
            end += 1
        if end - at > 1:
            found.append(Folded(tuple(first), tuple(_layer_of(layer[0]) for _, layer in layers[at:end])))
        else:
            found += [Folded((row,)) for row in first]
        at = end
    return found


def _layers(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each run of rows inside one numbered layer, with the path that its siblings share; ``""`` if in none."""
    run: list[Row] = []
    for row in rows:
        if run and _is_same_call(run[0], row):
            run.append(row)
            continue
        if run:
            yield _stem(_layer_of(run[0])), run
        run = [row]
    if run:
        yield _stem(_layer_of(run[0])), run


def _is_same_call(first: Row, row: Row) -> bool:
    """Tell whether ``row`` is in the same call of the same layer as ``first``."""
    again = row.path == first.path and row.call != first.call
    return bool(_layer_of(row)) and _layer_of(row) == _layer_of(first) and row.forward == first.forward and not again


_LAYER = re.compile(r"^(.*?[^.\d][^.]*\.\d+)(?:\.|$)")


def _layer_of(row: Row) -> str:
    """Return the path of the outermost numbered layer: ``"0.model.encoder.layer.3"``; pipeline stages do not count."""
    match = _LAYER.match(row.path)
    return match[1] if match else ""


def _stem(layer: str) -> str:
    return layer.rpartition(".")[0]


def _same(one: Sequence[Row], other: Sequence[Row]) -> bool:
    return len(one) == len(other) and [_signature(row) for row in one] == [_signature(row) for row in other]


def _signature(row: Row) -> tuple[object, ...]:
    layer = _layer_of(row)
    return row.path[len(layer) :], row.module, row.state, row.forward, row.thread, row.came, row.went


class Stage(NamedTuple):
    """One box in the picture.

    Attributes:
        row: The call.
        steps: The calls inside that are shown, with layers folded.
        failed: Whether the forward ended here.
        culprit: The call inside, or this one, that raised first; or None.
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
    """Return the path and class of each child of the model that a failed forward never reached."""
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
    """Open the calls that contain most of the others, such as the encoder, until single layers are shown."""
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
    """Tell whether a tensor on an arrow was not on the previous arrow."""
    if before is None:
        return False
    return not any((leaf.key, leaf.shape, leaf.dtype) == (old.key, old.shape, old.dtype) for old in before.came)
