"""Every architecture, padding side, method and pooling: an embedding is right, or refused by name when attaching."""

from __future__ import annotations

import peft
import pytest
import torch

from peft_hooks import prompt_mask_hooks

from ..matrix import BACKBONES, POOLINGS, measure
from ..methods import CACHE_METHODS, METHODS, NO_CACHE
from .support import TEXTS, forward, options_for, shared

TYPES = {"prefix_tuning": "PREFIX_TUNING", "cartridge": "CARTRIDGE"}

# With --dist loadgroup one worker builds a model once and runs all its cells.
MODELS = [
    pytest.param(architecture, side, method, marks=pytest.mark.xdist_group(architecture))
    for architecture, side in BACKBONES
    for method in METHODS
]


def must_be_refused(architecture: str, method: str) -> bool:
    return method in CACHE_METHODS and architecture in NO_CACHE


def broken_in_peft(architecture: str, method: str) -> bool:
    """Tell whether PEFT itself raises: 0.16 and 0.17 make a cache of no length for a sliding window (PEFT PR #2735)."""
    version = tuple(int(part) for part in peft.__version__.split(".")[:2])
    return architecture == "gemma3_text" and method in CACHE_METHODS and (0, 16) <= version < (0, 18)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("architecture", "side", "method"), MODELS)
def test_an_embedding_is_the_reference_alone_in_a_batch_and_again_or_it_is_refused_by_name(
    architecture: str, side: str, method: str, pooling: str
) -> None:
    """Each cell equals the float64 reference to 1e-4, but for caches on backbones that have none."""
    cell = measure(architecture, side, method, pooling, hooks=True)
    if cell.outcome == "unavailable":
        assert " has no " in cell.detail
        pytest.skip(cell.detail)
    if must_be_refused(architecture, method):
        assert cell.outcome == "refused", cell
        assert f"the {TYPES[method]} adapter 'default'" in cell.detail
        assert f"the backbone {architecture!r}" in cell.detail
        assert "use PROMPT_TUNING or P_TUNING" in cell.detail
    elif broken_in_peft(architecture, method):
        assert cell.outcome == "refused", cell
        assert "rejects a prefix (ValueError: max_cache_len" in cell.detail
        pytest.skip(f"PEFT {peft.__version__}: {cell.detail}")
    else:
        assert cell.outcome == "right", cell


@pytest.mark.parametrize(("architecture", "side", "method"), MODELS)
def test_features_passed_twice_are_unchanged_and_give_the_same(architecture: str, side: str, method: str) -> None:
    """The caller's dict keeps its keys, its tensors and their values."""
    if must_be_refused(architecture, method) or broken_in_peft(architecture, method):
        pytest.skip(f"{method} on {architecture} is refused")
    model = shared(architecture, side, method)
    features = model.tokenize(list(TEXTS))
    given = dict(features)
    values = {key: value.clone() for key, value in given.items() if isinstance(value, torch.Tensor)}
    with prompt_mask_hooks(model, **options_for(method)):
        first, second = (forward(model, features)["sentence_embedding"] for _ in range(2))
    assert torch.equal(first, second)
    assert list(features) == list(given)
    assert all(features[key] is given[key] for key in given)
    assert all(torch.equal(features[key], values[key]) for key in values)
