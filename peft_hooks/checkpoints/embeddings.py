"""Embeddings of a few texts by the whole model: recorded by ``save`` and compared by ``load``.

They decide whether the loaded model is the one that was saved, whatever changed in between: a file edited by hand, the
base model, or a module that was only changed in memory.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import sentence_transformers as releases
from ..compat.quiet import quiet
from ..doctor.invariance import encoder_of
from ..errors import LoadError, PeftHooksError
from ..prompts import probes
from ..prompts.refusals import level_of_caller
from .changed import changed_files
from .manifest import FILE
from .sample import TOLERANCE, TOLERANCES

_WORDS, _SHORTEST, _NUMBERS = 48, 4, 16

_RANDOM = 1e-3  # two embeddings further apart than this mean that the model itself is random


def embeddings_of(model: Any, texts: list[str] | None = None) -> dict[str, Any]:
    """Return texts and some numbers for the embedding of each; ``{}`` if the model gives no embeddings.

    Args:
        model: The model with its hooks on.
        texts: The texts of an earlier call; by default short ones, and one with tokens from the whole vocabulary.
    """
    transformer = next((found for _, found in releases.transformers_of(model)), None)
    if transformer is None or not probes.can_measure(model):
        return {}
    try:
        asked = texts_for(transformer) if texts is None else texts
        with probes.at_rest(model), random_as_before():
            found = _numbers(model, asked)
            again = _numbers(model, asked) if texts is None else found
    except PeftHooksError:
        raise
    except Exception:  # a model that needs a task, an image or another machine: each raises its own error
        return {}
    return {"texts": asked, "numbers": found} if apart(found, again) < _RANDOM else {}


def compare_embeddings(model: Any, saved: dict[str, Any], path: Path) -> None:
    """Compare the embeddings of a loaded model with those recorded when it was saved.

    Raises:
        LoadError: If they differ and a file was changed, or if the model no longer gives any.

    Warns:
        UserWarning: If they differ and no file was changed: because of a base model, a release, or a device.
    """
    if not saved:
        return
    notes, dtype = path / FILE, dtype_of(model)
    try:
        with quiet(), probes.at_rest(model), random_as_before():
            far = apart(_numbers(model, saved["texts"]), saved["numbers"])
    except PeftHooksError:
        raise
    except Exception as error:
        raise LoadError(f"{path}: the model can no longer encode texts: {probes.in_a_line(error)}") from error
    # Half precision rounds differently on other devices; an edit in float32 should not go unnoticed.
    if far <= min(probes.tolerance_of(dtype), max(1e-5, 100 * torch.finfo(dtype).eps)):
        return
    said = f"its embeddings of a few texts differ by {far:.0e} of their length from those that it was saved with"
    changed = list(changed_files(path, notes))
    if changed:
        raise LoadError(
            f"{path / changed[0]}: it was changed since peft_hooks.save wrote it, and {said}: restore it, or change "
            f"the loaded model and save that"
        )
    if far > TOLERANCES.get(dtype, TOLERANCE):
        warnings.warn(
            f"{path}: {said}, though none of its files was changed: the cause is another release of a library, another "
            f"device, or another base model",
            stacklevel=level_of_caller(),
        )


def _numbers(model: Any, texts: list[str]) -> list[list[float]]:
    routes: list[str | None] = [*releases.routes_of(model)] or [None]
    return [_numbers_of(row) for route in routes for row in _encoded(model, texts, route)]


def texts_for(transformer: Any) -> list[str]:
    """Return texts of clearly different lengths, one of them with tokens from the whole vocabulary."""
    tokenizer = transformer.tokenizer
    backbone = releases.plain_backbone(transformer)
    count = max(_SHORTEST, min(_WORDS, probes.affordable(backbone, 3)))
    special, size = set(tokenizer.all_special_ids), len(tokenizer)
    ids = [number for number in range(0, size, max(1, size // count)) if number not in special]
    return ["a cat", "the dog sleeps on the warm sofa", str(tokenizer.decode(ids[:count]))]


def _encoded(model: Any, texts: list[str], route: str | None) -> list[Tensor]:
    options = {} if route is None else {"task": route}
    batch: list[Any] = [[texts[0], text] for text in texts] if releases.is_cross_encoder(model) else texts
    return encoder_of(model, options)(batch)


def _numbers_of(row: Tensor) -> list[float]:
    """Return a few numbers that tell an embedding of any width apart from another close to it."""
    flat = row.double().flatten().cpu()
    place = torch.arange(1, flat.numel() + 1, dtype=torch.float64)
    signs = torch.stack([torch.cos(place * (number + 1) * 1.7) for number in range(_NUMBERS)])
    return [float(f"{value:.7g}") for value in (signs @ flat).tolist()]


def apart(one: Any, other: Any) -> float:
    """Return how far numbers are apart, relative to their length; infinity if they cannot be compared."""
    try:
        found, known = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return math.inf
    if found.shape != known.shape or found.dim() != 2:
        return math.inf
    far = float(((found - known).norm(dim=1) / known.norm(dim=1).clamp(min=1e-30)).max())
    return math.inf if math.isnan(far) else far


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the coarsest floating-point type among a model's parameters."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


@contextlib.contextmanager
def random_as_before() -> Iterator[None]:
    """Restore the global random state after a block: loading draws random numbers for weights that it replaces."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
