"""Every architecture, padding side, method and pooling: an embedding is right, or refused by name when attaching."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_hooks import prompt_mask_hooks

from ..tools.checks import TEXTS, forward, options_for
from ..tools.matrix import BACKBONES, POOLINGS, broken_in_peft, measure, why_not
from ..tools.methods import METHODS

# With --dist loadgroup one worker builds a model once and runs all its cells.
MODELS = [
    pytest.param(architecture, side, method, marks=pytest.mark.xdist_group(architecture))
    for architecture, side in BACKBONES
    for method in METHODS
]


@pytest.mark.cells
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("architecture", "side", "method"), MODELS)
def test_an_embedding_is_the_reference_alone_in_a_batch_and_again_or_it_is_refused_by_name(
    architecture: str, side: str, method: str, pooling: str
) -> None:
    """Each cell equals the float64 reference to 1e-4."""
    cell = measure(architecture, side, method, pooling, hooks=True)
    assert why_not(cell) is None
    if cell.outcome == "unavailable" or broken_in_peft(architecture, method):
        pytest.skip(cell.detail)


@pytest.mark.parametrize(("architecture", "side", "method"), MODELS)
def test_features_passed_twice_are_unchanged_and_give_the_same(
    architecture: str, side: str, method: str, shared: Any
) -> None:
    """The caller's dict keeps its keys, its tensors and their values."""
    if broken_in_peft(architecture, method):
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
