"""Where a shape in a failed forward comes from: the first call that it went into or came out of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..leaves import Leaf
from ..trace import Row
from .failure import Bound


class Event(NamedTuple):
    """A call of ``row`` began (``side == "in"``) or ended (``"out"``)."""

    side: str
    row: Row

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return (
            self.row.came if self.side == "in" else tuple(leaf for leaf in self.row.outputs if leaf.shape is not None)
        )


class Origin(NamedTuple):
    """The event that a tensor was first seen in, and when.

    ``made`` tells whether the call made it: whether it came out of a call that it, and its like, had not gone into.
    """

    when: int
    event: Event
    made: bool
    leaf: Leaf

    def culprit(self, rows: Sequence[Row], hooked: bool) -> str | None:
        """Return the path of the module that made the tensor, or changed it on its way in; None if it was given so.

        Args:
            rows: The rows of the trace.
            hooked: Whether someone has a hook on the module that it was first seen at.
        """
        row = self.event.row
        if self.made or hooked:
            return row.path
        return None if row.parent is None else rows[row.parent].path

    def source(self, rows: Sequence[Row]) -> str:
        """Say where that was, for a reader."""
        row = self.event.row
        if self.made:
            return f"which came out of {row.where}"
        if row.parent is None:
            return f"which came in with the call of {row.where}"
        return f"which was made in {rows[row.parent].where} before it called {row.where}"


class Operand(NamedTuple):
    """A tensor that a failing call could work on, its name, and the call inside that it came out of, if any."""

    leaf: Leaf
    label: str
    row: Row | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.leaf.shape or ()

    @property
    def is_float(self) -> bool:
        """Whether it is of floating-point numbers."""
        return self.leaf.dtype is not None and self.leaf.dtype.is_floating_point

    @property
    def is_wide(self) -> bool:
        """Whether the last of two dimensions is a width: of floating-point tensors that are no masks."""
        return self.is_float and not self.leaf.key.endswith("mask")

    def __str__(self) -> str:
        return f"{self.label} {list(self.shape)}"


class History:
    """What happened in one forward, in order.

    Args:
        rows: The rows of the trace.
        forward: The number of the forward.
        end: The call that failed.
    """

    def __init__(self, rows: Sequence[Row], forward: int, end: Row) -> None:
        self.rows = rows
        self.end = end
        self.events = list(_events([row for row in rows if row.forward == forward]))
        self._seen: dict[tuple[object, ...], list[tuple[int, bool]]] = {}
        began: dict[int, int] = {}
        for when, event in enumerate(self.events):
            began.setdefault(event.row.index, when)
            for leaf in event.leaves:
                seen = self._seen.setdefault((leaf.identity, *_looks(leaf)), [])
                # What a call gives that was seen neither going into it nor inside it, it has made.
                made = event.side == "out" and not (seen and seen[-1][0] >= began[event.row.index])
                seen.append((when, made))

    def origin(self, leaf: Leaf) -> Origin | None:
        """Return where this tensor was seen first: what made it last, or the first call that it went into.

        Tensors are told apart by ``id``, dtype and shape. One that was made where another of the kind had just been
        freed is taken for it; it was mostly made of it.
        """
        seen = self._seen.get((leaf.identity, *_looks(leaf)))
        if not seen:
            return None
        when, made = next((one for one in reversed(seen) if one[1]), seen[0])
        return Origin(when, self.events[when], made, leaf)

    def birth(self, operand: Operand, place: int) -> Origin | None:
        """Return where a tensor first had this size in this dimension, whichever tensor of this rank it was.

        A wrong size goes on from tensor to tensor: the first that has it tells more than the last. In tensors of every
        rank the batch comes first, and the width last.
        """
        rank, size = len(operand.shape), operand.shape[place]
        width = operand.is_wide and place == rank - 1

        def alike(leaf: Leaf) -> bool:
            shape, dtype = leaf.shape or (), leaf.dtype
            if len(shape) > 1 and (place == 0 or width):
                return shape[-1 if width else 0] == size
            same = dtype is not None and dtype.is_floating_point == operand.is_float and len(shape) == rank
            return same and shape[place] == size

        origin = self.first(alike)
        return None if origin is None else self._before_it_was_split(origin, size)

    def _before_it_was_split(self, origin: Origin, size: int) -> Origin:
        """Go on from a tensor that was made between two calls to the one that the call around was given.

        Attention splits ``[batch, length, width]`` into heads, which have another rank.
        """
        parent = origin.event.row.parent
        if origin.made or parent is None or not Operand(origin.leaf, "", None).is_wide:
            return origin
        for leaf in self.rows[parent].came:
            if len(leaf.shape or ()) == 3 and (leaf.shape or ())[1] == size:
                earlier = self.birth(Operand(leaf, leaf.name, None), 1)
                return earlier if earlier is not None and earlier.when < origin.when else origin
        return origin

    def first(self, wanted: Callable[[Leaf], bool]) -> Origin | None:
        """Return where a tensor of some kind was seen first."""
        for when, event in enumerate(self.events):
            for leaf in event.leaves:
                if wanted(leaf):
                    return Origin(when, event, event.side == "out", leaf)
        return None

    def turned(self) -> Origin | None:
        """Return the first call that gave ``[length, batch, ...]`` for ``[batch, length, ...]``."""
        for when, event in enumerate(self.events):
            if event.side == "out":
                for leaf in event.leaves:
                    shape = leaf.shape or ()
                    given = [(other.shape or ())[:2] for other in event.row.came]
                    if shape[1::-1] == self.batch_and_length in given:
                        return Origin(when, event, True, leaf)
        return None

    @property
    def batch_and_length(self) -> tuple[int, ...]:
        """The first two sizes of what the forward was called with; empty if that is no batch of texts."""
        given = (leaf.shape or () for event in self.events[:1] for leaf in event.leaves)
        return next((shape[:2] for shape in given if len(shape) > 1), ())

    def operands(self) -> list[Operand]:
        """Return what the failing call could work on: its inputs, and what came out of the calls inside, last first."""
        found = [Operand(leaf, leaf.name, None) for leaf in self.end.came]
        for row in reversed([row for row in self.rows if row.parent == self.end.index]):
            # A tuple of one tensor, or features that hold many: the name says which.
            alone = sum(leaf.shape is not None for leaf in row.outputs) == 1
            for leaf in row.outputs:
                if leaf.shape is not None:
                    name = "the output" if alone else leaf.name
                    found.append(Operand(leaf, f"{name} of {row.where}", row))
        return found

    def clash(
        self, sizes: tuple[int, int], dimension: int | None, shapes: Sequence[object]
    ) -> list[tuple[Operand, int]]:
        """Return the two operands that most likely have the two sizes, and in which dimension; or one, or none.

        Two that have the sizes where the message says, and agree in the other dimensions, come first; then inputs.
        """
        operands = self.operands()
        sides = [
            [(one, place) for one in operands for place, other in enumerate(one.shape) if other == size]
            for size in sizes
        ]
        if not all(sides):
            return [side[0] for side in sides if side]

        def unlike(pair: tuple[tuple[Operand, int], tuple[Operand, int]]) -> tuple[int, ...]:
            (a, at), (b, place) = pair
            exact = (a.shape != shapes[0]) + (b.shape != shapes[1])
            elsewhere = (at != dimension) + (place != dimension) if dimension is not None else int(at != place)
            masks = int("mask" in a.label) + int("mask" in b.label)
            same = sum(x == y for x, y in zip(a.shape[::-1], b.shape[::-1]))
            # A mask and what it masks belong together, whatever their dtypes.
            other = int(a.leaf.dtype != b.leaf.dtype and len(a.shape) == len(b.shape) and not masks)
            return exact, int(a is b), elsewhere, other, -same, -masks

        pairs = [(one, other) for one in sides[0] for other in sides[1]]
        best = min(pairs, key=unlike)
        return [*best]

    def bound(self, operand: Operand, dimension: int) -> Bound:
        """Return the size of one dimension of a tensor, with where it was seen first."""
        shape = operand.shape
        dimension %= len(shape)
        origin = self.origin(operand.leaf)
        known = origin is None or origin.event.row is operand.row
        source = "" if known or origin is None else origin.source(self.rows)
        path = origin.event.row.path if origin is not None and origin.made else None
        return Bound(shape[dimension], operand.label, shape, dimension, source, path)


def _looks(leaf: Leaf) -> tuple[object, ...]:
    return leaf.shape, leaf.dtype, None if leaf.device is None else leaf.device.type


def _events(rows: Sequence[Row]) -> Iterator[Event]:
    """Yield the beginning of every call, and its end after the ends of the calls inside it."""
    inside: dict[int | None, list[Row]] = {}
    known = {row.index for row in rows}
    for row in rows:
        inside.setdefault(row.parent if row.parent in known else None, []).append(row)

    def walk(parent: int | None) -> Iterator[Event]:
        for row in inside.get(parent, ()):
            yield Event("in", row)
            yield from walk(row.index)
            yield Event("out", row)

    return walk(None)
