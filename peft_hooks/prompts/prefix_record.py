"""Where a backbone's attention takes keys and values, as plain data that travels with a hook."""

from __future__ import annotations

from typing import NamedTuple

Piece = tuple[str, int, int]
"""What stands in some columns of a projection's rows: ``"keys"``, ``"values"`` or its ``"own"``, from and to where."""


class Projection(NamedTuple):
    """A module whose rows are keys, values or both.

    Attributes:
        path: Where it is in the backbone.
        layers: The layer that each of its calls in a forward is of, or None where a call gives no rows of the text.
        pieces: What its columns are, in their order; numbers are columns of what stands there.
    """

    path: str
    layers: tuple[int | None, ...]
    pieces: tuple[Piece, ...]


class Places(NamedTuple):
    """Where a backbone's attention takes keys and values.

    Attributes:
        layers: How many layers have keys and values.
        width: How many columns the keys of a layer have, those of all heads together.
        projections: The modules that make them.
        body: The path of what embeds the text: rows go in front there.
        inner: The path of the module inside of it that all projections are in, or None; rows end with it, before a
            pooler reads the first one.
    """

    layers: int
    width: int
    projections: tuple[Projection, ...]
    body: str
    inner: str | None
