"""Pure functions on the tensors of a features dict. None reads a value on the host: shapes decide, kernels do the rest.

Throughout, ``mask`` is an attention mask ``[batch, seq]`` of any dtype, 1 (or True) where a token counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
    return mask.to(torch.int32).argmax(dim=1)


def take_rows(token_embeddings: Tensor, index: Tensor) -> Tensor:
    """Return ``token_embeddings[b, index[b]]`` for every row ``b``, ``[batch, hidden]``."""
    wide = index.view(-1, 1, 1).expand(-1, 1, token_embeddings.size(2))
    return token_embeddings.gather(1, wide).squeeze(1)


def padding_last(token_embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move what is not counted to the end of each row and keep the order of what is, wherever the padding was.

    Pooling's weighted mean and prompt exclusion read absolute positions in one release or another: before 6.2 and
    before 6.0. In this layout all releases agree.
    """
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    wide = order.unsqueeze(-1).expand_as(token_embeddings)
    return token_embeddings.gather(1, wide), mask.gather(1, order)


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


def positions(mask: Tensor, length: int, offset: int = 0, beyond: bool = True) -> Tensor:
    """Return position ids of the last ``length`` columns, ``int64[batch, length]``, counted over what is not padding.

    Args:
        mask: ``[batch, past + length]`` of ones and zeros, virtual tokens included.
        length: How many positions the backbone is given.
        offset: The first position: ``padding_idx + 1`` in backbones of RoBERTa's kind, 0 in others.
        beyond: Whether what follows the last counted token counts on, as the tokens of a query expansion do, which
            are read although nothing attends to them. It takes three times as long.
    """
    counted = mask.cumsum(dim=1, dtype=torch.int64)
    if beyond:
        reached = mask.bool() | (counted == counted[:, -1:])  # what counts, and what follows the last that does
        counted = reached.cumsum(dim=1)
    if offset != 1:
        counted.add_(offset - 1)
    counted.clamp_min_(offset)
    before = mask.size(1) - length
    return counted[:, before:] if before else counted
