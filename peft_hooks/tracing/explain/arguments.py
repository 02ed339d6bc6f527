"""Arguments that a forward or function does not take, told by its signature."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from torch import nn

from .failure import Finding
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
