"""A library that checks by itself and raises: what it compared, and what each side was."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from typing import Any

from .failure import Finding
from .scene import Scene
from .steps import Step

_SIMPLE = (int, float, str, bool, tuple, list)


def guarded(scene: Scene) -> Finding | None:
    """Find what a library checked before it raised: something that is None, or two things that differ."""
    step, place = scene.steps[-1], len(scene.steps) - 1
    if not step.raises:
        return None
    tests = list(_tests(step))
    asking = itertools.takewhile(lambda test: _is_for_none(test) and not _others(step, test), (one for one, _ in tests))
    return _missing(scene, step, place, list(asking)) or _checked(scene, step, tests)


def _tests(step: Step) -> Iterator[tuple[ast.expr, bool]]:
    """Yield what an ``assert`` or the ``if`` around a ``raise`` asks, and whether it held, the innermost first."""
    statement: Any = step.running[1]
    if isinstance(statement, ast.Assert):
        yield statement.test, True
    while statement is not None and not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        parent = getattr(statement, "parent", None)
        if isinstance(parent, ast.If):
            yield parent.test, statement in parent.body
        statement = parent


def _missing(scene: Scene, step: Step, place: int, tests: list[ast.expr]) -> Finding | None:
    asked = [
        one.left.id
        for test in tests
        for one in ast.walk(test)
        if isinstance(one, ast.Compare)
        and isinstance(one.left, ast.Name)
        and isinstance(one.ops[0], (ast.Is, ast.IsNot))
    ]
    missing = [name for name in dict.fromkeys(asked) if step.values.names.get(name, 0) is None]
    if not missing or len(missing) != len(set(asked)):
        return None
    names = dict.fromkeys(_first_name(scene, place, name) for name in missing)
    inside = "" if scene.inner is None else f" in {scene.where(scene.inner)}"
    verb = "is" if len(missing) == 1 else "are both" if len(missing) == 2 else "are all"
    cause = f"{' and '.join(missing)} {verb} None{inside}: no {' and no '.join(names)} was given"
    return Finding("none", cause, f"give {' or '.join(names)}")


def _first_name(scene: Scene, place: int, name: str) -> str:
    """Return what a None was called where it was first handed on."""
    for _ in range(20):
        found = scene.names.argument(place, name)
        if found is None or not isinstance(found[1], ast.Name):
            return name
        if scene.steps[found[0]].values(found[1]) is not None:
            return name
        place, name = found[0], found[1].id
    return name


def _is_for_none(test: ast.AST) -> bool:
    """Tell whether a comparison, or one inside it, asks whether something is None."""
    return any(isinstance(one, ast.Compare) and isinstance(one.ops[0], (ast.Is, ast.IsNot)) for one in ast.walk(test))


def _others(step: Step, test: ast.AST) -> list[tuple[str, Any]]:
    """Return the sides of the other comparisons in a test, with what they are."""
    found: dict[str, Any] = {}
    for one in ast.walk(test):
        if isinstance(one, ast.Compare) and len(one.ops) == 1 and not isinstance(one.ops[0], (ast.Is, ast.IsNot)):
            sides = [(side, step.values(side)) for side in (one.left, one.comparators[0])]
            either = isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or)
            if either and isinstance(one.ops[0], ast.NotEq) and sides[0][1] == sides[1][1]:
                continue  # it was not this that did not hold
            if all(isinstance(value, _SIMPLE) for _, value in sides):
                found.update({_text(side): value for side, value in sides if not isinstance(side, ast.Constant)})
    return [*found.items()]


def _checked(scene: Scene, step: Step, tests: list[tuple[ast.expr, bool]]) -> Finding | None:
    """Say what the innermost check was, and what it compared."""
    test, holds = tests[0] if tests else (None, False)
    others = [] if test is None or not holds else _others(step, test)
    if test is None or not others:
        return None
    values = [f"`{text}` is {list(value) if isinstance(value, tuple) else value}" for text, value in others]
    where = "the code" if scene.inner is None else scene.where(scene.inner)
    return Finding("check", f"{where} checks `{_text(test)}`: {', '.join(values)}")


def _text(node: ast.AST) -> str:
    return ast.unparse(node).replace("'", '"')
