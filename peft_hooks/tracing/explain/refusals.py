"""Explain an operation that has a rule of its own about shapes or dtypes, by asking PyTorch what it takes instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ..._format import dtype_of
from .failure import Finding
from .fixes import of_other_rank
from .ghosts import Ghost, Operand, is_tensor, many, shape_of
from .meta import fails_alone, fails_on_numbers, runs_on_numbers, worked_out
from .scene import Scene
from .sites import expressions

_DTYPES = {torch.float32: ".float()", torch.int64: ".long()", torch.bool: ".bool()"}
_MOVES = ("cuda", "cpu", "to", "xpu", "pin_memory")
_FURTHEST = 64  # how far from the given size others are tried


class _Operation(NamedTuple):
    """The operation that an expression runs, with its arguments."""

    work: Any
    args: list[Any]
    kwargs: dict[str, Any]

    def with_other(self, operand: Operand, other: Ghost) -> _Operation:
        """Return the operation with another tensor in place of an operand."""
        args = [_put(one, operand.value, other) for one in self.args]
        return _Operation(self.work, args, {name: _put(one, operand.value, other) for name, one in self.kwargs.items()})

    def takes(self, operand: Operand, other: Ghost) -> bool:
        """Tell whether the operation takes another tensor in place of an operand."""
        return worked_out(*self.with_other(operand, other)) is not None


def refused_dtype(scene: Scene) -> Finding | None:
    """Find an operation that refuses a dtype only when it computes, and that takes another dtype there."""
    for expression in expressions(scene):
        operation = expression.step.values.operation(expression.node)
        tensors = expression.tensors()
        if operation is None or not tensors or not fails_on_numbers(*operation, scene.error):
            continue
        for one in tensors:
            dtype = _other_dtype(_Operation(*operation), one, tensors)
            if dtype is not None:
                what = "arithmetic" if expression.name == "add" else f"{expression.name}()"
                cause = f"{one} is {one.short}, which {what} does not take there; it takes {dtype_of(dtype)}"
                call = _DTYPES.get(dtype, f".to({dtype})")
                return Finding("dtype", cause, f"use {one.name}{call}", scene.bounds(one))
    return None


def _other_dtype(known: _Operation, one: Operand, tensors: list[Operand]) -> torch.dtype | None:
    """Return a dtype that the operation takes for an operand: that of another operand, or a common one."""
    others = [other.dtype for other in tensors if other.dtype is not None and other.is_float]
    for dtype in dict.fromkeys([*others, *_DTYPES]):
        other = known.with_other(one, Ghost(one.shape, dtype, one.value.device))
        if dtype != one.dtype and runs_on_numbers(*other):
            return dtype
    return None


def refused(scene: Scene) -> Finding | None:
    """Find an operation that refuses these shapes or dtypes by a rule of its own, whatever the values."""
    for expression in expressions(scene):
        operation = expression.step.values.operation(expression.node)
        tensors = expression.tensors()
        moves = expression.name in _MOVES  # a missing device has nothing to do with shapes
        if operation is not None and tensors and not moves and fails_alone(*operation, scene.error):
            given = " and ".join(f"{one}, {one.short}" for one in tensors)
            cause = f"{expression.name}() fails on {given}, whatever their values"
            known = _Operation(*operation)
            words, fix = next(_what_would_do(known, tensors), (None, None))
            bounds = tuple(scene.bound(one, 0) for one in tensors if one.shape)
            return Finding("operation", f"{cause}; {words}" if words else cause, fix, bounds)
    return None


def _what_would_do(known: _Operation, tensors: list[Operand]) -> Iterator[tuple[str, str]]:
    """Yield what one operand, or a number, would have to be, in words for the cause and for the fix."""
    if worked_out(known.work, known.args, known.kwargs) is not None:
        return  # it fails on real devices only, where trying many shapes would take too long
    for one in tensors:
        yield from _dtypes(known, one)
    other = _numbers(known)
    for one in tensors:
        more = (f", or {other}", f", or use {other}") if other else ("", "")
        yield from ((words + more[0], fix + more[1]) for words, fix in _sizes(known, one))
    if other:
        yield f"it takes {other}", f"use {other}"
    for one in tensors:
        yield from _ranks(known, one)


def _dtypes(known: _Operation, one: Operand) -> Iterator[tuple[str, str]]:
    for dtype, call in _DTYPES.items():
        if dtype != one.dtype and known.takes(one, Ghost(one.shape, dtype, one.value.device)):
            yield f"it takes {dtype_of(dtype)} there", f"use {one.name}{call}"


def _ranks(known: _Operation, one: Operand) -> Iterator[tuple[str, str]]:
    """Yield the first shape with one dimension less or more that would do."""
    for call, other in of_other_rank(one):
        if known.takes(one, other):
            yield f"it takes {many(len(other.shape))} there", f"use {call}"
            return


def _sizes(known: _Operation, one: Operand) -> Iterator[tuple[str, str]]:
    """Yield the nearest sizes of a dimension that would do."""
    for place, size in enumerate(one.shape):
        steps = range(1, _FURTHEST)
        tried = ([size - step for step in steps if step < size], [size + step for step in steps])
        near = [next((other for other in side if known.takes(one, _sized(one, place, other))), None) for side in tried]
        fitting = " or ".join(str(other) for other in near if other is not None)
        if fitting:
            yield (
                f"it takes {fitting} in dimension {place}, not {size}",
                f"give {one.name} a size of {fitting} in dimension {place}",
            )


def _numbers(known: _Operation) -> str:
    """Say which smaller number would do instead of one that is given."""
    for at, given in enumerate(known.args):
        for other in (given - step for step in range(1, _FURTHEST)) if type(given) is int and given > 0 else ():
            args = [*known.args[:at], other, *known.args[at + 1 :]]
            if other > 0 and worked_out(known.work, args, known.kwargs) is not None:
                return f"{other} instead of {given} for this shape"
    return ""


def _sized(one: Operand, place: int, size: int) -> Ghost:
    return Ghost((*one.shape[:place], size, *one.shape[place + 1 :]), one.value.dtype, one.value.device)


def _put(given: Any, old: Any, new: Ghost) -> Any:
    """Return an argument with one tensor replaced by another."""
    if type(given) in (list, tuple):
        return type(given)(_put(one, old, new) for one in given)
    same = given is old or (isinstance(old, Ghost) and given == old)
    return new if is_tensor(given) and same and shape_of(given) is not None else given
