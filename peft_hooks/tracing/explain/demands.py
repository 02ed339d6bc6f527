"""Explain demands other than matching sizes: an existing dimension, contiguous memory, a dtype, a range of values.

Also explains checks that a library makes itself before it raises.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .failure import Finding
from .ghosts import Operand, first, flat_of, many, shape_of
from .meta import method
from .operands import text_of
from .scene import Scene
from .sites import Expression, expressions
from .table import BY_INDEX
from .tracebacks import FUNCTIONS, Step

_SIMPLE = (int, float, str, bool, tuple, list)
_WITH_DIM = frozenset((
    "softmax", "log_softmax", "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "cumsum", "size",
    "transpose", "swapaxes", "squeeze", "flatten", "select", "chunk", "unbind", "norm", "std", "var", "logsumexp",
    "unsqueeze", "sort", "topk", "narrow", "split", "prod", "any", "all", "movedim", "index_select", "gather",
))  # fmt: skip
_OF_NUMBERS = frozenset(["narrow", "topk", "chunk", "split", "norm", "select", "std", "var", "sort"])  # not only dims
_FLOATING = frozenset(["mean", "softmax", "log_softmax", "std", "var", "norm", "sigmoid_", "bernoulli"])


def unmet_demand(scene: Scene) -> Finding | None:
    """Find an operand that does not meet what an expression demands of it."""
    for expression in expressions(scene):
        one = next(iter(expression.operands.values()), None)
        if one is None or not one.is_tensor:
            continue
        rules = (_no_such_dimension, _permuted, _not_in_order, _not_floating, _no_index)
        found = first(rule(scene, expression, one) for rule in rules)
        if found is not None:
            return found
    return _one_value(scene) or _no_probability(scene) or _too_small(scene)


def _no_such_dimension(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    if expression.name not in _WITH_DIM:
        return None
    named = [expression.value(name) for name in ("dim", "dim0", "dim1", "axis")]
    plain = [] if expression.name in _OF_NUMBERS else [part.value for part in [*expression.operands.values()][1:]]
    dims = [dim for dim in (*named, *plain) if type(dim) is int]
    rank = len(one.shape) + (expression.name == "unsqueeze")
    wrong = next((dim for dim in dims if not -rank <= dim < rank), None)
    if wrong is None or rank == 0:
        return None
    has = f"{one} has {many(len(one.shape))}, 0 to {len(one.shape) - 1}"
    cause = f"{has}; {expression.name}() is asked for dimension {wrong}"
    return Finding("rank", cause, f"use a dimension from 0 to {rank - 1}, or give {one.name} more", scene.bounds(one))


def _permuted(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    if expression.name != "permute":
        return None
    dims = flat_of([part.value for part in [*expression.operands.values()][1:]])
    if len(dims) == len(one.shape) or not all(isinstance(dim, int) for dim in dims):
        return None
    cause = f"{one} has {many(len(one.shape))}, but permute() is given {len(dims)}"
    return Finding("rank", cause, f"name each of the {len(one.shape)} dimensions once", scene.bounds(one))


def _not_in_order(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    """Find a view that asks for the right number of elements: it can fail for one reason only."""
    sizes = [part.value for part in [*expression.operands.values()][1:]]
    if expression.name != "view" or not isinstance(scene.error, RuntimeError) or isinstance(sizes[0], torch.dtype):
        return None
    if method(one.value, "reshape", sizes, {}) is None:
        return None  # whether the number of elements is right is unknown
    cause = f"{one} is not contiguous: its elements are not in the memory order that view() needs"
    fix = f"use {one.name}.reshape(...), or {one.name}.contiguous() before view()"
    return Finding("view", cause, fix, scene.bounds(one))


def _not_floating(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    if expression.name not in _FLOATING or one.dtype is None or one.dtype.is_floating_point or one.dtype.is_complex:
        return None
    cause = f"{one} is {one.short}, but {expression.name}() takes floating-point numbers"
    return Finding("dtype", cause, f"{one.name}.float()", scene.bounds(one))


def _no_index(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    parts: list[Operand] = []
    if expression.name in BY_INDEX and "index" in expression.operands:
        parts = [expression.operands["index"]]
    elif expression.name in ("getitem", "setitem") and isinstance(expression.node, ast.Subscript):
        node = expression.node.slice
        parts = [expression.operand(part) for part in (node.elts if isinstance(node, ast.Tuple) else [node])]
    for part in parts:
        by_index = expression.name in BY_INDEX
        if part.is_float or (by_index and part.dtype not in (None, torch.int64, torch.int32)):
            cause = f"{part} is {part.short}, but an index must hold whole numbers (i64)"
            mask = "" if by_index else f", or {part.name}.bool() if it is a mask"
            return Finding("dtype", cause, f"{part.name}.long(){mask}", scene.bounds(part))
    return None


def _one_value(scene: Scene) -> Finding | None:
    """Find a batch norm in training mode that is given one value for each channel."""
    for place, step in enumerate(scene.steps):
        given = step.locals.get("input")
        shape = shape_of(given) or ()
        of_norm = step.in_torch and step.name == "batch_norm" and step.locals.get("training")
        if of_norm and len(shape) > 1 and math.prod(shape) == shape[1]:
            one = scene.names.of_parameter(place, "input", given)
            cause = f"{one} has one value for each of its {shape[1]} channels"
            cause += ": in training mode a batch norm needs more than one"
            fix = "use batches of two or more (drop_last=True), or model.eval()"
            return Finding("batch", cause, fix, scene.bounds(one))
    return None


def _no_probability(scene: Scene) -> Finding | None:
    """Find a loss on probabilities that is given other numbers."""
    for place, step in enumerate(scene.steps):
        given: dict[str, Any] = {name: step.locals.get(name) for name in ("input", "target")}
        of_loss = step.in_torch and step.name.startswith("binary_cross_entropy")
        if not of_loss or not all(isinstance(value, Tensor) for value in given.values()):
            continue
        one = scene.names.of_parameter(place, "target", given["target"])
        if not one.is_float:
            cause = f"{one}, the target, is {one.short}; {step.name}() takes floating-point numbers there"
            return Finding("dtype", cause, f"{one.name}.float()", scene.bounds(one))
        for name, value in given.items() if step.name == "binary_cross_entropy" else ():
            one = scene.names.of_parameter(place, name, value)
            low, high = (0.0, 0.0) if not value.numel() else map(float, value.detach().aminmax())
            if not 0 <= low <= high <= 1:
                cause = f"{one}, the {name}, ranges from {low:.2f} to {high:.2f}; binary_cross_entropy() takes 0 to 1"
                logits = "use binary_cross_entropy_with_logits, or apply a sigmoid first"
                return Finding("index", cause, logits if name == "input" else "targets from 0 to 1", scene.bounds(one))
    return None


def _too_small(scene: Scene) -> Finding | None:
    """Find a convolution or pooling whose kernel is larger than its input."""
    for call in reversed(scene.calls):
        layer: Any = call.module
        given = shape_of(call.given.get("input"))
        kernel = getattr(layer, "kernel_size", None)
        if given is None or kernel is None or getattr(layer, "transposed", False) or isinstance(layer, nn.Unfold):
            continue
        spatial = len(kernel) if isinstance(kernel, tuple) else int(type(layer).__name__[-2:-1])
        settings = [_each(getattr(layer, name, 1), spatial) for name in ("kernel_size", "dilation", "padding")]
        for place, (reach, dilation, padding) in enumerate(zip(*settings), len(given) - spatial):
            needed = dilation * (reach - 1) + 1 - 2 * padding
            if place >= 0 and given[place] < needed:
                one = scene.names.of_parameter(call.place, "input", call.given["input"])
                have = f"{one} has {given[place]} in dimension {place}"
                cause = f"{have}, but the kernel of {scene.where(layer)} needs at least {needed} there"
                more = math.ceil((needed - given[place]) / 2 + padding)
                fix = f"use a larger input, a smaller kernel_size, or padding={more}"
                return Finding("length", cause, fix, (scene.bound(one, place),))
    return None


def _each(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [0 if isinstance(value, str) else value] * count


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
    """Say what the innermost check was and what it compared."""
    test, holds = tests[0] if tests else (None, False)
    others = [] if test is None or not holds else _others(step, test)
    if test is None or not others:
        return None
    values = [f"`{text}` is {list(value) if isinstance(value, tuple) else value}" for text, value in others]
    where = "the code" if scene.inner is None else scene.where(scene.inner)
    return Finding("check", f"{where} checks `{text_of(test)}`: {', '.join(values)}")
