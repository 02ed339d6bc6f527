"""Two sizes that do not go together."""

from __future__ import annotations

from typing import NamedTuple

from .ghosts import Operand


class Clash(NamedTuple):
    """Two sizes of an operation's operands that do not go together.

    Attributes:
        kind: ``"sizes"`` of two dimensions; or ``"rank"``, ``"equal"``, ``"select"`` or ``"view"``.
        left: An operand.
        place: Which of its dimensions; how many it has (``"rank"``), or how much there is in it (``"select"``).
        right: The other operand, if there is one.
        other: The same of it, or what there must be if there is none.
        rule: What must be so.
    """

    kind: str
    left: Operand
    place: int
    right: Operand | None = None
    other: int = 0
    rule: str = ""


RULE = "must be of one size there, or one of them 1"


def unlike(one: Operand, other: Operand, rule: str = RULE, last: int = 0) -> Clash | None:
    """Return the first sizes, from the end but for the last ones, that cannot be broadcast against each other."""
    for place in range(1 + last, min(len(one.shape), len(other.shape)) + 1):
        if one.shape[-place] != other.shape[-place] and 1 not in (one.shape[-place], other.shape[-place]):
            return Clash("sizes", one, len(one.shape) - place, other, len(other.shape) - place, rule)
    return None
