"""Who raised: the model or somebody's hook, in which module, on which line. Read from a traceback, and nothing kept."""

from __future__ import annotations

import functools
import linecache
import os
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from ...compat.torch_internals import forward_hooks_of
from ...hooks.dispatcher import dispatcher_of

_TORCH = os.path.dirname(torch.__file__) + os.sep
_CALLS = os.path.join(_TORCH, "nn", "modules", "module.py")


class Raised(NamedTuple):
    """What a traceback tells.

    Attributes:
        hook: The hook that raised, as text, or None.
        hooked: The ``id`` of the module that the hook sits on.
        inside: The ``id`` and class of the innermost module that was called, or whose method ran.
        source: The line of code that raised.
    """

    hook: str | None
    hooked: int | None
    inside: tuple[int, str] | None
    source: str | None


def read(error: BaseException) -> Raised:
    """Read the traceback of ``error``."""
    frames: list[tuple[FrameType, int]] = []
    step = error.__traceback__
    while step is not None:
        frames.append((step.tb_frame, step.tb_lineno))
        step = step.tb_next
    hook, hooked, inside = None, None, None
    for number, (frame, _) in enumerate(frames):
        module = frame.f_locals.get("self")
        if not isinstance(module, nn.Module):
            continue
        inside = (id(module), type(module).__name__)
        if frame.f_code.co_filename == _CALLS and number + 1 < len(frames) and hook is None:
            after = frames[number + 1 :]
            hook = _hook_that_runs(module, after[0][0].f_code, [frame for frame, _ in after])
            hooked = id(module) if hook is not None else None
    return Raised(hook, hooked, inside, _source(frames))


def foreign_hooks(module: nn.Module, own: type) -> list[str]:
    """Return the forward hooks on a module as text, except for the trace's (``own``) and those of this library."""
    hooks = forward_hooks_of(module)
    names = [_name(hook) for hook in hooks if not isinstance(getattr(hook, "__self__", None), own)]
    return [name for name in dict.fromkeys(names) if name]


def _hook_that_runs(module: nn.Module, code: CodeType, frames: list[FrameType]) -> str | None:
    """Return the hook of ``module`` that ``code`` belongs to. The code of a module's forward is no hook's."""
    for hook in forward_hooks_of(module):
        if code in _codes(hook):
            return _registered(frames) if dispatcher_of(hook) is not None else _name(hook)
    return None


def _registered(frames: list[FrameType]) -> str:
    """Name the hook that a registry's dispatcher was running."""
    entry = next((frame.f_locals["entry"] for frame in frames if "entry" in frame.f_locals), None)
    return "a hook" if entry is None else f"the hook {entry.name!r} ({type(entry.hook).__name__})"


def _codes(hook: Any) -> Iterator[CodeType]:
    while isinstance(hook, functools.partial):
        hook = hook.func
    # A function, a bound method, or an object that is called.
    for function in (hook, getattr(hook, "__func__", None), vars(type(hook)).get("__call__")):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _is_ours(hook: Any) -> bool:
    return type(hook).__module__.partition(".")[0] == "peft_hooks"


def _name(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    dispatcher = dispatcher_of(hook)
    if dispatcher is not None:
        names = [
            repr(entry.name)
            for entry in dispatcher.entries
            if type(entry.hook).__module__.partition(".")[0] != "peft_hooks"
        ]
        return f"the hook {', '.join(names)}" if names else ""
    name = getattr(hook, "__qualname__", None) or type(hook).__qualname__
    return f"the hook {name.rpartition('<locals>.')[2]!r}"


def _source(frames: list[tuple[FrameType, int]]) -> str | None:
    """Return the innermost line that is not PyTorch's own."""
    outside = [step for step in frames if not step[0].f_code.co_filename.startswith(_TORCH)] or frames[-1:]
    if not outside:
        return None
    frame, number = outside[-1]
    name = frame.f_code.co_filename
    line = linecache.getline(name, number).strip()
    return f"{os.path.basename(name)}:{number}" + (f": {line}" if line else "")
