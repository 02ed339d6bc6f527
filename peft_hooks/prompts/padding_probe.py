"""Measure, with the active adapter, whether a text's rows depend on the padding behind it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..compat import sentence_transformers as releases
from . import probes
from .prefix_probe import prefix_put_in

_Features = dict[str, Tensor]


def padding_is_read(transformer: Any) -> str | None:
    """Return a sentence that says how far a text's rows move with the padding behind it, or None if they do not.

    ConvBERT, FNet, Nystromformer and YOSO mix rows whatever the mask says. Nothing can be measured on meta or fake
    tensors, nor with a tokenizer that cannot make short texts.
    """
    outer = releases.backbone_of(transformer)
    virtual = releases.active_virtual_tokens(transformer)
    if not probes.can_measure(outer):
        return None
    affordable = max(8, probes.affordable(outer, 4))  # beyond a window, where the backbone is small
    batch = probes.padded_texts(transformer, min(affordable, probes.longest_text(transformer, virtual)))
    if batch is None:
        return None
    with probes.probing_active(transformer), prefix_put_in(transformer):
        try:
            return _measured(transformer, outer, batch)
        except Exception:  # a backbone that cannot run without an adapter either proves nothing
            return None


def _measured(transformer: Any, outer: Any, batch: _Features) -> str | None:
    length = int(batch["attention_mask"][0].sum())
    alone = {name: value[:1, :length] for name, value in batch.items()}
    rows, row = _rows(transformer, outer, batch), _rows(transformer, outer, alone)
    far = probes.apart(rows[:1, : row.size(1)], row)
    if math.isnan(far) or not probes.moves(far, 0.0, row.dtype):
        return None  # NaN weights give NaN rows, alone and in a batch
    beside = {name: value[:, :length] for name, value in batch.items()}
    beside["attention_mask"] = torch.ones_like(beside["attention_mask"])
    moved = probes.apart(_rows(transformer, outer, beside)[:1], row)
    if not probes.moves(far, moved, row.dtype):
        return None
    if far <= 4 * moved:
        return f"gives a text different rows in a batch with another text, by {moved:.0e} of their length"
    return f"reads padding: a text's rows move by {far:.0e} of their length with the padding behind it"


def _rows(transformer: Any, outer: Any, features: _Features) -> Tensor:
    return probes.rows_of(releases.plain_backbone(transformer), outer, features)
