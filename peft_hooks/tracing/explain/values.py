"""What the expressions of a frame are: read from names, attributes and what modules own, without running anything."""

from __future__ import annotations

import ast
import inspect
import operator
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import FrameType, ModuleType
from typing import Any

import torch
from pure_eval import CannotEval, Evaluator
from torch import Tensor, nn

from . import ghosts
from .ghosts import Ghost, shape_of

_MATH: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Unknown:
    """What an expression is that cannot be told."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Any = _Unknown()


class Values:
    """The values of expressions in one frame.

    Args:
        frame: The frame.
        returned: Returns what a module returned last, as far as its tensors' shapes go.
    """

    def __init__(self, frame: FrameType, returned: Callable[[nn.Module], Any] = lambda module: UNKNOWN) -> None:
        self.returned = returned
        self.names: Mapping[str, Any] = ChainMap(dict(frame.f_locals), frame.f_globals, frame.f_builtins)
        self._pure = Evaluator(self.names)

    def __call__(self, node: ast.AST | None) -> Any:
        """Return the value of an expression, a ``Ghost`` for a tensor that is not at hand, or ``UNKNOWN``."""
        work = _WORK.get(type(node))
        try:
            value = UNKNOWN if work is None else work(self, node)
        except Exception:  # a foreign object may raise whatever it likes when it is asked
            value = UNKNOWN
        if value is UNKNOWN and isinstance(node, ast.expr):
            try:
                return self._pure[node]
            except (CannotEval, Exception):
                return UNKNOWN
        return value

    def arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        """Return the values of a call's arguments, ``*args`` laid out."""
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
        if isinstance(owner, (Tensor, Ghost)):
            return _of_tensor(owner, name)
        return UNKNOWN if owner is UNKNOWN else attribute(owner, name)

    def _subscript(self, node: ast.Subscript) -> Any:
        owner, index = self(node.value), self(node.slice)
        if isinstance(owner, (Tensor, Ghost)):
            return ghosts.sliced(owner, index) or UNKNOWN
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

    def _binary(self, node: ast.BinOp) -> Any:
        left, right, work = self(node.left), self(node.right), _MATH.get(type(node.op))
        if isinstance(left, (int, float)) and isinstance(right, (int, float)) and work is not None:
            return work(left, right)
        return self._broadcast(left, right, None)

    def _broadcast(self, left: Any, right: Any, dtype: torch.dtype | None) -> Any:
        tensor = left if isinstance(left, (Tensor, Ghost)) else right
        if not isinstance(tensor, (Tensor, Ghost)):
            return UNKNOWN
        shapes = [() if isinstance(one, (int, float)) else shape_of(one) for one in (left, right)]
        if shapes[0] is None or shapes[1] is None:
            return UNKNOWN
        shape = ghosts.broadcast(shapes[0], shapes[1])
        return UNKNOWN if shape is None else Ghost(shape, dtype or tensor.dtype, tensor.device)

    def _compare(self, node: ast.Compare) -> Any:
        left, right, work = self(node.left), self(node.comparators[0]), _COMPARE.get(type(node.ops[0]))
        if len(node.ops) > 1 or work is None:
            return UNKNOWN
        if type(left) is Tensor and type(right) in (int, float, bool):
            return work(left.detach(), right)  # a new tensor, of which nobody knows
        return self._broadcast(left, right, torch.bool)

    def _negative(self, node: ast.UnaryOp) -> Any:
        value = self(node.operand)
        if isinstance(value, (Tensor, Ghost)) and isinstance(node.op, (ast.USub, ast.Invert)):
            shape = shape_of(value)
            return UNKNOWN if shape is None else Ghost(shape, value.dtype, value.device)
        return -value if isinstance(node.op, ast.USub) and isinstance(value, (int, float)) else UNKNOWN

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            owner = self(node.func.value)
            if isinstance(owner, (Tensor, Ghost)):
                args, kwargs = self.arguments(node)
                return _method(owner, node.func.attr, args, kwargs)
        function = self(node.func)
        if isinstance(function, nn.Module):
            return self.returned(function)
        if function is len and len(node.args) == 1:
            value = self(node.args[0])
            shape = shape_of(value)
            return shape[0] if shape else UNKNOWN
        made = _created(getattr(function, "__name__", ""), *self.arguments(node)) if _is_torch(function) else None
        if made is not None:
            return made
        if getattr(function, "__module__", None) in ("torch", "torch._C._VariableFunctions", None) and node.args:
            args, kwargs = self.arguments(node)
            if getattr(function, "__name__", "") in ("cat", "stack") and isinstance(args[0], (list, tuple)):
                dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
                return ghosts.joined(args[0], dim, function.__name__ == "stack") or UNKNOWN
            if isinstance(args[0], (Tensor, Ghost)):
                return ghosts.called(getattr(function, "__name__", ""), args[0], args[1:], kwargs) or UNKNOWN
        return UNKNOWN


_WORK: dict[type | None, Callable[[Values, Any], Any]] = {
    ast.Name: Values._name,
    ast.Attribute: Values._attribute,
    ast.Subscript: Values._subscript,
    ast.Slice: Values._slice,
    ast.Tuple: Values._display,
    ast.List: Values._display,
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


def _is_torch(function: Any) -> bool:
    return vars(torch).get(getattr(function, "__name__", "")) is function


def _created(name: str, args: list[Any], kwargs: dict[str, Any]) -> Tensor | Ghost | None:
    """Return what ``torch.zeros`` and its like make of numbers."""
    if name == "tensor" and args and isinstance(args[0], (list, int, float)) and UNKNOWN not in args:
        return torch.tensor(args[0])  # of numbers in the source: a new one, of which nobody knows
    if name in ("zeros_like", "ones_like", "rand_like", "randn_like", "empty_like"):
        shape = shape_of(args[0]) if args else None
        return None if shape is None else Ghost(shape, kwargs.get("dtype", args[0].dtype), args[0].device)
    if name not in ("zeros", "ones", "rand", "randn", "empty"):
        return None
    sizes = list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    dtype, device = kwargs.get("dtype", torch.get_default_dtype()), kwargs.get("device", "cpu")
    known = all(isinstance(size, int) for size in sizes) and isinstance(dtype, torch.dtype)
    return Ghost(tuple(sizes), dtype, torch.device(device)) if known and device is not UNKNOWN else None


def _of_tensor(tensor: Any, name: str) -> Any:
    shape = shape_of(tensor)
    if shape is None:
        return UNKNOWN
    if name in ("shape", "dtype", "device"):
        return getattr(tensor, name)
    if name in ("T", "mT") and len(shape) > 1:
        turned = shape[::-1] if name == "T" else (*shape[:-2], shape[-1], shape[-2])
        return Ghost(turned, tensor.dtype, tensor.device)
    return len(shape) if name == "ndim" else UNKNOWN


def _method(owner: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    shape = shape_of(owner)
    if shape is not None and name in ("size", "dim", "numel", "ndimension"):
        if name == "size":
            return shape[args[0]] if args else torch.Size(shape)
        return len(shape) if name != "numel" else torch.Size(shape).numel()
    return ghosts.called(name, owner, args, kwargs) or UNKNOWN
