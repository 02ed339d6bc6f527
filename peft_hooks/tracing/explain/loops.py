"""Replace a comprehension with the expressions that it stands for, and put the calls of an expression in order."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .ghosts import shape_of

_MOST = 100  # entries: longer loops are not unrolled

Asked = Callable[[ast.AST], Any]
"""Returns the value of an expression, or ``UNKNOWN``."""


def unrolled(node: ast.AST | None, value_of: Asked) -> list[ast.expr] | None:
    """Return the expressions that a comprehension stands for, or None if they are unknown.

    ``[head(x) for head in self.heads]`` is ``[self.heads[0](x), self.heads[1](x)]`` if there are two heads.
    """
    if not isinstance(node, (ast.ListComp, ast.GeneratorExp)) or len(node.generators) != 1:
        return None
    loop = node.generators[0]
    entries = None if loop.ifs or loop.is_async else _entries(loop.iter, value_of)
    if entries is None:
        return None
    text = ast.unparse(node.elt)
    return [_Put(_bound(loop.target, entry)).visit(ast.parse(text, mode="eval").body) for entry in entries]


def _entries(node: ast.expr, value_of: Asked) -> list[ast.expr] | None:
    """Return an expression for each entry that a loop iterates over."""
    if isinstance(node, ast.Call) and not node.keywords:
        function, columns = value_of(node.func), [_entries(one, value_of) for one in node.args]
        known = [column for column in columns if column is not None]
        if function is enumerate and len(columns) == len(known) == 1:
            known = [[ast.Constant(number) for number in range(len(known[0]))], *known]
        elif function is not zip or len(known) != len(columns):
            return None
        return [ast.Tuple(list(row), ast.Load()) for row in zip(*known)]
    count = _length(value_of(node))
    if count is None or count > _MOST:
        return None
    return [ast.Subscript(node, ast.Constant(number), ast.Load()) for number in range(count)]


def _length(value: Any) -> int | None:
    if type(value) in (list, tuple) or isinstance(value, (nn.ModuleList, nn.Sequential)):
        return len(value)
    return next(iter(shape_of(value) or ()), None)


def _bound(target: ast.expr, entry: ast.expr) -> dict[str, ast.expr]:
    """Return what each name of a loop stands for in one iteration."""
    if isinstance(target, ast.Name):
        return {target.id: entry}
    found: dict[str, ast.expr] = {}
    for number, one in enumerate(target.elts if isinstance(target, (ast.Tuple, ast.List)) else ()):
        part = entry.elts[number] if isinstance(entry, ast.Tuple) else None
        found.update(_bound(one, part or ast.Subscript(entry, ast.Constant(number), ast.Load())))
    return found


class _Put(ast.NodeTransformer):
    """Replaces names with expressions."""

    def __init__(self, names: dict[str, ast.expr]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._names.get(node.id, node)


def calls_in_order(node: ast.AST, laid_out: Callable[[ast.AST | None], list[ast.expr] | None]) -> Iterator[ast.Call]:
    """Yield the calls in an expression in the order in which Python makes them: inner calls first.

    Args:
        node: The expression.
        laid_out: Returns the expressions that a comprehension stands for.
    """
    for part in laid_out(node) or ast.iter_child_nodes(node):
        yield from calls_in_order(part, laid_out)
    if isinstance(node, ast.Call):
        yield node
