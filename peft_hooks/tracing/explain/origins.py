"""Where a tensor in a failed forward comes from: whose parameter it is, or where its size was seen first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ..leaves import Leaf, identity_of, tensors_of
from ..records import Row
from .ghosts import Shape


class Event(NamedTuple):
    """A call of ``row`` began (``side == "in"``) or ended (``"out"``)."""

    side: str
    row: Row

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tensors that went in, or came out."""
        return self.row.came if self.side == "in" else tensors_of(self.row.outputs)


class Origin(NamedTuple):
    """The call that a tensor was first seen at, and when.

    Attributes:
        when: The number of the event.
        row: The call.
        made: Whether the call made it: whether it came out of a call that it had not gone into.
        leaf: The tensor.
        around: The call around that one, or None.
    """

    when: int
    row: Row
    made: bool
    leaf: Leaf
    around: Row | None

    @property
    def maker(self) -> str | None:
        """The path of the module that made the tensor, or None."""
        return self.row.path if self.made else None

    @property
    def source(self) -> str:
        """Where that was, as text."""
        if self.made:
            return f"which came out of {self.row.where}"
        if self.around is None:
            return f"which came in with the call of {self.row.where}"
        return f"which was made in {self.around.where} before it called {self.row.where}"


class History:
    """What happened in one forward, in order.

    Args:
        rows: The rows of the trace.
        forward: The number of the forward.
    """

    def __init__(self, rows: Sequence[Row], forward: int) -> None:
        self.rows = rows
        self.forward = forward
        self._by_index = {row.index: row for row in rows}
        self.own = [row for row in rows if row.forward == forward]
        self.events = list(_events(self.own))
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
        """Return where a recorded tensor was seen first: what made it last, or the first call that it went into.

        A tensor that was changed in place has another shape or dtype, and counts as another.
        """
        seen = self._seen.get((leaf.identity, *_looks(leaf)))
        if not seen:
            return None
        return self.at(*next((one for one in reversed(seen) if one[1]), seen[0]), leaf)

    def at(self, when: int, made: bool, leaf: Leaf) -> Origin:
        """Return an event as the origin of a tensor."""
        row = self.events[when].row
        return Origin(when, row, made, leaf, self.around(row))

    def around(self, row: Row) -> Row | None:
        """Return the recorded call around another."""
        return None if row.parent is None else self._by_index.get(row.parent)

    def origin_of(self, tensor: Tensor) -> Origin | None:
        """Return where a tensor that is at hand was seen first, or the tensor that it is a view of."""
        base = tensor._base
        for one in (tensor,) if base is None else (tensor, base):
            shape = tuple(int(size) for size in one.shape)
            found = self.origin(Leaf("", shape, one.dtype, one.device, identity=identity_of(one)))
            if found is not None:
                return found
        return None

    def birth(self, shape: Shape, place: int, is_float: bool, is_wide: bool) -> Origin | None:
        """Return where a tensor first had this size in this dimension, whichever tensor of this rank it was.

        A wrong size goes on from tensor to tensor: the first that has it tells more than the last. In tensors of every
        rank the batch comes first, and the width last.
        """
        rank, size = len(shape), shape[place]
        width = is_wide and place == rank - 1

        def alike(leaf: Leaf) -> bool:
            other, dtype = leaf.shape or (), leaf.dtype
            if len(other) > 1 and (place == 0 or width):
                return other[-1 if width else 0] == size
            same = dtype is not None and dtype.is_floating_point == is_float and len(other) == rank
            return same and other[place] == size

        return self.first(alike)

    def first(self, wanted: Callable[[Leaf], bool]) -> Origin | None:
        """Return where a tensor of some kind was seen first."""
        for when, event in enumerate(self.events):
            for leaf in event.leaves:
                if wanted(leaf):
                    return self.at(when, event.side == "out", leaf)
        return None

    def turned(self) -> Origin | None:
        """Return the first call that gave ``[length, batch, ...]`` for ``[batch, length, ...]``."""
        if len(set(self.batch_and_length)) < 2:
            return None
        for when, event in enumerate(self.events):
            given = [(other.shape or ())[:2] for other in event.row.came]
            for leaf in event.leaves if event.side == "out" else ():
                if (leaf.shape or ())[1::-1] == self.batch_and_length in given:
                    return self.at(when, True, leaf)
        return None

    @property
    def batch_and_length(self) -> tuple[int, ...]:
        """The first two sizes of what the forward was called with; empty if that is no batch of texts."""
        return next((leaf.shape[:2] for leaf in self.given if leaf.shape is not None and len(leaf.shape) > 1), ())

    @property
    def given(self) -> tuple[Leaf, ...]:
        """What the forward was called with."""
        return self.events[0].row.inputs if self.events else ()

    def ended(self) -> Iterator[Row]:
        """Yield the calls that returned, the last first."""
        for event in reversed(self.events):
            if event.side == "out" and event.row.state == "done":
                yield event.row


def returned_none(row: Row) -> bool:
    """Tell whether a call returned None."""
    return [leaf.text for leaf in row.outputs] == ["None"]


def is_float(leaf: Leaf) -> bool:
    """Tell whether a tensor is of floating-point numbers."""
    return leaf.dtype is not None and leaf.dtype.is_floating_point


def is_wide(leaf: Leaf) -> bool:
    """Tell whether the last of two dimensions is a width: of floating-point tensors that are no masks."""
    return is_float(leaf) and not leaf.key.endswith("mask")


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
