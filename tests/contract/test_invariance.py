"""``check_padding_invariance``: the proof that a user can run, and the inputs that users give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import PaddingReport, check_padding_invariance, prompt_mask_hooks

from ..tools.checks import RELEASE, TEXTS, assert_right, distance, encoded, needs, options_for, unchanged, with_pooling
from ..tools.methods import METHODS, backbone_of
from ..tools.wording import assert_says

EMPTY = ("a cat", "", "the dog sleeps on the warm sofa")
LONG = " ".join(TEXTS * 40)


# --- the report -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_with_hooks_every_method_passes_the_check(method: str, shared: Any) -> None:
    """The report is true, says so, and names every text."""
    model = shared("llama", "left", method)
    with prompt_mask_hooks(model, **options_for(method)):
        report = check_padding_invariance(model, TEXTS)
    assert isinstance(report, PaddingReport)
    assert report
    assert report.ok
    assert bool(report) is True
    assert [row.text for row in report.differences] == list(TEXTS)
    assert report.tolerance == 1e-4
    assert 0 <= report.largest_difference <= 1e-4
    assert_says(report, "6 embeddings are the same")
    assert "(tolerance 1e-04)" in str(report)


def test_without_hooks_the_check_finds_a_batch_that_moves_an_embedding(adapted: Any) -> None:
    """Left-padded prompt tuning depends on its batch on every release that does not crash."""
    model = adapted("gpt2", padding_side="left")
    needs(RELEASE >= (3, 3), "Pooling crashes without hooks")
    with unchanged(model):
        report = check_padding_invariance(model, TEXTS)
    assert not report
    assert not report.ok
    assert report.largest_difference == report.worst.difference > 1e-2
    assert report.worst in report.differences
    assert report.worst.batch_size > 1
    assert_says(str(report), f"6 embeddings depend on their batch | {report.worst.difference:.2e}")
    assert repr(report.worst.text) in str(report) or "..." in str(report)
    assert str(report).endswith(f"in a batch of {report.worst.batch_size}")


def test_without_hooks_the_check_finds_the_mask_that_the_newest_release_makes_up(adapted: Any) -> None:
    """Since 6.2 Pooling averages padding over a mask of ones."""
    needs(RELEASE >= (6, 2), "extends the mask itself, or crashes")
    assert not check_padding_invariance(adapted("bert"), TEXTS)


def test_without_hooks_the_crash_of_pooling_is_not_hidden(adapted: Any) -> None:
    """The check raises what encoding raises."""
    needs(RELEASE < (3, 3), "does not crash")
    with pytest.raises(RuntimeError, match="The expanded size of the tensor"):
        check_padding_invariance(adapted("bert"), TEXTS)


def test_a_plain_model_passes_the_check(plain: Any) -> None:
    """Right-padded and without PEFT, every release is right."""
    assert check_padding_invariance(plain("bert"), TEXTS)


def test_the_tolerance_and_the_batch_sizes_can_be_chosen(shared: Any) -> None:
    """And options of ``encode`` are passed on."""
    model = shared("bert", "right", "prompt_tuning")
    with prompt_mask_hooks(model):
        report = check_padding_invariance(model, TEXTS, batch_sizes=[4], tolerance=1.0, prompt="query : ")
        assert report
        assert report.tolerance == 1.0
        assert {row.batch_size for row in report.differences} <= {1, 2, 4}
        assert not check_padding_invariance(model, TEXTS, tolerance=-1.0)


def test_the_check_works_with_numpy_and_normalized_embeddings(adapted: Any) -> None:
    """Whatever ``encode`` is told to return, short of token embeddings."""
    model = adapted("bert", normalize=True)
    with prompt_mask_hooks(model):
        assert check_padding_invariance(model, TEXTS, normalize_embeddings=True)


@pytest.mark.parametrize("text", ["one text", ""])
def test_one_string_is_a_type_error(text: str, shared: Any) -> None:
    """It would be taken for a list of letters."""
    with pytest.raises(TypeError, match=r"texts .*one string.* list of at least two texts"):
        check_padding_invariance(shared("bert", "right", None), text)


@pytest.mark.parametrize(("texts", "shown"), [([], "got 0 texts"), (["alone"], "got 1 text")])
def test_fewer_than_two_texts_are_an_error(texts: list[str], shown: str, shared: Any) -> None:
    """One text makes no batch."""
    with pytest.raises(ValueError, match=rf"^{shown}.*at least two"):
        check_padding_invariance(shared("bert", "right", None), texts)


def test_a_model_that_cannot_encode_is_a_type_error() -> None:
    """The message names what was given."""
    with pytest.raises(TypeError, match=r"a SentenceTransformer.* a Linear.* encode\(\)"):
        check_padding_invariance(nn.Linear(1, 1), TEXTS)


class Broken(nn.Module):
    """Stands in for a model: gives NaN, or infinity, in batches of one size only."""

    def __init__(self, size: int | None, value: float = math.nan) -> None:
        super().__init__()
        self.size, self.value = size, value

    def encode(self, texts: list[str], **options: Any) -> torch.Tensor:
        found = torch.ones(len(texts), 3)
        if self.size in (None, len(texts)):
            found[0, 1] = self.value
        return found


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("size", [None, 1, 2, 3, 4])
def test_a_nan_is_never_the_same(size: int | None, value: float) -> None:
    """Alone, in one size of batch only, or everywhere."""
    report = check_padding_invariance(Broken(size, value), ["a", "b b", "c c c", "d"])
    assert not report
    assert not report.ok
    assert not report.largest_difference <= report.tolerance
    assert "depend on their batch" in str(report)


def test_a_stand_in_without_a_fault_passes() -> None:
    """The twin."""
    assert check_padding_invariance(Broken(99), ["a", "b b", "c c c", "d"])


def test_a_model_with_nan_in_its_weights_does_not_pass(adapted: Any) -> None:
    """As half precision gives now and then."""
    model = adapted("bert")
    with torch.no_grad():
        next(backbone_of(model).parameters()).fill_(math.nan)
    with prompt_mask_hooks(model):
        assert not check_padding_invariance(model, TEXTS)


# --- inputs ---------------------------------------------------------------------------------------------------------


def outcome(model: Any, texts: Any, **options: Any) -> tuple[Any, ...]:
    """Return the type and shape of what ``encode`` gives, or the type of what it raises."""
    try:
        found = model.encode(texts, **options)
    except Exception as error:
        return (type(error),)
    return type(found), getattr(found, "shape", len(found))


@pytest.mark.parametrize("options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}], ids=str)
@pytest.mark.parametrize("texts", [[], "a cat", ["a cat"], ["a cat", "rain falls"]], ids=str)
def test_no_text_one_text_and_a_string_give_what_they_give_without_peft(
    texts: Any, options: dict[str, Any], shared: Any
) -> None:
    """The same type and shape."""
    model = shared("bert", "right", "prompt_tuning")
    with prompt_mask_hooks(model):
        found = outcome(model, texts, **options)
    assert found == outcome(shared("bert", "right", None), texts, **options)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize(("architecture", "side"), [("bert", "right"), ("llama", "left")])
def test_an_empty_string_among_the_texts_is_right_and_moves_no_other(
    architecture: str, side: str, method: str, pooling: str, shared: Any
) -> None:
    """It has special tokens only."""
    model = with_pooling(shared(architecture, side, method), pooling)
    with prompt_mask_hooks(model):
        assert_right(model, EMPTY, pooling=pooling)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_of_no_tokens_at_all_moves_no_other(side: str, shared: Any) -> None:
    """A tokenizer without special tokens gives an empty row; its embedding is that of the virtual tokens."""
    model = shared("gpt2", side, "prompt_tuning")
    with prompt_mask_hooks(model):
        found, others = encoded(model, EMPTY), encoded(model, EMPTY[::2])
    assert torch.isfinite(found).all()
    assert distance(found[::2], others) <= 1e-4


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize(("architecture", "side"), [("bert", "right"), ("llama", "left")])
def test_a_very_long_text_is_cut_and_right(architecture: str, side: str, method: str, shared: Any) -> None:
    """Thousands of words, beside short ones."""
    model = shared(architecture, side, method)
    with prompt_mask_hooks(model):
        assert_right(model, ["a cat", LONG, "rain falls"])
