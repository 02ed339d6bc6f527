"""A traceback: who raised, the model or somebody's hook, on which line; and the modules that were called."""

from __future__ import annotations

import functools
import linecache
import os
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

from torch import nn

from ...compat.torch_internals import forward_hooks_of
from ...hooks.dispatcher import dispatcher_of
from ..tap import Tap
from .steps import CALLS, Step


class Raised(NamedTuple):
    """What a traceback tells.

    Attributes:
        steps: The frames that the error has left, outermost first, without those of this library.
        hook: The hook that raised, as text, or None.
        hooked: The ``id`` of the module that the hook sits on.
        inner: The ``id`` of the innermost module that was called, or whose method ran.
        source: The line of code that raised: the innermost that is not PyTorch's own.
    """

    steps: list[Step]
    hook: str | None
    hooked: int | None
    inner: int | None
    source: str | None


def read(error: BaseException) -> Raised:
    """Read the traceback of ``error``. What it returns refers to the frames, and must not be kept."""
    steps: list[Step] = []
    traceback = error.__traceback__
    while traceback is not None:
        steps.append(Step(traceback))
        traceback = traceback.tb_next
    hook, hooked, inner = None, None, None
    for number, step in enumerate(steps):
        if step.module is None:
            continue
        inner = id(step.module)
        if step.file == CALLS and hook is None:
            hook = _hook_that_runs(step.module, steps[number + 1 :])
            hooked = None if hook is None else inner
    return Raised([step for step in steps if not step.is_ours], hook, hooked, inner, _source(steps))


class ModuleCall(NamedTuple):
    """A call of a module in a traceback.

    Attributes:
        place: The number of the step that the module's own code begins at.
        module: The module.
        given: What it was given, by parameter.
    """

    place: int
    module: nn.Module
    given: dict[str, Any]


def module_calls(steps: Sequence[Step]) -> list[ModuleCall]:
    """Return the calls of modules among the steps, outermost first, also where ``forward`` was called by itself."""
    found: list[ModuleCall] = []
    for place, step in enumerate(steps):
        module = step.module
        if module is None or step.file == CALLS or step.name != "forward":
            continue
        # PyTorch's inner() closes over the arguments, which the function around it has.
        before = [one.locals for one in steps[max(place - 2, 0) : place] if one.file == CALLS and one.module is module]
        given = next((one for one in reversed(before) if "args" in one), None)
        found.append(ModuleCall(place, module, step.given if given is None else _bound(step, given)))
    return found


def _bound(step: Step, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by parameter as they came in."""
    return {**dict(zip(step.positional, given["args"])), **given.get("kwargs", {})}


def foreign_hooks(module: nn.Module) -> list[str]:
    """Return the forward hooks on a module as text, except for the traces' and those of this library."""
    hooks = forward_hooks_of(module)
    names = [_name(hook) for hook in hooks if not isinstance(getattr(hook, "__self__", None), Tap)]
    return [name for name in dict.fromkeys(names) if name]


def _hook_that_runs(module: nn.Module, inside: Sequence[Step]) -> str | None:
    """Return the hook of ``module`` whose code comes next. The code of a module's forward is no hook's."""
    for hook in forward_hooks_of(module) if inside else ():
        if inside[0].frame.f_code in _codes(hook):
            return _registered(inside) if dispatcher_of(hook) is not None else _name(hook)
    return None


def _registered(steps: Sequence[Step]) -> str:
    """Name the hook that a registry's dispatcher was running."""
    entry = next((step.locals["entry"] for step in steps if "entry" in step.locals), None)
    return "a hook" if entry is None else f"the hook {entry.name!r} ({type(entry.hook).__name__})"


def _codes(hook: Any) -> Iterator[CodeType]:
    """Yield the code of a function, a bound method, or an object that is called."""
    hook = _unwrapped(hook)
    for function in (hook, getattr(hook, "__func__", None), vars(type(hook)).get("__call__")):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _unwrapped(hook: Any) -> Any:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook


def _name(hook: Any) -> str:
    """Name a hook, or those of others that a registry's dispatcher runs; empty if all are this library's."""
    hook = _unwrapped(hook)
    dispatcher = dispatcher_of(hook)
    if dispatcher is not None:
        others = [one for one in dispatcher.entries if type(one.hook).__module__.partition(".")[0] != "peft_hooks"]
        return f"the hook {', '.join(repr(one.name) for one in others)}" if others else ""
    name = getattr(hook, "__qualname__", None) or type(hook).__qualname__
    return f"the hook {name.rpartition('<locals>.')[2]!r}"


def _source(steps: Sequence[Step]) -> str | None:
    outside = [step for step in steps if not step.in_torch] or steps[-1:]
    if not outside:
        return None
    line = linecache.getline(outside[-1].file, outside[-1].line).strip()
    return f"{os.path.basename(outside[-1].file)}:{outside[-1].line}" + (f": {line}" if line else "")
