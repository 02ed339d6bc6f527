"""Find sizes that must agree between the operands of a PyTorch operation, and do not."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Sequence

from .ghosts import Operand, first, flat_of, shape_of
from .selections import by_index, by_item, by_mask
from .sites import Expression
from .table import BROADCAST, BY_INDEX, EQUAL
from .unlike import RULE, Clash, unlike


def clash_of(expression: Expression) -> Clash | None:
    """Return the sizes that do not match in an expression, or None if they all do."""
    work = _WORK.get(expression.name, _broadcast if expression.name in BROADCAST else None)
    return None if work is None else work(expression)


def clash_of_loss(name: str, given: Sequence[Operand]) -> Clash | None:
    """Return the sizes that do not match in a loss or function that is written in Python."""
    words = f"are {' and '.join(BROADCAST.get(name) or EQUAL[name])} of {name}(), which must have the same size there"
    clash = _first_unlike(given, words)
    if clash is None and name in EQUAL and len(given) == 2 and given[0].shape != given[1].shape:
        return Clash("equal", given[0], 0, given[1], 0, f"{name}() takes two tensors of the same shape")
    return clash


def _first_unlike(operands: Sequence[Operand], rule: str = RULE) -> Clash | None:
    """Return the first two operands that cannot be broadcast together."""
    return first(unlike(*pair, rule) for pair in itertools.combinations(operands, 2))


def _broadcast(expression: Expression) -> Clash | None:
    names = BROADCAST.get(expression.name, ())
    known = [expression.operands[name] for name in names if name in expression.operands]
    return _first_unlike([one for one in known if one.is_tensor])


def parts(expression: Expression) -> list[Operand]:
    """Return the tensors given to ``cat``, ``stack`` or ``pad_sequence``, by name if the source lists them."""
    given = expression.operands.get("tensors") or expression.operands.get("sequences")
    if given is None or expression.name not in ("cat", "concat", "stack", "pad_sequence"):
        return []
    return _entries(expression, given)


def _entries(expression: Expression, given: Operand) -> list[Operand]:
    """Return the entries of a list, by name if the source lists them."""
    nodes = given.node.elts if isinstance(given.node, (ast.List, ast.Tuple)) else None
    nodes = nodes or expression.step.values.laid_out(given.node)
    if nodes is not None:
        return [expression.operand(one) for one in nodes]
    values = given.value if isinstance(given.value, (list, tuple)) else ()
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


def _sum(expression: Expression) -> Clash | None:
    """Find tensors that Python's own ``sum`` cannot add up."""
    given = next(iter(expression.operands.values()), None)
    if given is None or expression.target is not sum:
        return None
    return _first_unlike([one for one in _entries(expression, given) if one.is_tensor])


def _matmul(expression: Expression) -> Clash | None:
    left, right = expression.operands.get("input"), expression.operands.get("other")
    if left is None or right is None or not left.shape or not right.shape:
        return None
    inner = len(right.shape) - 2 if len(right.shape) > 1 else 0
    if left.shape[-1] != right.shape[inner]:
        return Clash("sizes", left, len(left.shape) - 1, right, inner, "must have the same size there to be multiplied")
    return unlike(left, right, last=2)


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


def _split(expression: Expression) -> Clash | None:
    """Find sizes that do not add up to the size of what is split."""
    one, sizes = expression.operands.get("tensor"), expression.value("split_size_or_sections")
    dim = expression.value("dim")
    if one is None or not one.shape or not isinstance(sizes, (list, tuple)):
        return None
    place = (dim if isinstance(dim, int) else 0) % len(one.shape)
    if not all(isinstance(size, int) for size in sizes) or sum(sizes) == one.shape[place]:
        return None
    rule = f"is to be split into {list(sizes)}, which add up to {sum(sizes)}"
    return Clash("sizes", one, place, None, sum(sizes), rule)


_WORK: dict[str, Callable[[Expression], Clash | None]] = {
    **dict.fromkeys(("cat", "concat", "stack", "pad_sequence"), _join),
    "matmul": _matmul,
    "sum": _sum,
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "einsum": _einsum,
    **dict.fromkeys(("masked_scatter", "masked_scatter_"), by_mask),
    **dict.fromkeys(("getitem", "setitem"), by_item),
    "split": _split,
    **dict.fromkeys(BY_INDEX, by_index),
}
