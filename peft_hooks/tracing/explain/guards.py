"""A library that checks by itself and raises: what it compared, and what each side was."""

from __future__ import annotations

import ast
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
    return _missing(scene, step, place, [test for test, _ in tests]) or _unequal(
        scene, step, [test for test, holds in tests if holds]
    )


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


def _unequal(scene: Scene, step: Step, tests: list[ast.expr]) -> Finding | None:
    for one in ast.walk(tests[0]) if tests else ():
        if not isinstance(one, ast.Compare) or len(one.ops) > 1:
            continue
        left, right = step.values(one.left), step.values(one.comparators[0])
        if not isinstance(left, _SIMPLE) or not isinstance(right, _SIMPLE):
            continue
        if left != right and isinstance(one.ops[0], (ast.NotEq, ast.Eq, ast.Gt, ast.Lt, ast.GtE, ast.LtE)):
            names = [ast.unparse(side).replace("'", '"') for side in (one.left, one.comparators[0])]
            values = [list(side) if isinstance(side, tuple) else side for side in (left, right)]
            where = "the code" if scene.inner is None else scene.where(scene.inner)
            cause = f"{where} checks `{ast.unparse(one)}`: `{names[0]}` is {values[0]}, `{names[1]}` is {values[1]}"
            return Finding("check", cause)
    return None
