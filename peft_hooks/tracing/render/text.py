"""Render a trace as text and as a rich table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..leaves import Leaf
from ..records import Row
from .layout import Folded, fold

if TYPE_CHECKING:
    from rich.table import Table

    from ..trace import ShapeTrace


def text(trace: ShapeTrace) -> str:
    """Return the trace as plain text: a title, a line for each call, what is not shown, and the failure."""
    lines = [title(trace), *adapter_lines(trace)]
    for forward in trace.forwards:
        rows = [row for row in trace.rows if row.forward == forward]
        lines += ["", *_forward_title(forward, rows, len(trace.forwards)), *_lines(fold(rows))]
    notes = list(notes_of(trace))
    if notes:
        lines += ["", *notes]
    if trace.failure is not None:
        lines += ["", str(trace.failure)]
    return "\n".join(lines)


def title(trace: ShapeTrace) -> str:
    """Say what was traced."""
    modules = len({row.path for row in trace.rows})
    forwards = len(trace.forwards)
    return f"{trace.model}: {_count(forwards, 'forward')}, {_count(len(trace), 'call')} of {_count(modules, 'module')}"


def adapter_lines(trace: ShapeTrace) -> list[str]:
    """Return the measured number of virtual tokens, and those in the adapters' configs, as text."""
    lines = []
    if trace.virtual_tokens:
        length = trace.text_length or 0
        total = length + trace.virtual_tokens
        lines.append(f"{_count(trace.virtual_tokens, 'virtual token')} in front of {length} positions of text: {total}")
    lines += [f"{adapter} on {adapter.path!r}: {adapter.virtual_tokens} virtual tokens" for adapter in trace.adapters]
    return lines


def notes_of(trace: ShapeTrace) -> Iterator[str]:
    """Say what the trace does not show."""
    for gap in trace.gaps:
        yield f"not called, so not seen: {gap.module} {gap.path!r}; its parent runs its forward() directly"
    for path, count in trace.skipped.items():
        yield f"{_count(count, 'further call')} of {path!r} not kept (max_calls)"


def _forward_title(forward: int, rows: list[Row], forwards: int) -> list[str]:
    thread = rows[0].thread if rows else "MainThread"
    name = "" if thread == "MainThread" else f" in {thread}"
    return [f"forward {forward}{name}"] if forwards > 1 or name else []


def _lines(items: Iterable[Folded]) -> list[str]:
    cells: list[tuple[str, ...]] = []
    for item in items:
        cells += [(_path(row), row.module + _state(row), leaves(row.came), leaves(row.went)) for row in item.rows]
        if item.repeats:
            cells.append((f"{item.repeats}", "", "", ""))
    widths = [max((len(cell[column]) for cell in cells if cell[1]), default=0) for column in range(2)]
    return [
        f"{path.ljust(widths[0])}  {kind.ljust(widths[1])}  {came} -> {went}".rstrip() if kind else f"  ... {path}"
        for path, kind, came, went in cells
    ]


def _path(row: Row) -> str:
    return (row.path or "(model)") + (f" #{row.call}" if row.call > 1 else "")


def _state(row: Row) -> str:
    return {"raised": " !", "running": " ?"}.get(row.state, "")


def leaves(found: Iterable[Leaf], most: int = 8) -> str:
    """Return tensors as one line, including what masks keep if that was read."""
    parts = [str(leaf) for leaf in found]
    if len(parts) > most:
        parts[most:] = [f"{len(parts) - most} more"]
    return ", ".join(parts) or "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(trace: ShapeTrace, folded: bool = True) -> Table:
    """Return the trace as a rich table."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title(trace), caption="\n".join([*adapter_lines(trace), *notes_of(trace)]) or None)
    several = len(trace.forwards) > 1
    for name in (*(["forward"] if several else []), "module", "class", "in", "out"):
        grid.add_column(name, overflow="fold")
    items = fold(trace.rows) if folded else [Folded((row,)) for row in trace.rows]
    for item in items:
        for row in item.rows:
            style = "bold red" if row.state == "raised" else ""
            came, went = ("\n".join(map(str, side)) for side in (row.came, row.went))
            cells = [_path(row), row.module, came, went]
            grid.add_row(*map(Text, [*([str(row.forward)] if several else []), *cells]), style=style)
        if item.repeats:
            grid.add_row(*(Text(cell) for cell in ([""] if several else [])), Text(f"... {item.repeats}"), style="dim")
    return grid
