"""Contract: a MultiVectorEncoder gives one vector per token of the text, the same alone and in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peft_hooks import UnsupportedModelError, add_prompt_adapter, check_padding_invariance, diagnose, prompt_mask_hooks

from ..tools.checks import RELEASE, TASK, TEXTS, distance, options_for
from ..tools.reference import reference_rows_of_padded, reference_token_embeddings
from ..tools.wording import assert_says

pytestmark = pytest.mark.skipif(RELEASE < (6, 0), reason="MultiVectorEncoder came with Sentence Transformers 6.0")
METHODS = ("prompt_tuning", "p_tuning", "multitask_prompt_tuning", "prefix_tuning", "cartridge", "lora")
SKIPPED = ["the", "a", ","]


def projected(model: Any, rows: Tensor) -> Tensor:
    """Project and normalize rows by hand."""
    rows = rows @ model[1].linear.weight.detach().double().T
    return rows / rows.norm(dim=1, keepdim=True)


def by_hand(model: Any, text: str, skipped: tuple[str, ...] = (), pooled: bool = False) -> Tensor:
    """Compute the vectors of one document by hand."""
    ids = model.tokenizer(text)["input_ids"]
    rows = reference_token_embeddings(model, text, task_id=TASK)
    virtual = len(rows) - len(ids)
    words = model.tokenizer.convert_ids_to_tokens(ids)
    keep = [virtual + place for place, word in enumerate(words) if word not in skipped]
    return projected(model, rows[[*range(virtual if pooled else 0), *keep]])


def assert_vectors(encode: Any, truths: list[Tensor]) -> None:
    """Assert that the vectors are those, in one batch and each text alone."""
    together = encode(list(TEXTS), batch_size=len(TEXTS))
    alone = [encode([text])[0] for text in TEXTS]
    for found in (together, alone):
        for vectors, truth in zip(found, truths, strict=True):
            assert distance(vectors, truth) <= 1e-4


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", METHODS)
def test_one_vector_per_token_of_the_text(method: str, side: str, multi_vector: Any) -> None:
    """Documents and queries have the vectors of their tokens, with every method and padding."""
    model = multi_vector("bert", method, padding_side=side)
    truths = [by_hand(model, text) for text in TEXTS]
    with prompt_mask_hooks(model, **options_for(method)):
        assert_vectors(model.encode_document, truths)
        assert_vectors(model.encode_query, truths)
        assert_vectors(model.encode, truths)


@pytest.mark.parametrize("architecture", ["roberta", "modernbert", "qwen3"])
def test_other_backbones(architecture: str, multi_vector: Any) -> None:
    """The same on backbones that count positions otherwise."""
    model = multi_vector(architecture)
    with prompt_mask_hooks(model):
        assert_vectors(model.encode_document, [by_hand(model, text) for text in TEXTS])


@pytest.mark.parametrize("policy", ["auto", "strip", "ignore", "pool"])
def test_a_skiplist_drops_tokens_of_the_text(policy: str, multi_vector: Any) -> None:
    """Words of the skiplist are dropped from documents; virtual tokens are vectors with "pool" only."""
    model = multi_vector(skiplist_words=SKIPPED)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        kept = [by_hand(model, text, tuple(SKIPPED), pooled=policy == "pool") for text in TEXTS]
        assert_vectors(model.encode_document, kept)
        assert_vectors(model.encode_query, [by_hand(model, text, pooled=policy == "pool") for text in TEXTS])


def expanded(model: Any, text: str, pooled: bool) -> Tensor:
    """Compute the vectors of an expanded query by hand: every position counts, those without attention are read too."""
    features = model.preprocess([text], task="query")
    ids, mask = features["input_ids"], features["attention_mask"]
    hidden = reference_rows_of_padded(model[0].model, ids, mask)
    virtual = len(hidden) - ids.shape[1]
    scored = (mask.bool() | features["query_expansion_positions"].bool())[0]
    text_rows = hidden[virtual:][scored]
    return projected(model, torch.cat([hidden[:virtual], text_rows]) if pooled else text_rows)


@pytest.mark.parametrize("policy", ["auto", "pool", "ignore"])
@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("strategy", ["fixed", "min"])
def test_query_expansion_is_scored_at_its_own_positions(
    strategy: str, attend: bool, policy: str, multi_vector: Any
) -> None:
    """An expansion that nothing attends to is read at the positions that follow the text, behind virtual tokens."""
    expansion = {"strategy": strategy, "length": 12, "attend": attend, "token": "[UNK]"}
    model = multi_vector(query_expansion=expansion)
    truths = [expanded(model, text, policy == "pool") for text in TEXTS]
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_vectors(model.encode_query, truths)


def test_similarity_is_that_of_the_vectors(multi_vector: Any) -> None:
    """MaxSim over the vectors computed by hand."""
    model = multi_vector()
    with prompt_mask_hooks(model):
        queries, documents = model.encode_query(list(TEXTS[:2])), model.encode_document(list(TEXTS))
        found = torch.as_tensor(model.similarity(queries, documents))
    rows = [by_hand(model, text) for text in TEXTS]
    truth = torch.stack([torch.stack([(q @ d.T).amax(dim=1).sum() for d in rows]) for q in rows[:2]])
    assert distance(found, truth) <= 1e-3


def test_without_hooks_it_crashes_or_scores_virtual_tokens(multi_vector: Any) -> None:
    """What this is about."""
    model = multi_vector(skiplist_words=SKIPPED)
    with pytest.raises((RuntimeError, IndexError)):
        model.encode_document(list(TEXTS))


def test_add_prompt_adapter(multi_vector: Any) -> None:
    """The adapter and the hooks in one call."""
    from peft import PromptTuningConfig

    model = multi_vector(method=None)
    add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=3))
    model.eval()
    assert_vectors(model.encode_document, [by_hand(model, text) for text in TEXTS])


def test_the_check_of_a_user_compares_one_vector_per_token(multi_vector: Any) -> None:
    """``check_padding_invariance`` is content with hooks; a number of vectors that depends on the batch is infinite."""
    model = multi_vector()
    with prompt_mask_hooks(model):
        assert check_padding_invariance(model, TEXTS)

    class Longer(torch.nn.Module):
        def encode(self, texts: list[str], batch_size: int, show_progress_bar: bool) -> list[Tensor]:
            return [torch.zeros(batch_size, 2) for _ in texts]

    assert check_padding_invariance(Longer(), TEXTS).largest_difference == float("inf")


def test_the_doctor_names_what_compares_several_vectors_of_a_text(multi_vector: Any) -> None:
    """It compares single vectors alone."""
    with pytest.raises(UnsupportedModelError) as caught:
        diagnose(multi_vector())
    assert_says(
        caught.value,
        "MultiVectorEncoder | several vectors | SentenceTransformer",
        "peft_hooks.check_padding_invariance(model, texts)",
        "peft_hooks.trace_shapes(model)",
    )
