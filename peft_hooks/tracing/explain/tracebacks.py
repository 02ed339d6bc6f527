"""Read a traceback: what each frame was running, which modules were called, and whether the model or a hook raised."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import linecache
import math
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple

import executing
import torch
from torch import nn

from ...compat.torch_internals import forward_hooks_of
from ...hooks.dispatcher import dispatcher_of
from ..tap import Tap
from .values import UNKNOWN, Values

TORCH = os.path.dirname(torch.__file__) + os.sep
CALLS = os.path.join(TORCH, "nn", "modules", "module.py")
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib", "stdlib")})
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Function(executing.Source):
    """The source of one function: parsing a whole large file takes longer than everything else here."""

    @classmethod
    def for_frame(cls, frame: FrameType, use_cache: bool = True) -> executing.Source:
        code = frame.f_code
        lines = linecache.getlines(code.co_filename, frame.f_globals)
        if sys.version_info < (3, 11) or code.co_name.startswith("<") or not lines:
            return executing.Source.for_frame(frame, use_cache)
        first = code.co_firstlineno - 1
        block = inspect.getblock(lines[first:])
        # Line numbers stay as they are; "if 1:" allows the indentation of a method.
        head = ["\n"] * (first - 1) + ["if 1:\n"] if first and block[0][:1].isspace() else ["\n"] * first
        return cls(code.co_filename, [*head, *block])


class Step:
    """One frame of a traceback.

    Attributes:
        frame: The frame.
        file: The file that its code is in.
        line: The line that raised.
        module: The module whose method this is, or None.
    """

    def __init__(self, traceback: TracebackType) -> None:
        self._traceback = traceback
        self.frame = traceback.tb_frame
        self.file = self.frame.f_code.co_filename
        self.name = self.frame.f_code.co_name
        self.line = traceback.tb_lineno
        self.locals: Mapping[str, Any] = self.frame.f_locals
        self.returned: Callable[[nn.Module, int, Sequence[Any]], Any] = lambda module, later, args: UNKNOWN
        owner = self.locals.get("self", self._first_of_forward())
        self.module = owner if isinstance(owner, nn.Module) else None

    def _first_of_forward(self) -> object:
        """Return the module whose forward this is, if the first parameter is not called ``self``."""
        code = self.frame.f_code
        first = self.locals.get(code.co_varnames[0]) if self.name == "forward" and code.co_argcount else None
        forward = inspect.getattr_static(type(first), "forward", None)
        return first if getattr(forward, "__code__", None) is code else None

    @property
    def in_torch(self) -> bool:
        """Whether the code is PyTorch's."""
        return self.file.startswith(TORCH)

    @property
    def is_installed(self) -> bool:
        """Whether the code belongs to an installed package or to Python itself, not to the user."""
        return self.file.startswith(_INSTALLED) or self.in_torch

    @property
    def is_ours(self) -> bool:
        """Whether the code is this library's."""
        return self.file.startswith(_OURS)

    @property
    def positional(self) -> list[str]:
        """The positional parameters of the function, without ``self``."""
        return self.parameters[: self.frame.f_code.co_argcount - ("self" in self.frame.f_code.co_varnames[:1])]

    @property
    def parameters(self) -> list[str]:
        """The parameters of the function, without ``self``, ``*args`` and ``**kwargs``."""
        code = self.frame.f_code
        return [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]

    @property
    def given(self) -> dict[str, Any]:
        """The current values of the parameters."""
        return {name: self.locals[name] for name in self.parameters if name in self.locals}

    @functools.cached_property
    def running(self) -> tuple[ast.AST | None, ast.stmt | None]:
        """The expression that was running and its statement; None for what is unknown."""
        try:
            found = _Function.executing(self._traceback)
            statements = [one for one in found.statements or () if isinstance(one, ast.stmt)]
        except Exception:  # there is no source, or it does not match the code
            return None, None
        # Of several on one line, it is the last that begins before the code that raised.
        here = [one for one in statements if (one.lineno, one.col_offset) <= (self.line, self._column())]
        return found.node, max(here or statements, key=lambda one: (one.lineno, one.col_offset), default=None)

    def _column(self) -> float:
        """Return the column at which the code that raised begins; infinity if Python does not record it."""
        code: Any = self.frame.f_code
        if not hasattr(code, "co_positions"):
            return math.inf
        start = next(itertools.islice(code.co_positions(), self._traceback.tb_lasti // 2, None))[2]
        return math.inf if start is None else float(start)

    @property
    def node(self) -> ast.AST | None:
        """The expression that was running."""
        return self.running[0]

    @property
    def raises(self) -> bool:
        """Whether the statement that was running is a ``raise`` or an ``assert``."""
        return isinstance(self.running[1], (ast.Raise, ast.Assert)) and self.running[0] is None

    @functools.cached_property
    def values(self) -> Values:
        """The values of expressions in the frame."""
        return Values(self.frame, self.returned, self.node)


class Raised(NamedTuple):
    """What a traceback tells.

    Attributes:
        steps: The frames that the error passed through, outermost first, without those of this library.
        hook: The hook that raised, as text, or None.
        hooked: The ``id`` of the module that the hook is on.
        inner: The ``id`` of the innermost module that was called, or whose method ran.
        source: The line of code that raised: the innermost one that is not PyTorch's own.
    """

    steps: list[Step]
    hook: str | None
    hooked: int | None
    inner: int | None
    source: str | None


def read(error: BaseException) -> Raised:
    """Read the traceback of ``error``. The result refers to the frames, so it must not be kept."""
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
    others = [step for step in steps if not step.is_ours]
    return Raised(others, hook, hooked, inner, _source(others))


def foreign_hooks(module: nn.Module) -> list[str]:
    """Return the forward hooks on a module, as text, except for those of this library."""
    hooks = forward_hooks_of(module)
    names = [_name(hook) for hook in hooks if not isinstance(getattr(hook, "__self__", None), Tap)]
    return [name for name in dict.fromkeys(names) if name]


def _hook_that_runs(module: nn.Module, inside: Sequence[Step]) -> str | None:
    """Return the hook of ``module`` whose code comes next, as text; None if that is not a hook's code."""
    for hook in forward_hooks_of(module) if inside else ():
        if inside[0].frame.f_code in _codes(hook) and not isinstance(getattr(hook, "__self__", None), Tap):
            return _registered(inside) if dispatcher_of(hook) is not None else _name(hook)
    return None


def _registered(steps: Sequence[Step]) -> str:
    """Name the hook that a registry's dispatcher was running."""
    entry = next((step.locals["entry"] for step in steps if "entry" in step.locals), None)
    return "a hook" if entry is None else f"the hook {entry.name!r} ({type(entry.hook).__name__})"


def _codes(hook: Any) -> Iterator[CodeType]:
    """Yield the code of a function, a bound method or a callable object."""
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
    """Name a hook or, for a registry's dispatcher, those of its hooks that are not this library's; empty if none."""
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
