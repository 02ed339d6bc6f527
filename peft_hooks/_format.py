"""Write tensors as text: ``attention_mask i64[2,18] kept 24/36 pad right``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def dtype_of(dtype: torch.dtype) -> str:
    """Return a dtype's short name: ``f32``, ``bf16``, ``i64``, ``bool``."""
    name = str(dtype).removeprefix("torch.")
    letters = name.rstrip("0123456789")
    return _SHORT.get(letters, letters) + name[len(letters) :]


def shape_of(tensor: Tensor) -> str:
    """Return a tensor's shape: ``[2, 18, 384]``."""
    return str(list(tensor.shape))


def nested_shape(value: Tensor) -> str:
    """Return the shape of a nested tensor, whose rows have different lengths: ``[2,*,8]``."""
    sizes = []
    for place in range(value.dim()):
        try:
            sizes.append(str(int(value.size(place))))
        except Exception:  # the dimension in which the rows differ
            sizes.append("*")
    return f"[{','.join(sizes)}]"


def tensor_line(name: str, tensor: Tensor) -> str:
    """Return one tensor as text. A mask's values are read to say what it keeps, which synchronizes with the device."""
    if tensor.is_nested:
        return f"{name} nested{nested_shape(tensor)}"
    line = f"{name} {dtype_of(tensor.dtype)}[{','.join(map(str, tensor.shape))}]"
    if name.endswith("attention_mask") and tensor.dim() == 2 and tensor.numel():
        kept = tensor.bool()
        line += f" kept {int(kept.sum())}/{tensor.numel()} pad {padding_of(kept)}"
    return line


def padding_of(kept: Tensor) -> str:
    """Return where a mask ``bool[batch, seq]`` has padding: ``none``, ``left``, ``right``, ``inside`` or ``mixed``."""
    sides = {"left": not bool(kept[:, 0].all()), "right": not bool(kept[:, -1].all())}
    if bool(kept.all()):
        return "none"
    if all(sides.values()):
        return "mixed"
    return next((side for side, padded in sides.items() if padded), "inside")


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in dicts, tuples, lists and ``ModelOutput`` with its name, such as ``hidden_states.0``.

    Anything that cannot be read is skipped.
    """
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in _items_of(value):
            yield from tensors_in(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, inner in enumerate(value):
            yield from tensors_in(inner, f"{name}.{index}" if name else str(index))


def _items_of(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    try:
        return list(mapping.items())
    except Exception:  # a third-party mapping may compute its values as they are read
        return []


def difference(value: float) -> str:
    """Return a difference as text: ``0.5753``, or ``1e-07`` where that would be all zeros."""
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.0e}" if value else "0"
