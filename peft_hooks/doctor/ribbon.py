"""Draws attention masks as ribbons, one row per text: virtual tokens, text, padding, and what Pooling counted.

Plain data in, rich renderables out: no tensor, no model. Counted positions are filled and the others hollow, so that a
ribbon can be read without color. rich is imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Kind = Literal["virtual", "text", "padding"]


class Row(NamedTuple):
    """One text: what is at each position, and whether Pooling counted it."""

    label: str
    kinds: Sequence[Kind]
    counted: Sequence[bool]


class Sign(NamedTuple):
    """How one kind of position is drawn. Only the 8 colors that every terminal theme, light or dark, defines."""

    drawn: str
    plain: str  # for terminals without these characters
    style: str


SIGNS: dict[tuple[Kind, bool], Sign] = {
    ("virtual", True): Sign("◆", "V", "magenta"),
    ("text", True): Sign("■", "T", "green"),
    ("padding", True): Sign("●", "#", "bold red"),  # counted padding is never right
    ("virtual", False): Sign("◇", "v", "dim magenta"),
    ("text", False): Sign("□", "t", "dim green"),
    ("padding", False): Sign("·", ".", "dim"),
}
_NAMES: dict[Kind, str] = {"virtual": "virtual token", "text": "text", "padding": "padding"}
_LEAST = 20  # cells: room for the mark of a shortened row and some positions on either side


def ribbon(rows: Sequence[Row], width: int = 80, ascii_only: bool = False) -> Table:
    """Return the rows as a table: label, ribbon, and how many positions Pooling counted.

    Args:
        rows: The texts; every row is drawn position by position, so that the rows of one batch line up.
        width: The number of columns. Ribbons that do not fit lose the same positions in every row, replaced by a mark
            that says how many.
        ascii_only: Draw with letters.

    Raises:
        ValueError: If a row has more or fewer ``counted`` flags than kinds.
    """
    from rich.table import Table
    from rich.text import Text

    for row in rows:
        if len(row.kinds) != len(row.counted):
            raise ValueError(f"row {row.label!r} has {len(row.kinds)} kinds, but {len(row.counted)} counted flags")
    ends = [summary(row) for row in rows]
    beside = max((len(row.label) for row in rows), default=0) + max(map(len, ends), default=0) + 2
    longest = max((len(row.kinds) for row in rows), default=0)
    hidden = cut(longest, max(width - beside, _LEAST))
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    for row, end in zip(rows, ends):
        wrong = "bold red" if "padding" in end else ""
        table.add_row(Text(row.label), cells(row, hidden, ascii_only), Text(end, style=wrong))
    return table


def cut(length: int, room: int) -> range:
    """Return the positions to leave out so that ``length`` positions fit into ``room`` cells, including the mark.

    Two thirds of the remaining positions are at the front, where the virtual tokens are and the text begins.
    """
    if length <= room:
        return range(0)
    kept = room - len(_mark(length))
    front = kept * 2 // 3
    return range(front, length - (kept - front))


def cells(row: Row, hidden: range, ascii_only: bool = False) -> Text:
    """Return one ribbon, with a mark in place of the ``hidden`` positions."""
    from rich.text import Text

    drawn = Text()
    for position, (kind, counted) in enumerate(zip(row.kinds, row.counted)):
        if position not in hidden:
            sign = SIGNS[kind, bool(counted)]
            drawn.append(sign.plain if ascii_only else sign.drawn, style=sign.style)
        elif position == hidden[0]:
            drawn.append(_mark(len(hidden)), style="bold")
    return drawn


def summary(row: Row) -> str:
    """Return how many positions Pooling counted, and how many of these are padding, as text."""
    count = sum(map(bool, row.counted))
    wrong = sum(bool(counted) and kind == "padding" for kind, counted in zip(row.kinds, row.counted))
    return f"{count} ({wrong} padding)" if wrong else str(count)


def legend(rows: Iterable[Row], ascii_only: bool = False) -> Text:
    """Return what the signs mean, for the signs that occur in ``rows``."""
    from rich.text import Text

    found = {(kind, bool(counted)) for row in rows for kind, counted in zip(row.kinds, row.counted)}
    lines = []
    for counts, title in ((True, "counted by Pooling: "), (False, "left out by Pooling:")):
        kinds = [kind for kind, flag in SIGNS if flag == counts and (kind, flag) in found]
        if kinds:
            line = Text(title)
            for kind in kinds:
                sign = SIGNS[kind, counts]
                line.append(f"  {sign.plain if ascii_only else sign.drawn}", style=sign.style).append(
                    f" {_NAMES[kind]}"
                )
            lines.append(line)
    return Text("\n").join(lines)


def _mark(count: int) -> str:
    return f"<{count} more>"
