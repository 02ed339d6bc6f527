"""The parameters and buffers of modules, by the tensors themselves and by where their numbers are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Owned:
    """A parameter or buffer of a module."""

    kind: str
    name: str
    module: nn.Module
    tensor: Tensor


def owned_by(modules: Iterable[nn.Module]) -> Iterator[Owned]:
    for module in modules:
        for name, tensor in vars(module).get("_parameters", {}).items():
            if tensor is not None:
                yield Owned("parameter", name, module, tensor)
        for name, tensor in vars(module).get("_buffers", {}).items():
            if isinstance(tensor, Tensor):
                yield Owned("buffer", name, module, tensor)


def place_of(tensor: Tensor) -> tuple[Any, int] | None:
    """Return where a tensor's numbers are kept; None if that cannot be told, or there are none."""
    try:
        place = tensor.untyped_storage().data_ptr()
    except Exception:  # some tensors have no storage
        return None
    return (tensor.device, place) if place else None
