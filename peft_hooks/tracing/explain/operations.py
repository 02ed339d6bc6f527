"""Find sizes that must agree between the operands of a PyTorch operation, and do not."""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .ghosts import Operand, first, flat_of, shape_of
from .meta import worked_out
from .sites import Expression
from .table import BROADCAST, EQUAL


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


def clash_of(expression: Expression) -> Clash | None:
    """Return the sizes that do not match in an expression, or None if they all do."""
    work = _WORK.get(expression.name, _broadcast if expression.name in BROADCAST else None)
    return None if work is None else work(expression)


_RULE = "must have the same size there, or one of them 1"


def clash_of_loss(name: str, given: Sequence[Operand]) -> Clash | None:
    """Return the sizes that do not match in a loss or function that is written in Python."""
    words = f"are {' and '.join(BROADCAST.get(name) or EQUAL[name])} of {name}(), which must have the same size there"
    clash = _first_unlike(given, words)
    if clash is None and name in EQUAL and len(given) == 2 and given[0].shape != given[1].shape:
        return Clash("equal", given[0], 0, given[1], 0, f"{name}() takes two tensors of the same shape")
    return clash


def _first_unlike(operands: Sequence[Operand], rule: str = _RULE) -> Clash | None:
    """Return the first two operands that cannot be broadcast together."""
    return first(_unlike(*pair, rule) for pair in itertools.combinations(operands, 2))


def _unlike(one: Operand, other: Operand, rule: str = _RULE, last: int = 0) -> Clash | None:
    """Return the first sizes, from the end but without the ``last`` ones, that cannot be broadcast together."""
    for place in range(1 + last, min(len(one.shape), len(other.shape)) + 1):
        if one.shape[-place] != other.shape[-place] and 1 not in (one.shape[-place], other.shape[-place]):
            return Clash("sizes", one, len(one.shape) - place, other, len(other.shape) - place, rule)
    return None


def _broadcast(expression: Expression) -> Clash | None:
    names = BROADCAST.get(expression.name, ())
    known = [expression.operands[name] for name in names if name in expression.operands]
    return _first_unlike([one for one in known if one.is_tensor])


def parts(expression: Expression) -> list[Operand]:
    """Return the tensors given to ``cat`` or ``stack``, by name if the source lists them."""
    given = expression.operands.get("tensors")
    if given is None or expression.name not in ("cat", "concat", "stack"):
        return []
    if isinstance(given.node, (ast.List, ast.Tuple)):
        return [expression.operand(one) for one in given.node.elts]
    values = given.value if isinstance(given.value, (list, tuple)) else []
    return [Operand(f"{given.text}[{number}]", value) for number, value in enumerate(values)]


def _join(expression: Expression) -> Clash | None:
    given = [one for one in parts(expression) if one.is_tensor]
    dim, stacks = expression.value("dim"), expression.name == "stack"
    for one in given[1:]:
        rank, other = len(one.shape), given[0]
        if rank != len(other.shape):
            if (0,) in (one.shape, other.shape) and not stacks:
                continue
            return Clash("rank", one, rank, other, len(other.shape), "must have the same number of dimensions")
        along = None if stacks else (dim if isinstance(dim, int) else 0) % rank
        for place, (a, b) in enumerate(zip(other.shape, one.shape)):
            if a != b and place != along:
                but = "" if stacks else f" except in dimension {along}"
                return Clash("sizes", other, place, one, place, f"must have the same shape{but}")
    return None


def _matmul(expression: Expression) -> Clash | None:
    left, right = expression.operands.get("input"), expression.operands.get("other")
    if left is None or right is None or not left.shape or not right.shape:
        return None
    inner = len(right.shape) - 2 if len(right.shape) > 1 else 0
    if left.shape[-1] != right.shape[inner]:
        return Clash("sizes", left, len(left.shape) - 1, right, inner, "must have the same size there to be multiplied")
    return _unlike(left, right, last=2)


def _view(expression: Expression) -> Clash | None:
    one = next(iter(expression.operands.values()), None)
    if one is None or not one.is_tensor:
        return None
    sizes = flat_of([other.value for other in list(expression.operands.values())[1:]])
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    known, total = math.prod(size for size in sizes if size != -1), math.prod(one.shape)
    rule = f"has {total} elements, but {sizes} holds {known}"
    if -1 in sizes:
        rule = f"has {total} elements, which {sizes} cannot hold: {total} is not a multiple of {known}"
    fits = known != 0 and total % known == 0 if -1 in sizes else known == total
    return None if fits else Clash("view", one, 0, None, 0, rule)


def _expand(expression: Expression) -> Clash | None:
    operands = list(expression.operands.values())
    if not operands or not operands[0].is_tensor:
        return None
    one, values = operands[0], [other.value for other in operands[1:]]
    sizes = shape_of(values[0]) if expression.name == "expand_as" else flat_of(values)
    if sizes is None:
        return None
    offset = len(sizes) - len(one.shape)
    for place, size in enumerate(one.shape):
        wanted = sizes[place + offset] if place + offset >= 0 else size
        if isinstance(wanted, int) and wanted != -1 and size not in (1, wanted):
            return Clash("sizes", one, place, None, wanted, f"is to be expanded to {wanted} there")
    return None


def _einsum(expression: Expression) -> Clash | None:
    operands = list(expression.operands.values())
    equation = operands[0].value if operands else None
    if not isinstance(equation, str) or "..." in equation:
        return None
    seen: dict[str, tuple[Operand, int]] = {}
    for letters, one in zip(equation.replace(" ", "").partition("->")[0].split(","), operands[1:]):
        if not one.is_tensor:
            continue
        if len(letters) != len(one.shape):
            return Clash("rank", one, len(one.shape), None, len(letters), f"{letters!r} in {equation!r} needs")
        for place, letter in enumerate(letters):
            other, before = seen.setdefault(letter, (one, place))
            if 1 not in (other.shape[before], one.shape[place]) and other.shape[before] != one.shape[place]:
                return Clash("sizes", other, before, one, place, f"are both {letter!r} in {equation!r}")
    return None


def _index(expression: Expression) -> Clash | None:
    """Find a mask that does not fit its tensor, or values that do not fit the places they are assigned to."""
    one, index = expression.operands["input"], expression.value("index")
    if not one.is_tensor:
        return None
    masks = list(index) if isinstance(index, tuple) else [index]
    shape = shape_of(masks[0])
    if len(masks) == 1 and shape is not None and masks[0].dtype == torch.bool:
        for place, (a, b) in enumerate(zip(one.shape, shape)):
            if a != b:
                selects = expression.operands["index"]
                return Clash("sizes", one, place, selects, place, "must have the same size there for a mask")
    if expression.name != "setitem":
        return None
    values, target = expression.operands["value"], worked_out(operator.getitem, [one.value, index])
    if target is not None and values.is_tensor:
        places = Operand(ast.unparse(expression.node) if expression.node else "", target, one)
        rule = "are the target and the values of the assignment, which must have the same size there, or the values 1"
        return _unlike(places, values, rule)
    mask = masks[0]
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not values.shape:
        return None
    count = int(mask.sum())  # the mask selects places, each of which takes a row of values
    if len(values.shape) == len(one.shape) - mask.dim() + 1 and values.shape[0] not in (1, count):
        return Clash("select", values, values.shape[0], Operand(expression.operands["index"].text, mask), count, "rows")
    return None


def _scattered(expression: Expression) -> Clash | None:
    """Find a mask that selects more places than the source has elements."""
    one, mask, source = (expression.operands.get(name) for name in ("input", "mask", "source"))
    if one is None or mask is None or source is None or not isinstance(mask.value, Tensor) or not source.is_tensor:
        return None
    clash = _unlike(one, mask)
    if clash is not None:
        return clash
    count, numbers = int(mask.value.expand(one.shape).sum()), math.prod(source.shape)
    return Clash("select", source, numbers, mask, count, "elements") if numbers < count else None


_WORK: dict[str, Callable[[Expression], Clash | None]] = {
    **dict.fromkeys(("cat", "concat", "stack"), _join),
    "matmul": _matmul,
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "einsum": _einsum,
    **dict.fromkeys(("masked_scatter", "masked_scatter_"), _scattered),
    **dict.fromkeys(("getitem", "setitem"), _index),
}
