"""What a base model returns for a few tokens: recorded by ``save`` and compared by ``load``.

The weights tell less: training them hardly moves their mean, and an activation or an epsilon is not a weight.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..errors import LoadError
from ..prompts import probes
from ..prompts.refusals import level_of_caller
from .manifest import SavedTransformer

_TOKENS, _COMPONENTS = 8, 4

# How far rows may be apart, relative to their length: devices and releases round differently.
TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
TOLERANCE = 1e-3


def sample_of(transformer: Any) -> dict[str, Any]:
    """Return ids and the first components of their rows, from a backbone with its adapters off; ``{}`` if none.

    There are none if nothing can be measured, if the backbone takes more than ids, or if it is itself random.
    """
    backbone = releases.plain_backbone(transformer)
    if not probes.can_measure(backbone):
        return {}
    try:
        ids = probes.text_ids(backbone, _TOKENS)
        first, again = _rows(backbone, ids), _rows(backbone, ids)
    except Exception:  # models that take images or are split over machines: each raises its own error
        return {}
    if not _apart(first, again) <= TOLERANCE:
        return {}
    return {"ids": ids.tolist(), "rows": [[float(f"{value:.6g}") for value in row] for row in first.tolist()]}


def warn_if_another(saved: SavedTransformer, transformer: Any, base: str, how: str, named_by: Path) -> bool:
    """Warn if a base model, still without adapters, is not what it was when the adapter was saved.

    Returns:
        Whether it is a different one.

    Raises:
        LoadError: If what was recorded about it is damaged.
    """
    now, far = state.fingerprint(releases.plain_backbone(transformer)), _moved(saved.sample, transformer, named_by)
    if saved.fingerprint and now and not math.isclose(now, saved.fingerprint, rel_tol=1e-3):
        what = "its weights are not those"
    elif far is not None:
        what = f"its weights or layers, whose rows are {far:.0e} of their length apart, are not those"
    else:
        return False
    warnings.warn(
        f"{base}: {what} that the adapter was saved with, so the embeddings will differ: give the base model that it "
        f"was trained on with {how}; changes made to a base model in memory are not saved with its adapter",
        stacklevel=level_of_caller(),
    )
    return True


def _moved(sample: dict[str, Any], transformer: Any, named_by: Path) -> float | None:
    """Return how far the rows are from those in ``sample``, relative to their length; None if they are the same."""
    backbone = releases.plain_backbone(transformer)
    if not sample or not probes.can_measure(backbone):
        return None
    weight = backbone.get_input_embeddings().weight
    try:
        ids = torch.tensor(sample["ids"], dtype=torch.int64, device=weight.device)
        saved = torch.tensor(sample["rows"], dtype=torch.float64)
        if saved.shape != (len(ids), _COMPONENTS) or not 0 <= int(ids.min()) <= int(ids.max()) < len(weight):
            raise ValueError(f"{len(ids)} ids and {tuple(saved.shape)} components")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoadError(f"{named_by}: damaged: invalid sample: {type(error).__name__}: {error}") from error
    far = _apart(_rows(backbone, ids), saved)
    return None if far <= TOLERANCES.get(weight.dtype, TOLERANCE) else far


def _rows(backbone: Any, ids: Tensor) -> Tensor:
    features = {"input_ids": ids.unsqueeze(0), "attention_mask": torch.ones_like(ids).unsqueeze(0)}
    with probes.at_rest(backbone):
        rows = probes.rows_of(backbone, backbone, features)
    return rows[0, :, :_COMPONENTS].double().cpu()


def _apart(one: Tensor, other: Tensor) -> float:
    far = float((one - other).norm() / other.norm().clamp(min=1e-30))
    return math.inf if math.isnan(far) else far
