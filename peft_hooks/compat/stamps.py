"""Record what modules compute with, to tell later whether it is still the same.

This cannot see everything: a write through ``tensor.data``, NumPy or a detached alias changes only values. Every other
change that is visible without reading values is noticed.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

# The attributes of these are not compared: they are covered in other ways, or do not change.
_NOT_REFERRED = (
    *(nn.Module, Tensor, dict, list, set, type, types.ModuleType),
    *(types.FunctionType, types.MethodType, types.BuiltinFunctionType),
)


class Stamp:
    """A snapshot of what the forward of some modules depends on.

    It covers the attributes of each module (its children, hooks, parameters and buffers, whether it is in training
    mode, which adapters of its layers are active); the version, memory, dtype and strides of each tensor; the
    attributes of objects that modules refer to, such as a config; autocast; and that no optimizer takes a step. Memory
    is kept alive, so that its address is not reused.

    Args:
        roots: The modules, including everything below them.
        device: The type of the device that they run on: ``"cpu"``.

    Raises:
        RuntimeError: If a tensor has no version or address: it was made in ``inference_mode``, or is fake.
    """

    def __init__(self, roots: Iterable[nn.Module], device: str) -> None:
        modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._modules = [(module, _attributes(module)) for module in modules]
        self._others = [(other, _attributes(other)) for other in _referred_to(modules)]
        self._tensors = [_TensorState(tensor) for tensor in _tensors_of(modules)]
        self._world = _world(device)
        self._steps = _Steps()

    def holds(self, device: str) -> bool:
        """Tell whether everything is unchanged, as far as that can be seen."""
        if self._world != _world(device) or self._steps.taken:
            return False
        try:
            return self._same_attributes() and all(held.is_same() for held in self._tensors)
        except Exception:  # an attribute's replacement cannot be compared, or a tensor lost its memory
            return False

    def _same_attributes(self) -> bool:
        # One comparison of dicts, by identity first: this runs in every forward, for every module.
        for thing, attributes in self._modules:
            if vars(thing) != attributes:
                return False
        return all(vars(thing) == attributes for thing, attributes in self._others)


class _Steps:
    """Whether any optimizer has taken a step. A fused one writes to weights without raising their versions.

    PyTorch 2.13: ``torch.optim.AdamW(fused=True)``, the default of transformers' trainer, and all other fused ones.
    """

    def __init__(self) -> None:
        self.taken = False
        this = weakref.ref(self)

        def note(*_: object) -> None:
            steps = this()
            if steps is not None:
                steps.taken = True

        weakref.finalize(self, register_optimizer_step_post_hook(note).remove)


class _TensorState:
    """A tensor, with what shows whether it was written to or its memory was replaced."""

    __slots__ = ("_dtype", "_pointer", "_storage", "_stride", "_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version
        self._storage = tensor.untyped_storage()
        self._pointer = tensor.data_ptr()
        self._dtype = tensor.dtype
        self._stride = tensor.stride()

    def is_same(self) -> bool:
        tensor = self._tensor
        if tensor._version != self._version or tensor.data_ptr() != self._pointer:
            return False
        return tensor.dtype is self._dtype and tensor.stride() == self._stride


def _attributes(thing: Any) -> dict[str, Any]:
    """Return an object's attributes, with collections copied."""
    return {name: _copied(value) for name, value in vars(thing).items()}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, set)):
        return value.copy()
    return value


def _referred_to(modules: Iterable[nn.Module]) -> list[Any]:
    """Return the objects in modules' attributes that have attributes themselves, such as a config."""
    found: dict[int, Any] = {}
    for module in modules:
        for value in vars(module).values():
            if hasattr(value, "__dict__") and not isinstance(value, _NOT_REFERRED):
                found[id(value)] = value
    return list(found.values())


def _tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for module in modules:
        for tensor in _own_tensors(module):
            found[id(tensor)] = tensor
    return list(found.values())


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
        if isinstance(value, Tensor):
            yield value


def _world(device: str) -> tuple[Any, ...]:
    """Return the global settings that all modules depend on."""
    return (
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
    )
