"""Where inside a module a text's result begins to depend on what is not its own: on padding, or on another text."""

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
"""What is kept of the tensors of one call: two sums of each, so that a large model costs no memory."""


@dataclass
class Call:
    """One call of a submodule, and what it took and gave of the positions that are a text's own."""

    where: str
    took: Sums
    gave: Sums = ()


def first_inside(
    module: nn.Module, path: str, own: Tensor, once: Callable[[], Any], again: Callable[[], Any]
) -> str | None:
    """Return the innermost submodule that first takes the same for ``own`` in two runs, and gives something else.

    Args:
        module: What is run.
        path: Where it is in its model.
        own: ``bool[batch]`` or ``bool[batch, positions]``: what has the same values in both runs.
        once: Runs the module.
        again: Runs it with other values where ``own`` is False.

    Returns:
        The submodule as text, ``"MultiheadAttention '1.attention'"``; None if the module does it by itself.
    """
    with _recorded(module, path, own) as first:
        once()
    with _recorded(module, path, own) as second:
        again()
    for one, other in zip(first, second):  # in the order in which they returned, inner ones before outer ones
        if one.took and _same(one.took, other.took) and not _same(one.gave, other.gave):
            return one.where
    return None


def _same(first: Sums, second: Sums) -> bool:
    return len(first) == len(second) and all(map(_close, first, second))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))


@contextlib.contextmanager
def _recorded(module: nn.Module, path: str, own: Tensor) -> Iterator[list[Call]]:
    """Record every call of a submodule when it returns, for the length of a block."""
    running: list[Call] = []
    returned: list[Call] = []

    def got(name: str, inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(Call(f"{type(inner).__name__} '{path}.{name}'", _sums((args, kwargs), own)))

    def gave(name: str, inner: nn.Module, output: Any) -> None:
        call = running.pop()
        call.gave = _sums(output, own)
        returned.append(call)

    with tapped([(name, inner) for name, inner in module.named_modules() if name], got=got, gave=gave):
        yield returned


def _sums(value: Any, own: Tensor) -> Sums:
    """Return the sum and the sum of squares of a text's own part of each tensor that has the dimensions of ``own``."""
    parts = [
        tensor[own.to(tensor.device)].double()
        for _, tensor in tensors_in(value)
        if tensor.layout is torch.strided and not tensor.is_nested and tensor.shape[: own.dim()] == own.shape
    ]
    return tuple(float(number) for part in parts for number in (part.sum(), part.square().sum()))
