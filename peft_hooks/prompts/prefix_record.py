"""Where a backbone's attention takes keys and values, as plain data that travels with a hook."""

from __future__ import annotations

from typing import NamedTuple

Piece = tuple[str, int, int]
"""What some columns of a projection contain, ``"keys"``, ``"values"`` or its ``"own"``, and the range within that."""


class Projection(NamedTuple):
    """A module whose rows are keys, values or both.

    Attributes:
        path: Its path in the backbone.
        layers: The layer that each of its calls in a forward belongs to, or None if a call returns no rows of the text.
        pieces: What its columns contain, in order; the numbers are columns of the keys, values or own rows.
    """

    path: str
    layers: tuple[int | None, ...]
    pieces: tuple[Piece, ...]


class Places(NamedTuple):
    """Where a backbone's attention takes keys and values.

    Attributes:
        layers: How many layers have keys and values.
        width: How many columns the keys of a layer have, all heads together.
        projections: The modules that project them.
        body: The path of the module that embeds the text, where rows are put in front.
        inner: The path of a module inside it that contains all projections, or None; the rows are cut off after it,
            before a pooler reads the first one.
    """

    layers: int
    width: int
    projections: tuple[Projection, ...]
    body: str
    inner: str | None
