"""One frame of a traceback: the expression that it was running, and what its names were assigned."""

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
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

import executing
import torch
from torch import nn

from .values import UNKNOWN, Values

TORCH = os.path.dirname(torch.__file__) + os.sep
CALLS = os.path.join(TORCH, "nn", "modules", "module.py")
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib", "stdlib")})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Function(executing.Source):
    """The source of one function: parsing all of a large file takes longer than everything else here."""

    @classmethod
    def for_frame(cls, frame: FrameType, use_cache: bool = True) -> executing.Source:
        code = frame.f_code
        lines = linecache.getlines(code.co_filename, frame.f_globals)
        if sys.version_info < (3, 11) or code.co_name.startswith("<") or not lines:
            return executing.Source.for_frame(frame, use_cache)
        first = code.co_firstlineno - 1
        block = inspect.getblock(lines[first:])
        # Line numbers stay as they are; a method is indented, which "if 1:" allows.
        head = ["\n"] * (first - 1) + ["if 1:\n"] if first and block[0][:1].isspace() else ["\n"] * first
        return cls(code.co_filename, [*head, *block])


class Step:
    """One frame of a traceback.

    Attributes:
        frame: The frame.
        file: The file that its code is in.
        line: The line that raised.
        module: The module whose method it is, or None.
    """

    def __init__(self, traceback: TracebackType) -> None:
        self._traceback = traceback
        self.frame = traceback.tb_frame
        self.file = self.frame.f_code.co_filename
        self.name = self.frame.f_code.co_name
        self.line = traceback.tb_lineno
        self.locals: Mapping[str, Any] = self.frame.f_locals
        self.returned: Callable[[nn.Module], Any] = lambda module: UNKNOWN
        owner = self.locals.get("self", self._first_of_forward())
        self.module = owner if isinstance(owner, nn.Module) else None

    def _first_of_forward(self) -> object:
        """Return the module whose forward this is, where its first parameter has another name than ``self``."""
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
        """Whether the code is of an installed package or of Python itself, not the user's own."""
        return self.file.startswith(_INSTALLED) or self.in_torch

    @property
    def is_ours(self) -> bool:
        """Whether the code is this library's."""
        return self.file.startswith(_OURS)

    @property
    def positional(self) -> list[str]:
        """The parameters of the function that may be given by position, without ``self``."""
        return self.parameters[: self.frame.f_code.co_argcount - ("self" in self.frame.f_code.co_varnames[:1])]

    @property
    def parameters(self) -> list[str]:
        """The parameters of the function, without ``self`` and what takes the rest."""
        code = self.frame.f_code
        return [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]

    @property
    def given(self) -> dict[str, Any]:
        """The values of the parameters, as the function holds them now."""
        return {name: self.locals[name] for name in self.parameters if name in self.locals}

    @functools.cached_property
    def running(self) -> tuple[ast.AST | None, ast.stmt | None]:
        """The expression that was running, and its statement; None for what cannot be told."""
        try:
            found = _Function.executing(self._traceback)
            statements = [one for one in found.statements or () if isinstance(one, ast.stmt)]
        except Exception:  # no source, or one that does not belong to the code: then there is nothing to read
            return None, None
        # Of several on one line it is the last that begins before what raised.
        here = [one for one in statements if (one.lineno, one.col_offset) <= (self.line, self._column())]
        return found.node, max(here or statements, key=lambda one: (one.lineno, one.col_offset), default=None)

    def _column(self) -> float:
        """Return where on its line the code that raised begins; beyond it where Python does not keep that."""
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
        """Whether the line is a ``raise`` or an ``assert`` of its own."""
        return isinstance(self.running[1], (ast.Raise, ast.Assert)) and self.running[0] is None

    def assigned(self, name: str) -> ast.expr | None:
        """Return what was last assigned to a name before the line that raised, in code that surely ran.

        Only statements of the blocks around the line count. None if the name is assigned in a block beside them, too.
        """
        statement, found = self.running[1], None
        while statement is not None:
            parent = getattr(statement, "parent", None)
            for block in ("body", "orelse", "finalbody"):
                before = getattr(parent, block, ())
                if isinstance(before, list) and statement in before:
                    for one in reversed(before[: before.index(statement)]):
                        found = _assigned_by(one, name)
                        if found is not None:
                            return found or None
            if isinstance(parent, (*_FUNCTIONS, ast.For, ast.While)):
                return None  # what a loop did before cannot be told
            statement = parent
        return None

    def assigns(self, name: str) -> bool:
        """Tell whether the function assigns to a name anywhere, or cannot be read."""
        node: Any = self.running[1]
        while node is not None and not isinstance(node, _FUNCTIONS):
            node = getattr(node, "parent", None)
        return node is None or name in _stored(node)

    @functools.cached_property
    def values(self) -> Values:
        """What the names in the frame are."""
        return Values(self.frame, self.returned)


def _assigned_by(statement: ast.stmt, name: str) -> Any:
    """Return what a statement assigns to a name, None if nothing, False if that cannot be told."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            names = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            if any(isinstance(one, ast.Name) and one.id == name for one in names):
                return statement.value
        return None
    return False if name in _stored(statement) else None


def _stored(node: ast.AST) -> set[str]:
    """Return the names that are assigned to anywhere inside."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
