"""What PyTorch's operations take: sizes that must agree between the operands of an expression."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .expressions import BROADCAST, Expression
from .ghosts import Ghost, broadcast, shape_of, sliced
from .operands import Operand


@dataclass(frozen=True)
class Clash:
    """Two sizes of an operation's operands that do not go together.

    Attributes:
        kind: ``"broadcast"``, ``"join"``, ``"product"``, ``"view"``, ``"expand"``, ``"select"`` or ``"rank"``.
        left: An operand.
        place: Which of its dimensions.
        right: The other operand, if there is one.
        other: Which of its dimensions.
        rule: What must be so.
    """

    kind: str
    left: Operand
    place: int
    right: Operand | None = None
    other: int = 0
    rule: str = ""


def clash_of(expression: Expression) -> Clash | None:
    """Return the sizes that do not go together in an expression, or None if all do."""
    work = _WORK.get(expression.name)
    if work is None and expression.name in BROADCAST:
        work = _broadcast
    return None if work is None else work(expression)


_RULE = "must be of one size there, or one of them 1"


def broadcast_clash(operands: Sequence[Operand], rule: str = _RULE) -> Clash | None:
    """Return the first two operands that cannot be broadcast against each other."""
    for number, one in enumerate(operands):
        for other in operands[:number]:
            clash = _unlike(other, one, rule)
            if clash is not None:
                return clash
    return None


def _unlike(one: Operand, other: Operand, rule: str = _RULE) -> Clash | None:
    if broadcast(one.shape, other.shape) is not None:
        return None
    for place in range(1, min(len(one.shape), len(other.shape)) + 1):
        if one.shape[-place] != other.shape[-place] and 1 not in (one.shape[-place], other.shape[-place]):
            places = len(one.shape) - place, len(other.shape) - place
            return Clash("broadcast", one, places[0], other, places[1], rule)
    return None


def _broadcast(expression: Expression) -> Clash | None:
    names = BROADCAST.get(expression.name, ())
    known = [expression.operands[name] for name in names if name in expression.operands]
    return broadcast_clash([one for one in known if one.is_tensor])


def parts(expression: Expression) -> list[Operand]:
    """Return the tensors that ``cat`` or ``stack`` is given, by name where they are listed."""
    given = expression.operands.get("tensors")
    if given is None or expression.name not in ("cat", "concat", "stack"):
        return []
    if isinstance(given.node, (ast.List, ast.Tuple)):
        return [expression.operand(one) for one in given.node.elts]
    values = given.value if isinstance(given.value, (list, tuple)) else []
    return [Operand(f"{given.text}[{number}]", value) for number, value in enumerate(values)]


def _join(expression: Expression) -> Clash | None:
    given = [one for one in parts(expression) if one.is_tensor]
    dim = expression.value("dim")
    along = dim if isinstance(dim, int) else 0
    for one in given[1:]:
        first = given[0]
        if len(one.shape) != len(first.shape):
            if (0,) in (one.shape, first.shape) and expression.name != "stack":
                continue
            return Clash("rank", one, len(one.shape), first, len(first.shape), "must have as many dimensions")
        for place, (a, b) in enumerate(zip(first.shape, one.shape)):
            if a != b and (expression.name == "stack" or place != along % len(one.shape)):
                except_one = "" if expression.name == "stack" else f" but for dimension {along % len(one.shape)}"
                return Clash("join", first, place, one, place, f"must be of one shape{except_one}")
    return None


def _matmul(expression: Expression) -> Clash | None:
    left, right = expression.operands.get("input"), expression.operands.get("other")
    if left is None or right is None or not left.shape or not right.shape:
        return None
    inner = len(right.shape) - 2 if len(right.shape) > 1 else 0
    if left.shape[-1] != right.shape[inner]:
        return Clash("product", left, len(left.shape) - 1, right, inner, "must be of one size there to be multiplied")
    one = Operand(left.text, Ghost(left.shape[:-2], left.value.dtype, left.value.device), left)
    other = Operand(right.text, Ghost(right.shape[:-2], right.value.dtype, right.value.device), right)
    clash = _unlike(one, other)
    return clash and Clash("broadcast", left, clash.place, right, clash.other, clash.rule)


def _view(expression: Expression) -> Clash | None:
    one = next(iter(expression.operands.values()), None)
    if one is None or not one.is_tensor:
        return None
    values = [other.value for other in list(expression.operands.values())[1:]]
    sizes = list(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else values
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    total = 1
    for size in one.shape:
        total *= size
    if (known and total % known == 0 and -1 in sizes) or (known == total and -1 not in sizes):
        return None
    asked = "[" + ", ".join(map(str, sizes)) + "]"
    if -1 in sizes:
        rule = f"has {total} numbers, which {asked} cannot hold: {total} is no multiple of {known}"
    else:
        rule = f"has {total} numbers, {asked} holds {known}"
    return Clash("view", one, 0, None, 0, rule)


def _expand(expression: Expression) -> Clash | None:
    operands = list(expression.operands.values())
    if not operands or not operands[0].is_tensor:
        return None
    one, values = operands[0], [other.value for other in operands[1:]]
    sizes: Any = values[0] if len(values) == 1 and isinstance(values[0], (tuple, list)) else values
    if expression.name == "expand_as" and shape_of(values[0]) is not None:
        sizes = shape_of(values[0])
    offset = len(sizes) - len(one.shape)
    for place, size in enumerate(one.shape):
        wanted = sizes[place + offset] if place + offset >= 0 else size
        if isinstance(wanted, int) and wanted != -1 and size not in (1, wanted):
            return Clash("expand", one, place, None, wanted, f"is to be expanded to {wanted} there")
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
            return Clash("rank", one, len(one.shape), None, len(letters), f"{letters!r} in {equation!r} needs as many")
        for place, letter in enumerate(letters):
            first, before = seen.setdefault(letter, (one, place))
            if 1 not in (first.shape[before], one.shape[place]) and first.shape[before] != one.shape[place]:
                return Clash("product", first, before, one, place, f"are both {letter!r} in {equation!r}")
    return None


def _index(expression: Expression) -> Clash | None:
    """A mask that does not fit what it selects from, or values that do not fit the places."""
    one, index = expression.operands["input"], expression.value("index")
    if not one.is_tensor:
        return None
    masks = list(index) if isinstance(index, tuple) else [index]
    shape, place = shape_of(masks[0]), 0
    if len(masks) == 1 and shape is not None and str(masks[0].dtype) == "torch.bool":
        mask = expression.operands["index"]
        for place, (a, b) in enumerate(zip(one.shape, shape)):
            if a != b:
                return Clash("broadcast", one, place, mask, place, "must be of one size there, as a mask selects")
    if expression.name != "setitem":
        return None
    values, target = expression.operands["value"], sliced(one.value, index)
    if target is not None and values.is_tensor:
        places = Operand(ast.unparse(expression.node) if expression.node else "", target, one)
        return _unlike(
            places, values, "are what is set and its values, which must be of one size there, or the values 1"
        )
    return places_clash(expression, masks[0], values)


def places_clash(expression: Expression, mask: Any, values: Operand) -> Clash | None:
    """Return that a mask selects another number of places than there are rows of values."""
    one = expression.operands["input"]
    if not isinstance(mask, Tensor) or str(mask.dtype) != "torch.bool" or not values.shape:
        return None
    count, rest = int(mask.sum()), one.shape[mask.dim() :]
    selected = Operand(expression.operands["index" if "index" in expression.operands else "mask"].text, mask)
    if len(values.shape) == len(rest) + 1 and values.shape[0] not in (1, count):
        return Clash("select", values, 0, selected, count, f"{values.shape[0]} rows for {count} places")
    return None


def _scattered(expression: Expression) -> Clash | None:
    """A mask that selects more places than there are numbers."""
    one, mask, source = (expression.operands.get(name) for name in ("input", "mask", "source"))
    if one is None or mask is None or source is None or not isinstance(mask.value, Tensor) or not source.is_tensor:
        return None
    clash = _unlike(one, mask)
    if clash is not None:
        return clash
    count, numbers = int(mask.value.expand(one.shape).sum()), math.prod(source.shape)
    return Clash("few", source, numbers, mask, count) if numbers < count else None


_WORK: dict[str, Callable[[Expression], Clash | None]] = {
    "cat": _join,
    "concat": _join,
    "stack": _join,
    "hstack": _join,
    "vstack": _join,
    "matmul": _matmul,
    "view": _view,
    "reshape": _view,
    "expand": _expand,
    "expand_as": _expand,
    "einsum": _einsum,
    "masked_scatter": _scattered,
    "masked_scatter_": _scattered,
    "getitem": _index,
    "setitem": _index,
}
