"""What counts as the same, in half precision and with large components: judged by what rounding makes of the model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import check_padding_invariance, diagnose, prompt_mask_hooks
from peft_hooks.testing import TEXTS

from ...tools.checks import RELEASE, needs, unchanged
from ...tools.methods import backbone_of
from ...tools.wording import assert_says

HALF = [torch.float16, torch.bfloat16]
DECODERS = [("llama", "lasttoken"), ("qwen3", "lasttoken"), ("gpt2", "lasttoken"), ("llama", "mean")]


@pytest.fixture(scope="session")
def enlarged(plain: Any) -> Any:
    """Scale a decoder's last norm, so that embeddings have components of about ``size``, as real decoders' have."""

    def make(architecture: str, side: str = "right", pooling: str = "lasttoken", size: float = 50.0) -> Any:
        model = plain(architecture, padding_side=side, pooling=pooling)
        backbone = backbone_of(model)
        norm = backbone.norm if hasattr(backbone, "norm") else backbone.ln_f
        largest = float(model.encode(list(TEXTS), convert_to_tensor=True).abs().max())
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.mul_(size / largest)
        return model

    return make


@pytest.fixture(scope="session")
def tuned(put: Any, enlarged: Any) -> Any:
    """Return what makes it."""

    def make(dtype: torch.dtype, architecture: str = "llama", side: str = "left", pooling: str = "lasttoken") -> Any:
        model = enlarged(architecture, side, pooling)
        put(model, "prompt_tuning")
        return model.to(dtype)

    return make


class Mixed(nn.Module):
    """Adds a part of the mean of the batch: a fault of that size."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        rows = features["sentence_embedding"]
        return {**features, "sentence_embedding": rows + self.part * rows.mean(dim=0, keepdim=True)}


def faulty(model: Any, part: float) -> Any:
    model.append(Mixed(part))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("architecture", "pooling"), DECODERS)
def test_large_components_with_the_hooks_are_the_same_in_every_dtype(
    architecture: str, pooling: str, side: str, dtype: torch.dtype, tuned: Any
) -> None:
    """The doctor and the check, which says by what it judged; without the hooks the fault is found in each."""
    model = tuned(dtype, architecture, side, pooling)
    with prompt_mask_hooks(model), unchanged(model):
        report = check_padding_invariance(model, TEXTS)
        assert report, str(report)
        assert diagnose(model, TEXTS).ok
    if report.largest_difference > report.tolerance:  # some releases round alike in every batch
        assert dtype in HALF
        assert_says(report, f"rounding in {str(dtype)[6:]} | measured")
        assert report.allowed < 25  # half of a component: a wrong embedding is off by more
    if RELEASE >= (6, 2):
        assert not check_padding_invariance(model, TEXTS)
        assert not diagnose(model, TEXTS).ok


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("architecture", "pooling"), DECODERS)
def test_a_plain_decoder_in_half_precision_is_healthy(
    architecture: str, pooling: str, dtype: torch.dtype, enlarged: Any
) -> None:
    needs(RELEASE >= (6, 2), "reads left padding in some poolings")
    side = "right" if architecture == "gpt2" else "left"
    diagnosis = diagnose(enlarged(architecture, side, pooling).to(dtype), TEXTS)
    assert diagnosis.ok, str(diagnosis)
    assert_says(diagnosis.runs[0].judged_by, "rounding in")
    assert_says(" ".join(str(diagnosis).split()), f"rounding in {str(dtype)[6:]}")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("dtype", "part"), [(torch.float32, 1e-3), (torch.float16, 0.1), (torch.bfloat16, 0.3)], ids=str
)
def test_a_fault_is_found_whatever_the_dtype_and_the_size(
    dtype: torch.dtype, part: float, large: bool, plain: Any, enlarged: Any
) -> None:
    model = enlarged("llama") if large else plain("llama", pooling="lasttoken")
    faulty(model, part).to(dtype)
    assert not check_padding_invariance(model, TEXTS)
    (found,) = diagnose(model, TEXTS).findings
    assert (found.code, found.place) == ("PH011", "Mixed '2'")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_fault_is_found_in_embeddings_of_unit_length(dtype: torch.dtype, plain: Any) -> None:
    """Whose components are small, so that a tolerance made for large ones would let it pass."""
    right, wrong = plain("bert", normalize=True).to(dtype), plain("bert").to(dtype)
    assert check_padding_invariance(right, TEXTS)
    faulty(wrong, 0.3).append(plain("bert", normalize=True)[2])
    assert not check_padding_invariance(wrong, TEXTS)


def test_a_tolerance_that_is_asked_for_goes_by_the_size_of_the_embeddings(tuned: Any) -> None:
    model = tuned(torch.float16)
    with prompt_mask_hooks(model):
        report = check_padding_invariance(model, TEXTS, tolerance=1e-2)
        assert report
        assert report.tolerance == 1e-2
        assert 0.1 < report.allowed < 1
        assert_says(report, "tolerance 1e-02 | the largest component")
        assert not check_padding_invariance(model, TEXTS, tolerance=1e-7)
        assert not diagnose(model, TEXTS, tolerance=1e-7).ok
    if RELEASE >= (6, 2):
        assert not check_padding_invariance(model, TEXTS, tolerance=1e-2)


def test_a_tolerance_for_components_below_one_is_taken_as_it_is(plain: Any) -> None:
    report = check_padding_invariance(plain("bert", normalize=True), TEXTS, tolerance=1e-3)
    assert report.allowed == report.tolerance == 1e-3
    assert "(tolerance 1e-03)" in str(report)


def test_in_float32_nothing_is_measured_where_embeddings_are_the_same(plain: Any) -> None:
    report = check_padding_invariance(plain(), TEXTS)
    assert report.allowed == report.tolerance == 1e-4
    assert report.judged_by == "tolerance 1e-04"


def test_measuring_leaves_no_hook_and_no_random_state_behind(adapted: Any) -> None:
    model = adapted("llama", padding_side="left", pooling="lasttoken").to(torch.bfloat16)
    states = torch.get_rng_state(), random.getstate()
    with prompt_mask_hooks(model), unchanged(model):
        assert "measured" in str(check_padding_invariance(model, TEXTS))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
