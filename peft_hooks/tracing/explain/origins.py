"""Find out where a tensor in a failed forward comes from, or where its size was first seen."""

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
        """The tensors that went in or came out."""
        return self.row.came if self.side == "in" else tensors_of(self.row.outputs)


class Origin(NamedTuple):
    """The call at which a tensor was first seen.

    Attributes:
        when: The index of the event.
        row: The call.
        made: Whether the call made it: the tensor came out of it and had not gone in.
        leaf: The tensor.
        around: The recorded call around it, or None.
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
        """The origin, as text."""
        if self.made:
            return f"{'the' if len(self.row.outputs) == 1 else 'an'} output of {self.row.where}"
        if self.around is None:
            return f"passed to {self.row.where}"
        return f"created in {self.around.where} before it called {self.row.where}"


class History:
    """The calls of one forward, in order.

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
                # A call made what comes out of it if that was seen neither going in nor inside.
                made = event.side == "out" and not (seen and seen[-1][0] >= began[event.row.index])
                seen.append((when, made))

    def origin(self, leaf: Leaf) -> Origin | None:
        """Return the call that last made a recorded tensor, or else the first that it was passed to, if any.

        A tensor whose shape or dtype was changed in place counts as another tensor.
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
        """Return the recorded call around another one."""
        return None if row.parent is None else self._by_index.get(row.parent)

    def origin_of(self, tensor: Tensor) -> Origin | None:
        """Return the origin of an existing tensor, or of the tensor that it is a view of."""
        base = tensor._base
        for one in (tensor,) if base is None else (tensor, base):
            shape = tuple(int(size) for size in one.shape)
            found = self.origin(Leaf("", shape, one.dtype, one.device, identity=identity_of(one)))
            if found is not None:
                return found
        return None

    def birth(self, shape: Shape, place: int, is_float: bool, is_wide: bool) -> Origin | None:
        """Return where any tensor of this rank first had this size in this dimension.

        A wrong size propagates from tensor to tensor, so the first tensor that has it tells more than the last. Batches
        and widths are compared across ranks: the batch always comes first, and the width last.
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
        """Return where a tensor that satisfies ``wanted`` was first seen."""
        for when, event in enumerate(self.events):
            for leaf in event.leaves:
                if wanted(leaf):
                    return self.at(when, event.side == "out", leaf)
        return None

    def turned(self) -> Origin | None:
        """Return the first call that returned ``[length, batch, ...]`` for ``[batch, length, ...]``."""
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
        """The first two sizes of the forward's first input that has two or more dimensions; empty if none has."""
        return next((leaf.shape[:2] for leaf in self.given if leaf.shape is not None and len(leaf.shape) > 1), ())

    @property
    def given(self) -> tuple[Leaf, ...]:
        """The inputs of the forward."""
        return self.events[0].row.inputs if self.events else ()

    def ended(self) -> Iterator[Row]:
        """Yield the calls that returned, last first."""
        for event in reversed(self.events):
            if event.side == "out" and event.row.state == "done":
                yield event.row


def returned_none(row: Row) -> bool:
    """Tell whether a call returned None."""
    return [leaf.text for leaf in row.outputs] == ["None"]


def is_float(leaf: Leaf) -> bool:
    """Tell whether a tensor has a floating-point dtype."""
    return leaf.dtype is not None and leaf.dtype.is_floating_point


def is_wide(leaf: Leaf) -> bool:
    """Tell whether a tensor ends in its width: floating-point tensors other than masks do."""
    return is_float(leaf) and not leaf.key.endswith("mask")


def _looks(leaf: Leaf) -> tuple[object, ...]:
    return leaf.shape, leaf.dtype, None if leaf.device is None else leaf.device.type


def _events(rows: Sequence[Row]) -> Iterator[Event]:
    """Yield the beginning and the end of every call, with the calls inside it in between."""
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
