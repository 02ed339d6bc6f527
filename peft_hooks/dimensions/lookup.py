"""Find the tensors of a contract: in a dict, by a parameter's name, inside tuples, or the output itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .._format import shape_of, tensors_in
from ..errors import close_matches
from ..hooks.call import Call, of_module, positional

MISSING: Any = None
"""Returned for a missing tensor. Many features dicts contain None, which is not a tensor either."""

_SHOWN = 8


def input_of(call: Call, parts: tuple[str, ...]) -> Any:
    """Return what ``parts`` name among a call's arguments, or MISSING.

    No parts name the first argument itself. Otherwise the first part is a key of the first argument, if that is a dict,
    the index of a positional argument, or a parameter of ``forward``. Each further part goes one step deeper.
    """
    first = call.first
    if not parts:
        return first
    root = parts[0]
    is_mapping = isinstance(first, (dict, Mapping))  # dict first: the check against the abstract class is slow
    if is_mapping:
        value = value_of(first, root)
        if value is not None:
            return value if len(parts) == 1 else _inside(value, parts[1:])
    if root in call.kwargs:
        return _inside(call.kwargs[root], parts[1:])
    if is_mapping and len(parts) == 1 and len(call.args) <= 1:
        return MISSING
    index = int(root) if root.isdigit() else _index_of(call.module, root)
    return _inside(call.args[index], parts[1:]) if index < len(call.args) else MISSING


def output_of(output: Any, parts: tuple[str, ...]) -> Any:
    """Return what ``parts`` name in an output, or MISSING. ``"output"``, like no parts, is the output itself."""
    if not parts:
        return output
    if isinstance(output, (dict, Mapping)):
        value = value_of(output, parts[0])
        if value is not None:
            return value if len(parts) == 1 else _inside(value, parts[1:])
    return _inside(output, parts[1:] if parts[0] == "output" else parts)


def _inside(value: Any, parts: tuple[str, ...]) -> Any:
    for part in parts:
        if value is None or isinstance(value, Tensor):
            return MISSING
        if isinstance(value, (dict, Mapping)):
            value = value_of(value, part)
        elif part.isdigit() and isinstance(value, (tuple, list)):
            value = value[int(part)] if int(part) < len(value) else MISSING
        else:
            value = getattr(value, part, MISSING)
    return value


def value_of(mapping: Any, key: str) -> Any:
    """Return what a mapping has for a key, or MISSING, even if reading it raises: a check must not."""
    if type(mapping) is dict:
        return mapping.get(key)
    try:
        return mapping.get(key)
    except Exception:  # a third-party mapping may load its values lazily, for instance
        return MISSING


def _index_of(module: nn.Module, name: str) -> int:
    names = parameters_of(module)
    return names.index(name) if name in names else len(names)


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's ``forward``."""
    kind: Any = type(module)
    return positional(kind.forward, 1) if is_compiling() else of_module(module)


def stacked(value: Any) -> torch.Size | str | None:
    """Return the shape of a list or tuple of tensors as if they were stacked.

    Returns:
        The shape; a description of what is wrong if they cannot be stacked; None for anything else.
    """
    if not isinstance(value, (tuple, list)) or not value or not all(isinstance(part, Tensor) for part in value):
        return None
    shape = value[0].shape
    for index, part in enumerate(value):
        if part.shape != shape:
            return f"holds {shape_of(value[0])} at 0, but {shape_of(part)} at {index}"
    return torch.Size((len(value), *shape))


def shown(value: Any) -> str:
    """Write a tensor's shape, ``[2, 9]``, or that of a list of tensors: ``3 x [2, 9]``."""
    return shape_of(value) if isinstance(value, Tensor) else f"{len(value)} x {shape_of(value[0])}"


def not_there(key: str, there: Any) -> str:
    """Return a message about a missing tensor: close matches of its name, and the tensors that are there."""
    found = list(tensors_in(there))
    close = close_matches(key, (name for name, _ in found)).partition("; there are")[0]
    listed = ", ".join(f"{name or 'a tensor'} {shape_of(tensor)}" for name, tensor in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    missing = f"there is no {key!r}{close or '.'}" if key else "it is not a tensor."
    return f"{missing} There is: {listed or _kind(there)}{more}"


def all_inputs(call: Call) -> dict[str, Any]:
    """Return a call's arguments by name: the keys of a features dict, and parameter names for the others."""
    names = parameters_of(call.module)
    named = {names[index] if index < len(names) else str(index): value for index, value in enumerate(call.args)}
    named |= call.kwargs
    first = call.first
    if isinstance(first, Mapping):
        named = {name: value for name, value in named.items() if value is not first}
        named = {**{key: value_of(first, key) for key in first}, **named}
    return named


def all_outputs(output: Any) -> Any:
    """Return an output in a form in which its tensors have names."""
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {"output": output} if isinstance(output, Tensor) else output


def _kind(value: Any) -> str:
    return f"no tensor in {type(value).__name__}" if value else "nothing" if value is not None else "None"
