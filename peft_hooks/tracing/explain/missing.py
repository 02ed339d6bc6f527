"""What is not there: an argument that a forward does not take, a key of a dict, of features, of a ``ModuleDict``."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from torch import nn

from ..records import Row
from .failure import Finding
from .operands import Operand
from .scene import Scene
from .values import UNKNOWN


def wrong_arguments(scene: Scene) -> Finding | None:
    """Find that a forward or function was called with arguments that it does not take."""
    if not isinstance(scene.error, TypeError):
        return None
    for place in range(len(scene.steps) - 1, -1, -1):
        step = scene.steps[place]
        module = step.locals.get("self") if step.module is not None and step.name != "forward" else None
        if step.in_torch and isinstance(module, nn.Module) and "args" in step.locals:
            return _unbound(
                scene, scene.where(module), module.forward, step.locals["args"], step.locals.get("kwargs", {})
            )
        if not step.in_torch:
            node = step.node
            function = step.values(node.func) if isinstance(node, ast.Call) else UNKNOWN
            if inspect.isfunction(function) and isinstance(node, ast.Call):
                return _unbound(scene, f"{function.__name__}()", function, *step.values.arguments(node))
            return None
    return None


def _unbound(scene: Scene, where: str, function: Any, args: Any, kwargs: Any) -> Finding | None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(name for name in signature.parameters if name != "self")
        given = ", ".join([f"{len(args)} by position"] * bool(args) + [str(name) for name in kwargs]) or "nothing"
        cause = f"{where} takes {takes or 'nothing'}; it was given {given}: {error}"
        return Finding("argument", cause, f"call it with what it takes: {takes or 'nothing'}")
    return None


def missing_key(scene: Scene, one: Operand, key: Any) -> Finding | None:
    """Say which keys there are, and who made what lacks one."""
    value = one.value
    if isinstance(value, (nn.ModuleDict, nn.ParameterDict)):
        keys = ", ".join(map(repr, value.keys()))
        path = scene.paths.get(id(value))
        name = f"{type(value).__name__} {path!r}" if path is not None else one.text
        return Finding(
            "key", f"{name} has the keys {keys}, not {key!r}", f"one of {keys}, or add {key!r} to it", culprit=path
        )
    given = set() if scene.row is None else {leaf.key for leaf in scene.row.inputs}
    own = {str(name) for name in value}
    maker = scene.maker(one)
    if maker is None and (not own or own & given):
        return missing_feature(scene, str(key))
    keys = ", ".join(sorted(map(repr, own))[:8]) or "nothing"
    made = f": {scene.where(maker)} returned it" if maker is not None else ""
    path = None if maker is None else scene.paths.get(id(maker))
    return Finding("key", f"{one.name} has the keys {keys}, {key!r} is missing{made}", f"one of {keys}", culprit=path)


def missing_feature(scene: Scene, key: str) -> Finding | None:
    """Say that features lack a key, and which module gave it, or did not."""
    if scene.row is None or key in {leaf.key for leaf in scene.row.inputs}:
        return None
    rows, failing = scene.history.rows, scene.row
    had = [row for row in rows if row.index < failing.index and any(leaf.key == key for leaf in row.outputs)]
    given = sorted({leaf.key for leaf in failing.inputs})
    cause = f"{key!r} is missing: it is not among what {failing.where} was given ({', '.join(given) or 'nothing'})"
    last = next((row for row in reversed(had) if row.forward == failing.forward), None)
    if last is not None:
        cause += f"; it came out of {last.where}"
        return Finding("key", cause, f"look at what happens to {key!r} after {last.where}", culprit=last.path)
    step = next((row for row in reversed(rows) if _handed_on(row, failing)), None)
    if step is not None:
        cause += f"; {step.where}, which ran before it, gave {', '.join(leaf.key for leaf in step.outputs)}"
        fix = f"{step.where} must set {key!r}, or a module that does must stand between it and {failing.where}"
        return Finding("key", cause + scene.on(step.path), fix, culprit=step.path)
    return Finding("key", cause, f"give {key!r} with the rest of the input")


def _handed_on(row: Row, failing: Row) -> bool:
    """Tell whether a call ended before the failing one, beside it, and returned a dict of features."""
    beside = row.parent == failing.parent and row.forward == failing.forward and row.index < failing.index
    return beside and row.state == "done" and len(row.outputs) > 1
