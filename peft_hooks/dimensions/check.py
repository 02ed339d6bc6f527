"""Check whether tensors have the dimensions in a contract, and say why not: pure functions of shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._format import dtype_of
from ..hooks.call import Call
from .bindings import Bound, Table
from .lookup import all_inputs, all_outputs, not_there, parameters_of, shown, stacked, value_of
from .spec import Expected, Spec


class Reason(NamedTuple):
    """Why a check failed, and by how many positions ``seq`` differs: 0 if another dimension disagrees."""

    message: str
    difference: int = 0


Find = Callable[[Any, tuple[str, ...]], Any]

Shapes = tuple[torch.Size | torch.dtype | None, ...]


def shapes_in(spec: Spec, find: Find, features: Mapping[str, Any], source: Any) -> Shapes | None:
    """Return, as a key, the shapes and dtypes that decide the outcome of ``disagreement``; None if they are not enough.

    ``features`` is where ``find`` looks first in ``source``; reading it directly saves a call per tensor and forward.
    """
    found: list[torch.Size | torch.dtype | None] = []
    for expected in spec:
        value = None if expected.only is None else value_of(features, expected.only)
        if value is None:
            value = find(source, expected.parts)
        if isinstance(value, Tensor) and not value.is_nested:
            found += (value.shape, value.dtype)
        elif value is None:
            found.append(None)
        else:
            return None  # a list of tensors, or a nested one
    return tuple(found)


def disagreement(spec: Spec, find: Find, source: Any, bound: Table, local: Table, where: str) -> Reason | None:
    """Bind the dimensions of the tensors that ``find(source, parts)`` returns, in ``bound`` and ``local``.

    Returns:
        None, or the reason why a tensor disagrees.
    """
    for expected in spec:
        value = find(source, expected.parts)
        if isinstance(value, Tensor) and value.is_nested:
            continue  # its rows have different lengths, so there is no size to compare
        shape = value.shape if isinstance(value, Tensor) else _shape_of_no_tensor(expected, value, source)
        if shape is None:
            continue
        if isinstance(shape, Reason):
            return shape
        if expected.dtypes is not None:
            dtype = (value if isinstance(value, Tensor) else value[0]).dtype
            if dtype not in expected.dtypes:
                return Reason(f"{expected.label} is {dtype_of(dtype)} {shown(value)}, but should be {expected.kinds}")
        reason = _bind(expected, value, shape, bound, local, where)
        if reason is not None:
            return reason
    return None


def _shape_of_no_tensor(expected: Expected, value: Any, source: Any) -> torch.Size | Reason | None:
    """Return the shape of a list of tensors, None if there is nothing to check, or why the value is wrong."""
    shape = stacked(value)
    if isinstance(shape, str):
        return Reason(f"{expected.label} {shape}")
    if shape is None and (expected.required or (value is None and not _may_lack(source, expected.parts))):
        there = all_inputs(source) if isinstance(source, Call) else all_outputs(source)
        return Reason(not_there(expected.key, there))
    return shape


def _bind(expected: Expected, value: Any, shape: torch.Size, bound: Table, local: Table, where: str) -> Reason | None:
    dimensions = expected.head if expected.tail is None else expected.filled(len(shape))
    if len(shape) != len(dimensions):
        least = f"{'' if expected.tail is None else 'at least '}{len(dimensions)}"
        wanted = f"{least} dimension{'' if len(dimensions) == 1 else 's'} ({expected.dimensions})"
        return Reason(f"{expected.label} is {shown(value)}, but should have {wanted}")
    for size, (name, fixed, within) in zip(shape, dimensions):
        if fixed is not None and size != fixed:
            return Reason(f"{expected.label} is {shown(value)}, but {name or 'the size'} = {fixed} is declared")
        if name is None:
            continue
        table = local if within else bound
        known = table.get(name)
        if known is None:
            table[name] = (size, expected.label, shape, where)
        elif known[0] != size:
            message = _explain(expected.label, shown(value), name, size, known, where)
            return Reason(message, int(abs(size - known[0])) if name == "seq" else 0)
    return None


def _explain(label: str, shape: str, name: str, size: int, known: Bound, where: str) -> str:
    expected, tensor, its_shape, binder = known
    other = "" if binder == where else f" of {binder}"
    more = f"{abs(size - expected)} {'more' if size > expected else 'fewer'}"
    return f"{label} is {shape}, but {name} = {expected} was bound by {tensor} {list(its_shape)}{other}: {more}"


def _may_lack(source: Any, parts: tuple[str, ...]) -> bool:
    """Tell whether a tensor may be missing: a dict may lack any key, but a tensor has no keys to lack."""
    if not isinstance(source, Call):
        return source is not None and not isinstance(source, Tensor)
    if isinstance(source.first, Mapping) or not parts or parts[0].isdigit():
        return True
    return parts[0] in parameters_of(source.module)
