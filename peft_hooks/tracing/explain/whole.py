"""Work out the whole numbers of an expression that takes a part of an existing tensor or gives it another shape."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .ghosts import Ghost
from .values import Values

_FORMS = frozenset((
    "view", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "transpose", "permute", "contiguous", "long", "int",
    "repeat", "detach", "clone", "cpu", "t",
))  # fmt: skip
_SUMS: dict[type, Callable[[Any, Any], Any]] = {ast.Add: operator.add, ast.Sub: operator.sub}
_MOST = 10**6  # elements: an explanation copies no larger tensors


def numbers_of(values: Values, node: ast.AST | None, value: Any) -> Any:
    """Return a tensor of the values of an expression if they are whole numbers that can be read; otherwise ``value``.

    Args:
        values: The values of expressions in the frame.
        node: The expression.
        value: What is known of it: its value, or a ghost.
    """
    if not isinstance(value, Ghost) or value.dtype.is_floating_point or node is None:
        return value
    try:
        made = _made(values, node)
    except Exception:  # operands that do not match have no values
        return value
    return value if made is None else made


def _made(values: Values, node: ast.AST) -> Tensor | None:
    known = values(node)
    if isinstance(known, Tensor):
        whole = not known.is_floating_point() and known.device.type != "meta" and known.numel() <= _MOST
        return known.detach() if whole else None
    if isinstance(node, ast.Subscript):
        owner, index = _made(values, node.value), values(node.slice)
        return None if owner is None or not _is_plain(index) else owner[index]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FORMS:
        owner, (args, kwargs) = _made(values, node.func.value), values.arguments(node)
        plain = owner is not None and not kwargs and all(map(_is_plain, args))
        return getattr(owner, node.func.attr)(*args) if plain else None
    if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        owner, number = _made(values, node.left), values(node.right)
        return None if owner is None or type(number) is not int else _SUMS[type(node.op)](owner, number)
    return None


def _is_plain(index: Any) -> bool:
    """Tell whether indices are only numbers and slices."""
    if isinstance(index, (tuple, list)):
        return all(map(_is_plain, index))
    ends = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
    return all(end is None or end is ... or type(end) is int for end in ends)
