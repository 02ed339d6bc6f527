"""Find out which dimension of which tensor a number in the code is."""

from __future__ import annotations

import ast

from .ghosts import Operand
from .operands import assignment
from .scene import Scene

_MOST = 8  # the most names that are followed


def source_of(scene: Scene, place: int, node: ast.AST) -> tuple[Operand, int] | None:
    """Return the tensor and the dimension whose size an expression is; None if that is unknown.

    Args:
        scene: What is known.
        place: The index of the step that has the expression.
        node: The expression.
    """
    found = _source(scene, place, node, _MOST)
    if found is None or found[0].shape[found[1]] != scene.steps[place].values(node):
        return None  # the name refers to another tensor by now
    return found


def _source(scene: Scene, place: int, node: ast.AST, left: int) -> tuple[Operand, int] | None:
    step = scene.steps[place]
    if not left:
        return None
    if isinstance(node, ast.IfExp):
        held = step.values(node.test)
        sides = [node.body if held else node.orelse] if isinstance(held, bool) else [node.body, node.orelse]
        return next((found for side in sides if (found := _source(scene, place, side, left - 1))), None)
    if isinstance(node, ast.Name):
        made = assignment(step, node.id)
        if made is not None:
            value, part = made
            return _source(scene, place, value, left - 1) if part is None else _of_shape(scene, place, value, part)
        outer = scene.names.argument(place, node.id) if node.id in step.parameters else None
        return None if outer is None else _source(scene, *outer, left - 1)
    if isinstance(node, ast.Subscript):
        return _of_shape(scene, place, node.value, step.values(node.slice))
    if isinstance(node, ast.Call) and len(node.args) == 1:
        if getattr(node.func, "id", "") == "len":
            return _of_shape(scene, place, ast.Attribute(node.args[0], "shape", ast.Load()), 0)
        return _of_shape(scene, place, node.func, step.values(node.args[0]))
    return None


def _of_shape(scene: Scene, place: int, node: ast.AST, dimension: object) -> tuple[Operand, int] | None:
    """Return the tensor whose shape an expression is, and the dimension; None if it is not a tensor's shape."""
    of_size = node.func if isinstance(node, ast.Call) and not node.args else node
    if isinstance(of_size, ast.Name):
        found = assignment(scene.steps[place], of_size.id)
        return None if found is None or found[1] is not None else _of_shape(scene, place, found[0], dimension)
    if not isinstance(of_size, ast.Attribute) or of_size.attr not in ("shape", "size") or type(dimension) is not int:
        return None
    owner = scene.names.of_expression(place, of_size.value)
    rank = len(owner.shape)
    return (owner, dimension % rank) if owner.is_tensor and -rank <= dimension < rank else None
