"""Small forwards of a text behind a prefix, shared by the probes of a prefix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import backbones
from . import probes

# Tokens of the text, and of a shorter text that is padded to the same length.
LENGTH, SHORTER = 5, 3


class _Prefix(nn.Module):
    """Stand in for an adapter's prompt encoder of any method: PEFT reads its rows in one of these two ways."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows.size(0), rows.size(1), _weight=rows)

    def forward(self, indices: Tensor) -> Tensor:
        found: Tensor = self.embedding(indices)
        return found


@contextlib.contextmanager
def in_place_of(peft_model: Any, adapter: str, rows: Tensor) -> Iterator[None]:
    """Replace an adapter's prefix by ``rows``, ``[virtual, 2 * layers * width]``, for a ``with`` block."""
    former = peft_model.prompt_encoder[adapter]
    peft_model.prompt_encoder[adapter] = _Prefix(rows)
    try:
        yield
    finally:
        peft_model.prompt_encoder[adapter] = former


class Texts:
    """A text, long enough to show what a backbone does beyond a window, and a shorter one.

    Attributes:
        ids: The text's tokens, ``int64[length]``.
    """

    def __init__(self, transformer: Any, backbone: Any, virtual: int) -> None:
        self._config = backbone.config
        self.ids = probes.text_ids(backbone, _length(transformer, backbone, virtual))

    @property
    def long(self) -> dict[str, Tensor]:
        """The text alone."""
        return one_text(self.ids)

    @property
    def short(self) -> dict[str, Tensor]:
        """The shorter one alone."""
        return one_text(self.ids[:SHORTER])

    @property
    def both(self) -> dict[str, Tensor]:
        """The text and the shorter one in a batch, padded on the right."""
        padding = getattr(self._config, "pad_token_id", None)
        filler = padding if isinstance(padding, int) and padding >= 0 else 0
        rows = self.ids.repeat(2, 1)
        mask = torch.ones_like(rows)
        rows[1, SHORTER:], mask[1, SHORTER:] = filler, 0
        return {"input_ids": rows, "attention_mask": mask}


def one_text(ids: Tensor) -> dict[str, Tensor]:
    """Return a backbone's inputs for a single text."""
    return {"input_ids": ids.unsqueeze(0), "attention_mask": torch.ones_like(ids).unsqueeze(0)}


def _length(transformer: Any, backbone: Any, virtual: int) -> int:
    """Return the text's length: beyond the window, if one is known and a probe of that length is affordable."""
    window = backbones.window_of(backbone.config)
    beyond = LENGTH if window is None else max(LENGTH, window + virtual + 1)
    room = probes.longest_text(transformer, virtual)
    return beyond if beyond <= min(probes.affordable(backbone, 8), room) else min(LENGTH, room)


def in_a_batch(alone: Tensor, together: Tensor, short: Tensor) -> str | None:
    """Return a message that says how far a text's rows move in a batch, or None if they do not."""
    beside, far = probes.apart(together[:1], alone), probes.apart(together[1:, :SHORTER], short)
    if not probes.moves(far, beside, alone.dtype):
        return None
    return f"gives different rows in a batch with a prefix, by {max(beside, far):.0e} of their length"
