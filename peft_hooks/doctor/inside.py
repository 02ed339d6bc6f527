"""Finds where inside a module a text's result begins to depend on padding or on another text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._format import tensors_in
from .taps import tapped

Sums = tuple[float, ...]
"""What is kept of the tensors of one call: two sums each, so that a large model takes no extra memory."""


@dataclass
class Call:
    """One call of a submodule: its input and output at the positions that belong to the text itself."""

    where: str
    inputs: Sums
    output: Sums = ()


def first_inside(
    module: nn.Module, path: str, own: Tensor, once: Callable[[], Any], again: Callable[[], Any]
) -> str | None:
    """Return the first, innermost submodule whose input at ``own`` is the same in two runs but whose output is not.

    Args:
        module: The module to run.
        path: Its path in the model.
        own: ``bool[batch]`` or ``bool[batch, positions]``: True where both runs have the same values.
        once: Runs the module.
        again: Runs it with other values where ``own`` is False.

    Returns:
        The submodule as text, ``"MultiheadAttention '1.attention'"``; None if it is the module itself.
    """
    with _recorded(module, path, own) as first:
        once()
    with _recorded(module, path, own) as second:
        again()
    for one, other in zip(first, second):  # in the order they returned: inner calls before outer ones
        if one.inputs and _same(one.inputs, other.inputs) and not _same(one.output, other.output):
            return one.where
    return None


def _same(first: Sums, second: Sums) -> bool:
    return len(first) == len(second) and all(map(_close, first, second))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))


@contextlib.contextmanager
def _recorded(module: nn.Module, path: str, own: Tensor) -> Iterator[list[Call]]:
    """Record every call of a submodule, in the order they return, within a block."""
    running: list[Call] = []
    returned: list[Call] = []

    def enter(name: str, inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(Call(f"{type(inner).__name__} '{path}.{name}'", _sums((args, kwargs), own)))

    def leave(name: str, inner: nn.Module, output: Any) -> None:
        call = running.pop()
        call.output = _sums(output, own)
        returned.append(call)

    with tapped([(name, inner) for name, inner in module.named_modules() if name], received=enter, returned=leave):
        yield returned


def _sums(value: Any, own: Tensor) -> Sums:
    """Return the sum and the sum of squares, at ``own``, of each tensor that has its dimensions."""
    parts = [
        tensor[own.to(tensor.device)].double()
        for _, tensor in tensors_in(value)
        if tensor.layout is torch.strided and not tensor.is_nested and tensor.shape[: own.dim()] == own.shape
    ]
    return tuple(float(number) for part in parts for number in (part.sum(), part.square().sum()))
