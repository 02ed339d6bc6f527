"""Describe two sizes that do not match."""

from __future__ import annotations

from typing import NamedTuple

from .ghosts import Operand


class Clash(NamedTuple):
    """Two sizes of an operation's operands that do not match.

    Attributes:
        kind: ``"sizes"`` of two dimensions; or ``"rank"``, ``"equal"``, ``"select"`` or ``"view"``.
        left: An operand.
        place: Which of its dimensions; for ``"rank"`` how many it has, and for ``"select"`` how many values.
        right: The other operand, if there is one.
        other: The same for the other operand, or the number that is required if there is no other operand.
        rule: The rule that they break, as text.
    """

    kind: str
    left: Operand
    place: int
    right: Operand | None = None
    other: int = 0
    rule: str = ""


RULE = "must have the same size there, or one of them 1"


def unlike(one: Operand, other: Operand, rule: str = RULE, last: int = 0) -> Clash | None:
    """Return the first sizes, from the end but without the ``last`` ones, that cannot be broadcast together."""
    for place in range(1 + last, min(len(one.shape), len(other.shape)) + 1):
        if one.shape[-place] != other.shape[-place] and 1 not in (one.shape[-place], other.shape[-place]):
            return Clash("sizes", one, len(one.shape) - place, other, len(other.shape) - place, rule)
    return None
