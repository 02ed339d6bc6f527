"""Pure functions on the tensors of a features dict. None of them reads a value on the host; only shapes decide.

Throughout, ``mask`` is an attention mask ``[batch, seq]`` of any dtype, 1 (or True) where a token counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling


def input_length(features: Mapping[str, Any]) -> int | None:
    """Return how many positions the text takes, including padding, or None if the features do not say."""
    text = features.get("input_ids")
    if text is None:
        text = features.get("inputs_embeds")
    if not isinstance(text, Tensor):
        return None
    shape = text.shape  # read once: each access to a tensor takes as long as several to a dict
    return shape[1] if len(shape) >= 2 else None


def extend_mask(mask: Tensor, virtual_tokens: int, counted: bool) -> Tensor:
    """Return ``mask`` with ``virtual_tokens`` columns in front, ``[batch, virtual + seq]``, same dtype and device.

    This is what ``torch.nn.functional.pad`` calls; going through it takes a tenth longer.
    """
    return torch.constant_pad_nd(mask, (virtual_tokens, 0), 1 if counted else 0)


def first_counted(mask: Tensor) -> Tensor:
    """Return the index of the first counted position of each row, ``int64[batch]``; 0 in a row without any."""
    if mask.dtype is torch.bool or is_compiling():  # there is no argmax of bool, nor of int64 in ONNX
        mask = mask.to(torch.int32)
    return mask.argmax(dim=1)


def rolled(first: Tensor, length: int) -> Tensor:
    """Return column orders that begin at ``first`` (0 to ``length``) and wrap around: ``int64[batch, length]``."""
    columns = torch.arange(length, device=first.device)
    if is_compiling():  # here the ONNX exporter does not take a symbolic length, but a tensor of it
        order = columns + first.unsqueeze(1)
        return order.remainder(torch.full((), length, dtype=order.dtype, device=order.device))
    # Select from all possible orders: this takes half as long as a remainder.
    return torch.cat([columns, columns]).unfold(0, length, 1).index_select(0, first)


def take(tensor: Tensor, order: Tensor) -> Tensor:
    """Reorder dimension 1 of ``[batch, len, ...]``: return ``tensor[b, order[b, i]]`` for every row ``b``."""
    if tensor.dim() == 2:
        return tensor.gather(1, order)
    wide = order.view(*order.shape, *(1,) * (tensor.dim() - 2))
    return tensor.gather(1, wide.expand(*order.shape, *tensor.shape[2:]))


def leave_out(mask: Tensor, start: int, length: int | Tensor) -> Tensor:
    """Return ``mask`` with the columns from ``start`` to ``start + length`` not counted.

    Args:
        mask: ``[batch, seq]``.
        start: First column.
        length: How many columns: an int, or a tensor ``[1]`` or ``[batch]``, which is not read on the host.
    """
    if isinstance(length, Tensor):
        length = length.to(mask.device).view(-1, 1)
    position = torch.arange(mask.size(1), device=mask.device).unsqueeze(0)
    return mask.masked_fill((position >= start) & (position < start + length), 0)
