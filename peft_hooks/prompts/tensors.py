"""Pure functions on the tensors of a features dict. None reads a value on the host: shapes decide, kernels do the rest.

Throughout, ``mask`` is an attention mask ``[batch, seq]`` of any dtype, 1 (or True) where a token counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling


def input_length(features: Mapping[str, Any]) -> int | None:
    """Return how many positions the text takes, padding included, or None if the features do not tell."""
    text = features.get("input_ids")
    if text is None:
        text = features.get("inputs_embeds")
    if not isinstance(text, Tensor):
        return None
    shape = text.shape  # asked once: each question to a tensor takes as long as several to a dict
    return shape[1] if len(shape) >= 2 else None


def extend_mask(mask: Tensor, virtual_tokens: int, counted: bool) -> Tensor:
    """Return ``mask`` with ``virtual_tokens`` columns in front, ``[batch, virtual + seq]``, same dtype and device.

    What ``torch.nn.functional.pad`` comes down to: asking it costs a tenth more.
    """
    return torch.constant_pad_nd(mask, (virtual_tokens, 0), 1 if counted else 0)


def first_counted(mask: Tensor) -> Tensor:
    """Return the index of the first counted position of each row, ``int64[batch]``; 0 in a row that counts nothing."""
    if mask.dtype is torch.bool or is_compiling():  # no argmax of bool, nor of int64 in ONNX
        mask = mask.to(torch.int32)
    return mask.argmax(dim=1)


def rolled(first: Tensor, length: int) -> Tensor:
    """Return an order of columns that begins at ``first`` in each row, 0 to ``length``: ``int64[batch, length]``."""
    columns = torch.arange(length, device=first.device)
    if is_compiling():  # the exporter to ONNX takes no length that is a symbol here, but a tensor of it
        order = columns + first.unsqueeze(1)
        return order.remainder(torch.full((), length, dtype=order.dtype, device=order.device))
    # Of every order that there is, the rows that are wanted: half of the time that dividing takes.
    return torch.cat([columns, columns]).unfold(0, length, 1).index_select(0, first)


def take(tensor: Tensor, order: Tensor) -> Tensor:
    """Return ``tensor[b, order[b, i]]`` for every row ``b``: ``[batch, len, ...]`` in another order of dimension 1."""
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
