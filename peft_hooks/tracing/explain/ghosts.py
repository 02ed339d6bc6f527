"""Shapes of tensors that an expression makes on its way, worked out without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Ghost(NamedTuple):
    """A tensor that is not at hand any more, or never was."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


Shape = tuple[int, ...]
_SAME = frozenset((
    "contiguous", "clone", "detach", "relu", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "log", "abs",
    "neg", "sqrt", "sin", "cos", "clamp", "dropout", "cumsum", "masked_fill", "cpu", "cuda", "requires_grad_",
    "nan_to_num", "flip", "roll", "gelu", "silu", "square", "rsqrt", "pow",
))  # fmt: skip
_CASTS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "long": torch.int64,
    "int": torch.int32,
    "bool": torch.bool,
}
_REDUCE = frozenset((
    "sum", "mean", "amax", "amin", "prod", "norm", "std", "var", "logsumexp", "argmax", "argmin", "any", "all",
))  # fmt: skip


def shape_of(value: Any) -> Shape | None:
    """Return the shape of a tensor, at hand or not; None of anything else, and of nested tensors."""
    if isinstance(value, Ghost):
        return value.shape
    if not isinstance(value, Tensor) or value.is_nested:
        return None
    return tuple(int(size) for size in value.shape)


def broadcast(one: Shape, other: Shape) -> Shape | None:
    """Return the shape that two shapes broadcast to, or None."""
    result = []
    for place in range(1, max(len(one), len(other)) + 1):
        a = one[-place] if place <= len(one) else 1
        b = other[-place] if place <= len(other) else 1
        if a != b and 1 not in (a, b):
            return None
        result.append(b if a == 1 else a)
    return tuple(reversed(result))


def _turned(shape: Shape, one: int, other: int) -> Shape:
    sizes = list(shape)
    sizes[one], sizes[other] = sizes[other], sizes[one]
    return tuple(sizes)


def flat_of(args: Sequence[Any]) -> list[Any]:
    """Return sizes or dimensions that were given one by one or as one sequence."""
    return list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)


def _numbers(args: Sequence[Any]) -> list[int]:
    flat = flat_of(args)
    if not all(isinstance(one, int) for one in flat):
        raise ValueError
    return flat


def _view(shape: Shape, *args: Any) -> Shape:
    sizes = _numbers(args)
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // known
    if math.prod(sizes) != math.prod(shape):
        raise ValueError
    return tuple(sizes)


def _expand(shape: Shape, *args: Any) -> Shape:
    sizes = _numbers(args)
    padded = (1,) * (len(sizes) - len(shape)) + shape
    if any(old not in (1, new) and new != -1 for old, new in zip(padded, sizes)):
        raise ValueError
    return tuple(old if new == -1 else new for old, new in zip(padded, sizes))


def _repeat(shape: Shape, *args: Any) -> Shape:
    times = _numbers(args)
    padded = (1,) * (len(times) - len(shape)) + shape
    return tuple(size * time for size, time in zip(padded, times))


def _flatten(shape: Shape, start_dim: int = 0, end_dim: int = -1) -> Shape:
    start, end = start_dim % len(shape), end_dim % len(shape)
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


def _unsqueeze(shape: Shape, dim: int) -> Shape:
    place = dim % (len(shape) + 1)
    return (*shape[:place], 1, *shape[place:])


def _squeeze(shape: Shape, dim: int | None = None) -> Shape:
    if dim is None:
        return tuple(size for size in shape if size != 1)
    place = dim % len(shape)
    return tuple(size for number, size in enumerate(shape) if number != place or size != 1)


def _reduce(shape: Shape, dim: Any = None, keepdim: bool = False) -> Shape:
    if dim is None:
        return ()
    places = {one % len(shape) for one in _numbers([dim])}
    if keepdim:
        return tuple(1 if number in places else size for number, size in enumerate(shape))
    return tuple(size for number, size in enumerate(shape) if number not in places)


_SHAPES: dict[str, Callable[..., Shape]] = {
    "view": _view,
    "reshape": _view,
    "expand": _expand,
    "repeat": _repeat,
    "flatten": _flatten,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "transpose": lambda shape, dim0, dim1: _turned(shape, dim0, dim1),
    "swapaxes": lambda shape, axis0, axis1: _turned(shape, axis0, axis1),
    "t": lambda shape: shape[::-1],
    "permute": lambda shape, *dims: tuple(shape[dim] for dim in _numbers(dims)),
    "view_as": lambda shape, other: other.shape,
    "expand_as": lambda shape, other: _expand(shape, *other.shape),
}


def called(method: str, tensor: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Ghost | None:
    """Return what a method of a tensor gives, as far as shape and dtype go; None if that is not known."""
    shape, dtype = shape_of(tensor), tensor.dtype
    if shape is None:
        return None
    if method in ("to", "type"):
        return Ghost(shape, next((one for one in args if isinstance(one, torch.dtype)), dtype), tensor.device)
    if method in _CASTS:
        return Ghost(shape, _CASTS[method], tensor.device)
    if method in _SAME:
        return Ghost(shape, dtype, tensor.device)
    work = _reduce if method in _REDUCE else _SHAPES.get(method)
    try:
        return None if work is None else Ghost(work(shape, *args, **kwargs), dtype, tensor.device)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, AttributeError):
        return None


def sliced(tensor: Any, index: Any) -> Ghost | None:
    """Return what ``tensor[index]`` gives for numbers, slices, None and ``...``; None if that is not known."""
    shape = shape_of(tensor)
    parts = list(index) if isinstance(index, tuple) else [index]
    if shape is None or not all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
        return None
    given = sum(part is not None and part is not ... for part in parts)
    if ... not in parts:
        parts.append(...)
    left, sizes = list(shape), []
    if given > len(left):
        return None
    for part in parts:
        if part is None:
            sizes.append(1)
        elif part is ...:
            sizes += [left.pop(0) for _ in range(len(shape) - given)]
        elif isinstance(part, slice):
            sizes.append(len(range(*part.indices(left.pop(0)))))
        else:
            left.pop(0)
    return Ghost(tuple(sizes), tensor.dtype, tensor.device)


def joined(parts: Sequence[Any], dim: int, new: bool) -> Ghost | None:
    """Return what ``cat`` or ``stack`` gives; None if that is not known."""
    shapes = [shape_of(part) for part in parts]
    if not shapes or None in shapes:
        return None
    known = [shape for shape in shapes if shape is not None]
    place = dim % (len(known[0]) + new)
    if new:
        shape = (*known[0][:place], len(known), *known[0][place:])
    else:
        shape = (*known[0][:place], sum(one[place] for one in known), *known[0][place + 1 :])
    return Ghost(shape, parts[0].dtype, parts[0].device)
