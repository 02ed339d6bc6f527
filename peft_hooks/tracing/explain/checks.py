"""Explain a library's own checks (a None, two values that differ), and calls of a module that has no forward."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from .failure import Finding
from .ghosts import Operand, is_tensor
from .lengths import source_of
from .operands import text_of
from .scene import Scene
from .tracebacks import FUNCTIONS, Step

_Kinds = tuple[type, ...]
_SIMPLE = (int, float, str, bool, tuple, list)
_MORE, _LESS = (ast.Gt, ast.GtE), (ast.Lt, ast.LtE)
_STRICT = (ast.Gt, ast.Lt)  # a size that equals the limit passes


def guarded(scene: Scene) -> Finding | None:
    """Find what a library checked before it raised: a None, or two values that differ."""
    step, place = scene.steps[-1], len(scene.steps) - 1
    if not step.raises:
        return None
    tests = list(_tests(step))
    asking = itertools.takewhile(lambda one: _asks_for_none(one[0]) and not _others(step, one[0]), tests)
    return _missing(scene, step, place, [test for test, _ in asking]) or _checked(scene, step, tests)


def _tests(step: Step) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the test of an ``assert`` and of each ``if`` around the line, innermost first; False marks an ``else``."""
    statement: Any = step.running[1]
    if isinstance(statement, ast.Assert):
        yield statement.test, True
    while statement is not None and not isinstance(statement, FUNCTIONS):
        parent = getattr(statement, "parent", None)
        if isinstance(parent, ast.If):
            yield parent.test, statement in parent.body
        statement = parent


def _missing(scene: Scene, step: Step, place: int, tests: list[ast.expr]) -> Finding | None:
    asks = (one.left for test in tests for one in _asks_for_none(test))
    asked = list(dict.fromkeys(one.id for one in asks if isinstance(one, ast.Name)))
    if not asked or any(step.values.names.get(name, 0) is not None for name in asked):
        return None
    names = dict.fromkeys(_first_name(scene, place, name) for name in asked)
    inside = "" if scene.inner is None else f" in {scene.where(scene.inner)}"
    verb = {1: "is", 2: "are both"}.get(len(asked), "are all")
    cause = f"{' and '.join(asked)} {verb} None{inside}: no {' and no '.join(names)} was given"
    return Finding("none", cause, f"give {' or '.join(names)}")


def _first_name(scene: Scene, place: int, name: str) -> str:
    """Return the name of a None where it was first passed on."""
    for _ in range(20):
        found = scene.names.argument(place, name)
        if found is None or not isinstance(found[1], ast.Name):
            return name
        if scene.steps[found[0]].values(found[1]) is not None:
            return name
        place, name = found[0], found[1].id
    return name


def _comparisons(test: ast.AST) -> list[ast.Compare]:
    return [one for one in ast.walk(test) if isinstance(one, ast.Compare)]


def _asks_for_none(test: ast.AST) -> list[ast.Compare]:
    return [one for one in _comparisons(test) if isinstance(one.ops[0], (ast.Is, ast.IsNot))]


def _others(step: Step, test: ast.AST) -> list[tuple[str, Any]]:
    """Return the sides of the comparisons in a test, with their values, except for comparisons with None."""
    found: dict[str, Any] = {}
    either = isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or)
    for one in _comparisons(test):
        if len(one.ops) == 1 and not isinstance(one.ops[0], (ast.Is, ast.IsNot)):
            sides = [(side, step.values(side)) for side in (one.left, one.comparators[0])]
            if either and isinstance(one.ops[0], ast.NotEq) and sides[0][1] == sides[1][1]:
                continue  # this part of the test held
            if all(isinstance(value, _SIMPLE) for _, value in sides):
                found.update({text_of(side): value for side, value in sides if not isinstance(side, ast.Constant)})
    return [*found.items()]


def _checked(scene: Scene, step: Step, tests: list[tuple[ast.expr, bool]]) -> Finding | None:
    """Say what the innermost check was, what it compared, and how to pass it."""
    test, holds = tests[0] if tests else (None, False)
    others = [] if test is None or not holds else _others(step, test)
    if test is None or not others:
        return None
    nothing = [text_of(one.left) for one in _asks_for_none(test) if step.values(one.left) is None]
    values = [f"`{text}` is {list(value) if isinstance(value, tuple) else value}" for text, value in others]
    values += [f"`{text}` is None" for text in nothing]
    where = "the code" if scene.inner is None else scene.where(scene.inner)
    sources, fix = _said(scene, test)
    fix = fix or (f"set `{nothing[0]}`" if nothing else None)
    return Finding("check", f"{where} checks `{text_of(test)}`: {', '.join(values)}{sources}", fix)


def _said(scene: Scene, test: ast.expr) -> tuple[str, str | None]:
    """Say which tensor has the size that a check rejected, and how to fix it."""
    place = len(scene.steps) - 1
    step = scene.steps[place]
    for one in _comparisons(test):
        sides = [(one.left, one.comparators[0]), (one.comparators[0], one.left)] if len(one.ops) == 1 else []
        for turned, (side, other) in enumerate(sides):
            value, wanted = step.values(side), step.values(other)
            source = source_of(scene, place, side)
            if source is None or type(value) is not int or type(wanted) is not int:
                continue
            kinds = (_LESS, _MORE) if turned else (_MORE, _LESS)
            if any(is_tensor(step.values(part)) for part in ast.walk(other) if isinstance(part, ast.Name)):
                return "", f"give `{text_of(side)}` and `{text_of(other)}` the same value, {value} or {wanted}"
            fix = _fix_of(source, value, wanted, type(one.ops[0]), *kinds)
            if fix is not None:
                return f"; `{text_of(side)}` is dimension {source[1]} of {source[0]}", fix
    return "", None


def _fix_of(source: tuple[Operand, int], value: int, wanted: int, asks: type, more: _Kinds, less: _Kinds) -> str | None:
    operand, place = source
    if asks in more and value >= wanted:
        most = wanted if asks in _STRICT else wanted - 1
        return f"cut dimension {place} of {operand.name} to at most {most}"
    if asks in less and value <= wanted:
        least = wanted if asks in _STRICT else wanted + 1
        return f"give {operand.name} at least {least} in dimension {place}"
    if asks is not ast.NotEq or value == wanted:
        return None
    last = len(operand.shape) - 1
    if place == 1 and last > 1 and operand.shape[last] == wanted and operand.shape.count(wanted) == 1:
        order = ", ".join(map(str, [0, last, *range(1, last)]))
        return f"use {operand.name}.permute({order}): {operand.name} has {wanted} in dimension {last}"
    return f"give {operand.name} a size of {wanted} in dimension {place}, or use a model made for {value}"


def no_forward(scene: Scene) -> Finding | None:
    """Find a call of a module that has no forward, such as a ``ModuleList``."""
    step = scene.steps[-1]
    module = step.module
    if module is None or step.frame.f_code is not getattr(nn.Module.forward, "__code__", None):
        return None
    where, kind = scene.where(module), type(module)
    fix = f"define a forward in {kind.__name__}"
    if kind.__module__.startswith("torch.nn."):
        fix = "call each of its modules (for layer in ...: x = layer(x)), or use an nn.Sequential, which does so"
    return Finding("object", f"{where} has no forward, so it cannot be called", fix, culprit=scene.path(module))
