"""``TraceDiff``: two traces compared, aligned by module path and call number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .leaves import Leaf, tensors_of
from .records import Row

if TYPE_CHECKING:
    from rich.table import Table

    from .trace import ShapeTrace


@dataclass(frozen=True)
class Change:
    """A tensor of one call that differs between two traces.

    Attributes:
        path: The module's path in the second trace.
        module: The module's class name.
        call: The number of the call of the module.
        side: ``"in"`` or ``"out"``.
        name: The tensor's name.
        before: What it was in the first trace, such as ``"f32[2,18,384]"``; None if it was not there.
        after: What it is in the second trace; None if it is not there.
        sizes: The dimensions that changed: ``(dimension, before, after)``.
    """

    path: str
    module: str
    call: int
    side: str
    name: str
    before: str | None
    after: str | None
    sizes: tuple[tuple[int, int, int], ...] = ()

    def __str__(self) -> str:
        call = f" call {self.call}" if self.call > 1 else ""
        return f"{self.module} {self.path!r}{call} {self.side}: {self.name} {self.before or '-'} -> {self.after or '-'}"


@dataclass(frozen=True)
class TraceDiff:
    """The differences between two traces; true if there are any.

    Attributes:
        changes: Every tensor that differs, in the order in which the calls ended in the second trace.
        only_before: The calls that only the first trace has.
        only_after: The calls that only the second trace has.
        aligned: The number of calls that both have.
        failure: A summary of how the second trace's forward failed, or None.
    """

    changes: tuple[Change, ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]
    aligned: int
    failure: str | None

    @property
    def first(self) -> Change | None:
        """The first divergence."""
        return self.changes[0] if self.changes else None

    @property
    def sizes(self) -> dict[tuple[int, int], int]:
        """How often one size became another, most frequent first: ``{(18, 28): 97}``."""
        found = Counter((before, after) for change in self.changes for _, before, after in change.sizes)
        return dict(found.most_common())

    def __bool__(self) -> bool:
        return bool(self.changes or self.only_before or self.only_after)

    def __str__(self) -> str:
        if not self:
            return f"no difference in {self.aligned} calls"
        calls = {(change.path, change.call) for change in self.changes}
        lines = [f"{len(self.changes)} tensors differ in {len(calls)} of {self.aligned} calls"]
        if self.first is not None:
            lines.append(f"first: {self.first}")
        lines += [f"size {a} -> {b} ({b - a:+}): {count} times" for (a, b), count in self.sizes.items()]
        lines += [f"only in the first:  {row.where}" for row in self.only_before]
        lines += [f"only in the second: {row.where}" for row in self.only_after]
        if self.failure is not None:
            lines.append(f"the second failed: {self.failure}")
        return "\n".join([*lines, "", *map(str, self.changes)] if self.changes else lines)

    def table(self) -> Table:
        """Return the changes as a rich table."""
        from rich.table import Table
        from rich.text import Text

        grid = Table(title=str(self).split("\n\n")[0].splitlines()[0], caption=self.failure)
        for name in ("module", "class", "side", "tensor", "before", "after"):
            grid.add_column(name, overflow="fold")
        for number, change in enumerate(self.changes):
            path = change.path + (f" #{change.call}" if change.call > 1 else "")
            cells = (path, change.module, change.side, change.name, change.before or "-", change.after or "-")
            grid.add_row(*map(Text, cells), style="" if number else "bold")
        return grid

    def to_html(self, path: Any) -> None:
        """Write a self-contained page of the changes, with the first divergence marked."""
        from pathlib import Path

        from .render.html import diff_page

        Path(path).write_text(diff_page(self), encoding="utf-8")

    def _repr_html_(self) -> str:
        from .render.html import diff_fragment

        return diff_fragment(self)


def compare(before: ShapeTrace, after: ShapeTrace) -> TraceDiff:
    """Align two traces and list what differs."""
    ours, theirs = _keys(before), _keys(after)
    pairs: dict[tuple[int, str, int], Row] = {}
    for key, row in theirs.items():
        match = next((same for same in _aliases(key) if same in ours and same not in pairs), None)
        pairs[match or key] = row
    # The wrapper may also be in the first trace only.
    for key in [key for key in ours if key not in pairs]:
        match = next((same for same in _aliases(key) if same in pairs and same not in ours), None)
        if match is not None:
            pairs[key] = pairs.pop(match)
    ordered = sorted((row.index, key) for key, row in pairs.items() if key in ours)
    changes = [change for _, key in ordered for change in _changes(ours[key], pairs[key])]
    return TraceDiff(
        tuple(_in_order(changes)),
        tuple(row for key, row in ours.items() if key not in pairs),
        tuple(row for key, row in pairs.items() if key not in ours),
        len(ordered),
        None if after.failure is None else after.failure.summary,
    )


def _keys(trace: ShapeTrace) -> dict[tuple[int, str, int], Row]:
    """Return the rows by the rank of their forward, their path and the number of their call."""
    rank = {forward: number for number, forward in enumerate(trace.forwards)}
    return {(rank[row.forward], row.path, row.call): row for row in trace.rows}


def _aliases(key: tuple[int, str, int]) -> Iterator[tuple[int, str, int]]:
    """Yield a row's key as it is, then without the wrappers that PEFT puts into paths, shortest omission first."""
    forward, path, call = key
    dotted = f".{path}."
    for wrapper in ("", ".base_model.model.", ".base_model.", ".base_layer."):
        if not wrapper or wrapper in dotted:
            yield forward, dotted.replace(wrapper, ".", 1).strip(".") if wrapper else path, call
    for wrapper in (".base_model.model.", ".base_model."):
        if wrapper in dotted and ".base_layer." in dotted:
            yield forward, dotted.replace(wrapper, ".", 1).replace(".base_layer.", ".", 1).strip("."), call


def _changes(before: Row, after: Row) -> Iterator[Change]:
    for side, old, new in (
        ("in", before.came, after.came),
        ("out", tensors_of(before.outputs), tensors_of(after.outputs)),
    ):
        if side == "out" and after.state != "done":
            return  # it did not get that far
        known, now = {leaf.name: leaf for leaf in old}, {leaf.name: leaf for leaf in new}
        for name in dict.fromkeys([*known, *now]):
            a, b = known.get(name), now.get(name)
            if a is None or b is None or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
                size = (None if a is None else a.size, None if b is None else b.size)
                yield Change(after.path, after.module, after.call, side, name, *size, _sizes(a, b))


def _sizes(a: Leaf | None, b: Leaf | None) -> tuple[tuple[int, int, int], ...]:
    old, new = (() if leaf is None or leaf.shape is None else leaf.shape for leaf in (a, b))
    if len(old) != len(new):
        return ()
    return tuple((place, x, y) for place, (x, y) in enumerate(zip(old, new)) if x != y)


def _in_order(changes: list[Change]) -> list[Change]:
    """Move the outputs of a call after the changes inside it, because the enclosing call ends last."""
    ended: list[Change] = []
    waiting: list[Change] = []
    for change in changes:
        while waiting and not _encloses(waiting[-1], change):
            ended.append(waiting.pop())
        (waiting if change.side == "out" else ended).append(change)
    return ended + waiting[::-1]


def _encloses(outer: Change, change: Change) -> bool:
    inside = not outer.path or change.path.startswith(f"{outer.path}.")
    return inside or (outer.path == change.path and outer.call == change.call)
