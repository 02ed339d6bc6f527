"""Explain a view whose sizes do not multiply to the number of elements."""

from __future__ import annotations

import ast
import math
from typing import Any

from .failure import Finding
from .ghosts import Operand, flat_of
from .lengths import source_of
from .operands import text_of
from .promises import changed
from .scene import Scene
from .sites import Expression, expressions
from .unlike import Clash


def of_view(scene: Scene, clash: Clash) -> Finding:
    """Explain what a view is asked for, where its sizes come from, and what would fit."""
    one = clash.left
    births = [birth for place in range(len(one.shape)) if (birth := scene.birth(one, place)) is not None and birth.made]
    told = {birth.row.path: words for birth in births if (words := changed(scene, birth, one))}
    culprit = next(iter(told), None)
    cause = f"{one.name} {list(one.shape)} {clash.rule}"
    expression = next((one for one in expressions(scene) if one.name in ("view", "reshape")), None)
    sizes = [] if expression is None else flat_of([part.value for part in expression.arguments])
    cause += _rest(one, sizes)
    divided = [] if expression is None else _divided(scene, expression)
    sources = [] if divided or expression is None else _sources(scene, expression)
    for said in [*(words for words, _ in divided), *sources]:
        cause += f"; {said}"
    cause += f"; {told[culprit]}{scene.on(culprit)}" if culprit else ""
    flat = None if sources else _flattened(one, sizes)
    whole = next((call for _, call in divided), None)
    fix = whole or flat or "ask for sizes whose product is the number of elements"
    return Finding("view", cause, fix, scene.bounds(one), culprit)


def _sizes(expression: Expression) -> list[ast.expr]:
    """Return the expressions of the sizes in the call of a view."""
    nodes = [one.node for one in expression.arguments if isinstance(one.node, ast.expr)]
    listed = nodes[0] if len(nodes) == 1 and isinstance(nodes[0], (ast.Tuple, ast.List)) else None
    return nodes if listed is None else listed.elts


def _divided(scene: Scene, expression: Expression) -> list[tuple[str, str]]:
    """Say which of the sizes leaves a remainder, and how to avoid it."""
    found: dict[str, tuple[str, str]] = {}
    parts = [part for node in _sizes(expression) for part in ast.walk(node) if isinstance(part, ast.BinOp)]
    for part in parts:
        above, below = expression.step.values(part.left), expression.step.values(part.right)
        if isinstance(part.op, ast.FloorDiv) and type(above) is int and type(below) is int and below and above % below:
            source = source_of(scene, expression.place, part.left)
            made = "" if source is None else f", dimension {source[1]} of {source[0]},"
            words = f"`{text_of(part)}` leaves a remainder: {above}{made} is not a multiple of {below}"
            least = above - above % below
            fix = f"cut or pad `{text_of(part.left)}` to a multiple of {below}, {least} or {least + below}"
            found[text_of(part)] = words, fix
    return [*found.values()]


def _sources(scene: Scene, expression: Expression) -> list[str]:
    """Say which sizes come from other tensors than the viewed one."""
    found: dict[str, str] = {}
    own = next(iter(expression.operands.values()))
    for node in _sizes(expression):
        for part in ast.walk(node):
            source = source_of(scene, expression.place, part)
            if source is not None and source[0].value is not own.value:
                found[text_of(part)] = f"`{text_of(part)}` is dimension {source[1]} of {source[0]}"
    return [*found.values()][:2]


def _rest(one: Operand, sizes: list[Any]) -> str:
    """Say which sizes replace which, if the leading ones are kept."""
    same = 0
    while same < min(len(sizes), len(one.shape)) and sizes[same] == one.shape[same]:
        same += 1
    rest, own = sizes[same:], one.shape[same:]
    if not same or not own or len(rest) < 2 or not all(type(size) is int and size > 0 for size in rest):
        return ""
    return f": {' * '.join(map(str, rest))} = {math.prod(rest)} instead of {' * '.join(map(str, own))}"


def _flattened(one: Operand, sizes: list[Any]) -> str | None:
    """Say how wide each row is if a view asks for rows of another width."""
    if len(sizes) != 2 or len(one.shape) < 3 or sizes[0] not in (-1, one.shape[0]) or sizes[1] == -1:
        return None
    wide = math.prod(one.shape[1:])
    return f"use {one.name}.flatten(1): each row has {wide} elements, so make what follows take {wide}, not {sizes[1]}"
