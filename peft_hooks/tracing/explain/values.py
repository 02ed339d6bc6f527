"""Evaluate the expressions of a frame from names, attributes and what modules own, without running user code."""

from __future__ import annotations

import ast
import inspect
import operator
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

import torch
from pure_eval import CannotEval, Evaluator
from torch import Tensor, nn

from .ghosts import is_tensor, shape_of
from .loops import calls_in_order, unrolled
from .meta import created, is_method, is_operation, method, worked_out

_NUMBERS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_TENSORS = {
    **_NUMBERS,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Invert: operator.invert}


class _Unknown:
    """The value of an expression whose value is unknown."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Any = _Unknown()


class Values:
    """The values of expressions in one frame.

    Args:
        frame: The frame.
        returned: Returns what a module returned in its last call, or a number of calls before it, with ghosts for its
            tensors. Is given the module, that number and the call's positional arguments.
        running: The expression that was running.
    """

    def __init__(
        self,
        frame: FrameType,
        returned: Callable[[nn.Module, int, Sequence[Any]], Any] = lambda module, later, args: UNKNOWN,
        running: ast.AST | None = None,
    ) -> None:
        self.returned = returned
        self.running = running
        self._laid_out: dict[int, tuple[ast.AST | None, list[ast.expr] | None]] = {}
        self.names: Mapping[str, Any] = ChainMap(dict(frame.f_locals), frame.f_globals, frame.f_builtins)
        self._pure = Evaluator(self.names)

    def __call__(self, node: ast.AST | None) -> Any:
        """Return the value of an expression, a ``Ghost`` for a tensor that no longer exists, or ``UNKNOWN``."""
        work = _WORK.get(type(node))
        try:
            value = UNKNOWN if work is None else work(self, node)
        except Exception:  # other code's object may raise anything
            value = UNKNOWN
        if value is UNKNOWN and isinstance(node, ast.expr):
            try:
                return self._pure[node]
            except (CannotEval, Exception):
                return UNKNOWN
        return value

    def arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        """Return the values of a call's arguments, with ``*args`` unpacked."""
        args: list[Any] = []
        for one in node.args:
            if isinstance(one, ast.Starred):
                value = self(one.value)
                args += value if isinstance(value, (tuple, list)) else [UNKNOWN]
            else:
                args.append(self(one))
        return args, {word.arg: self(word.value) for word in node.keywords if word.arg is not None}

    def _name(self, node: ast.Name) -> Any:
        return self.names.get(node.id, UNKNOWN)

    def _attribute(self, node: ast.Attribute) -> Any:
        owner, name = self(node.value), node.attr
        if not is_tensor(owner):
            return UNKNOWN if owner is UNKNOWN else attribute(owner, name)
        if name in ("shape", "dtype", "device") and shape_of(owner) is not None:
            return getattr(owner, name)
        return _known(worked_out(operator.attrgetter(name), [owner])) if name in ("T", "mT", "ndim") else UNKNOWN

    def _subscript(self, node: ast.Subscript) -> Any:
        owner, index = self(node.value), self(node.slice)
        if is_tensor(owner):
            return _known(worked_out(operator.getitem, [owner, index]))
        if isinstance(owner, (nn.ModuleList, nn.Sequential, nn.ModuleDict)) and isinstance(index, (int, str)):
            keys = list(owner._modules)
            return owner._modules[keys[index] if isinstance(index, int) else index]
        if type(owner) in (tuple, list, torch.Size) and isinstance(index, (int, slice)):
            return owner[index]
        return dict.get(owner, index, UNKNOWN) if isinstance(owner, dict) and isinstance(index, str) else UNKNOWN

    def _slice(self, node: ast.Slice) -> Any:
        ends = [None if one is None else self(one) for one in (node.lower, node.upper, node.step)]
        return UNKNOWN if UNKNOWN in ends else slice(*ends)

    def _display(self, node: ast.Tuple | ast.List) -> Any:
        parts: list[Any] = []
        for one in node.elts:
            value = self(one.value) if isinstance(one, ast.Starred) else [self(one)]
            parts += value
        return tuple(parts) if isinstance(node, ast.Tuple) else parts

    def laid_out(self, node: ast.AST | None) -> list[ast.expr] | None:
        """Return the expressions that a comprehension stands for: the same objects each time."""
        if id(node) not in self._laid_out:
            self._laid_out[id(node)] = node, unrolled(node, self)
        return self._laid_out[id(node)][1]

    def _comprehension(self, node: ast.ListComp) -> Any:
        parts = self.laid_out(node)
        return UNKNOWN if parts is None else [self(one) for one in parts]

    def _binary(self, node: ast.BinOp) -> Any:
        operation = self.operation(node)
        if operation is None:
            return UNKNOWN
        work, sides, _ = operation
        if all(isinstance(one, (int, float)) for one in sides):
            return work(*sides) if type(node.op) in _NUMBERS else UNKNOWN
        return _known(worked_out(work, sides))

    def _compare(self, node: ast.Compare) -> Any:
        left, right, work = self(node.left), self(node.comparators[0]), _COMPARE.get(type(node.ops[0]))
        if len(node.ops) > 1 or work is None:
            return UNKNOWN
        if type(left) is Tensor and type(right) in (int, float, bool):
            return work(left.detach(), right)  # the result is a new tensor, which nothing refers to
        return _known(worked_out(work, [left, right]))

    def _negative(self, node: ast.UnaryOp) -> Any:
        value, work = self(node.operand), _UNARY.get(type(node.op))
        if isinstance(node.op, ast.USub) and isinstance(value, (int, float)):
            return -value
        return UNKNOWN if work is None else _known(worked_out(work, [value]))

    def _call(self, node: ast.Call) -> Any:
        owner = self._owner(node)
        if isinstance(node.func, ast.Attribute) and is_tensor(owner):
            return _known(method(owner, node.func.attr, *self.arguments(node)))
        function = self(node.func)
        if isinstance(function, nn.Module):
            return self.returned(function, self._later(node, function), self.arguments(node)[0])
        args, kwargs = self.arguments(node)
        if function is len and len(args) == 1:
            return (shape_of(args[0]) or (UNKNOWN,))[0]
        if function is torch.tensor and args and isinstance(args[0], (list, int, float)):
            return torch.tensor(args[0])  # numbers in the source: a new tensor, which nothing refers to
        return _known((worked_out if is_operation(function) else created)(function, args, kwargs))

    def _later(self, node: ast.Call, module: nn.Module) -> int:
        """Return how many times the running expression called a module again after this call."""
        if self.running is None:
            return 0
        plain = [one for one in calls_in_order(self.running, self.laid_out) if not _has_call(one.func)]
        same = [one for one in plain if self(one.func) is module]
        places = [number for number, one in enumerate(same, 1) if one is node]
        return len(same) - places[0] if places else 0

    def _owner(self, node: ast.Call) -> Any:
        """Return the object whose method is called; None for a plain function."""
        return self(node.func.value) if isinstance(node.func, ast.Attribute) else None

    def operation(self, node: ast.AST | None) -> tuple[Any, list[Any], dict[str, Any]] | None:
        """Return what an expression runs, with its arguments, if it is a PyTorch operation on tensors."""
        if isinstance(node, ast.BinOp):
            work = _TENSORS.get(type(node.op))
            return None if work is None else (work, [self(node.left), self(node.right)], {})
        if isinstance(node, ast.Subscript):
            return operator.getitem, [self(node.value), self(node.slice)], {}
        if not isinstance(node, ast.Call):
            return None
        owner = self._owner(node)
        if isinstance(node.func, ast.Attribute) and is_tensor(owner):
            args, kwargs = self.arguments(node)
            return (getattr(Tensor, node.func.attr), [owner, *args], kwargs) if is_method(node.func.attr) else None
        function = self(node.func)
        return (function, *self.arguments(node)) if is_operation(function) else None


def _has_call(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Call) for one in ast.walk(node))


def _known(made: Any) -> Any:
    return UNKNOWN if made is None else made


_WORK: dict[type | None, Callable[[Values, Any], Any]] = {
    ast.Name: Values._name,
    ast.Attribute: Values._attribute,
    ast.Subscript: Values._subscript,
    ast.Slice: Values._slice,
    ast.Tuple: Values._display,
    ast.List: Values._display,
    ast.ListComp: Values._comprehension,
    ast.BinOp: Values._binary,
    ast.Compare: Values._compare,
    ast.UnaryOp: Values._negative,
    ast.Call: Values._call,
}


def attribute(owner: Any, name: str) -> Any:
    """Return an attribute of an object without running a property or ``__getattr__``."""
    if isinstance(owner, nn.Module):
        own = vars(owner)
        for store in (own, own.get("_parameters"), own.get("_buffers"), own.get("_modules")):
            if store and name in store:
                return store[name]
        return UNKNOWN
    if isinstance(owner, ModuleType):
        return vars(owner).get(name, UNKNOWN)
    if isinstance(owner, Mapping) and name in owner and not hasattr(type(owner), name):
        return owner[name]
    value = inspect.getattr_static(owner, name, UNKNOWN)
    return UNKNOWN if isinstance(value, property) else value
