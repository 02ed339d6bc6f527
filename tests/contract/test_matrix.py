"""Every architecture, padding side, method and pooling: an embedding is right, or refused by name when attaching."""

from __future__ import annotations

import pytest
import torch

from peft_hooks import prompt_mask_hooks

from ..matrix import BACKBONES, POOLINGS, measure
from ..methods import CACHE_METHODS, METHODS, NO_CACHE
from .support import TEXTS, forward, options_for, shared

TYPES = {"prefix_tuning": "PREFIX_TUNING", "cartridge": "CARTRIDGE"}

MODELS = [(architecture, side, method) for architecture, side in BACKBONES for method in METHODS]


def must_be_refused(architecture: str, method: str) -> bool:
    return method in CACHE_METHODS and architecture in NO_CACHE


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
    else:
        assert cell.outcome == "right", cell


@pytest.mark.parametrize(("architecture", "side", "method"), MODELS)
def test_features_passed_twice_are_unchanged_and_give_the_same(architecture: str, side: str, method: str) -> None:
    """The caller's dict keeps its keys, its tensors and their values."""
    if must_be_refused(architecture, method):
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
