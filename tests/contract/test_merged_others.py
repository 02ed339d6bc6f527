"""Contract: merged CrossEncoders, SparseEncoders and MultiVectorEncoders are the hooked ones, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peft_hooks import UnsupportedModelError, merge_and_unload, prompt_mask_hooks

from ..tools.checks import TEXTS, distance, needs
from ..tools.cross import PAIRS, RELEASE, put_adapter, scores, tiny_cross_encoder, tiny_reranker
from ..tools.methods import VIRTUAL_TOKENS, Unavailable

pytestmark = [
    pytest.mark.slow,  # as in test_merging
    pytest.mark.filterwarnings("ignore:the plain model pads on the right"),
]

EXACT = ("bert", "roberta", "xlm-roberta", "electra", "albert", "distilbert")
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma3_text", "gpt2", "opt", "phi3")
PAIRS_AND_ONE_THAT_IS_CUT = (*PAIRS, (" ".join(TEXTS * 2), " ".join(TEXTS[::-1] * 2)))


def adapted(architecture: str, method: str = "prompt_tuning", **options: Any) -> Any:
    """Build a tiny CrossEncoder with an adapter, or skip."""
    try:
        model = tiny_cross_encoder(architecture, **options)
        put_adapter(model, method)
    except Unavailable as error:
        pytest.skip(str(error))
    return model


def apart(model: Any, merged: Any, **options: Any) -> float:
    """Return how far scores are apart, in a batch and alone."""
    pairs = PAIRS_AND_ONE_THAT_IS_CUT
    with prompt_mask_hooks(model, **options):
        truth = [scores(model, pairs), *(scores(model, [pair])[0] for pair in pairs)]
    found = [scores(merged, pairs), *(scores(merged, [pair])[0] for pair in pairs)]
    return max(distance(one, other) for one, other in zip(found, truth, strict=True))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", EXACT + DECODERS)
def test_a_cross_encoder_scores_what_the_hooked_one_scores(architecture: str, side: str, tmp_path: Path) -> None:
    """With segments, and its head as it was trained; loaded from a folder, too."""
    model = adapted(architecture, padding_side=side)
    merged = merge_and_unload(model)
    assert type(merged).__name__ == "CrossEncoder" and isinstance(merged, type(model))
    assert apart(model, merged) <= 1e-5
    merged.save_pretrained(str(tmp_path / "merged"))
    kind: Any = type(model)
    again = kind(str(tmp_path / "merged"), device="cpu")
    assert distance(scores(again), scores(merged)) <= 1e-6


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2", "modernbert"])
def test_a_head_that_reads_the_first_row_behind_relative_positions_is_refused(architecture: str) -> None:
    """Unless it was trained to read a virtual token's."""
    model = adapted(architecture)
    with pytest.raises(UnsupportedModelError, match='virtual_tokens="pool"'):
        merge_and_unload(model)
    assert apart(model, merge_and_unload(model, virtual_tokens="pool"), virtual_tokens="pool") <= 1e-5


def test_a_head_that_was_trained_beside_the_prompt_is_the_merged_models() -> None:
    """PEFT wraps it, and keeps the former one."""
    model = adapted("bert")
    backbone = model[0].model if RELEASE >= (5, 4) else model.model
    head = backbone.get_base_model().classifier
    with torch.no_grad():
        for parameter in head.modules_to_save["default"].parameters():
            parameter.add_(0.5)
    merged = merge_and_unload(model)
    assert apart(model, merged) <= 1e-5
    plain = merged[0].model if RELEASE >= (5, 4) else merged.model
    assert type(plain.classifier) is torch.nn.Linear


def test_a_reranker_that_scores_by_logits() -> None:
    """It reads the logits behind the pair."""
    needs(RELEASE >= (5, 4), "LogitScore came with 5.4")
    model = tiny_reranker()
    put_adapter(model, "prompt_tuning", "CAUSAL_LM")
    assert apart(model, merge_and_unload(model)) <= 1e-5


@pytest.mark.parametrize("policy", ["auto", "pool", "strip", "ignore"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "mpnet", "modernbert"])
def test_a_sparse_encoder_has_zeros_for_its_new_words(
    architecture: str, strategy: str, policy: Any, tmp_path: Path, sparse: Any, put_sparse: Any
) -> None:
    """Its other components are the hooked one's."""
    needs(RELEASE >= (5, 0), "SparseEncoder came with 5.0")
    model = sparse(architecture, strategy)
    put_sparse(model[0], "prompt_tuning")
    merged = merge_and_unload(model, virtual_tokens=policy)
    merged.save_pretrained(str(tmp_path / "merged"))
    kind: Any = type(model)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        truth = model.encode(list(TEXTS), convert_to_sparse_tensor=False)
    for found in (merged, kind(str(tmp_path / "merged"), device="cpu")):
        rows = found.encode(list(TEXTS), convert_to_sparse_tensor=False)
        assert distance(rows[:, :-VIRTUAL_TOKENS], truth) <= 1e-5 * float(truth.max())
        assert not rows[:, -VIRTUAL_TOKENS:].any()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("policy", ["auto", "pool", "strip", "ignore"])
@pytest.mark.parametrize("skiplist", [{}, {"skiplist_words": ["the", "a"], "skiplist_tasks": ["query", "document"]}])
def test_a_multi_vector_encoder_skips_its_new_words(
    skiplist: dict[str, Any], policy: Any, side: str, tmp_path: Path, multi_vector: Any
) -> None:
    """Of queries and documents, beside those that it skips already; with ``"pool"`` it keeps them."""
    needs(RELEASE >= (6, 0), "MultiVectorEncoder came with 6.0")
    model = multi_vector("bert", padding_side=side, **skiplist)
    merged = merge_and_unload(model, virtual_tokens=policy)
    merged.save_pretrained(str(tmp_path / "merged"))
    kind: Any = type(model)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        truths = [model.encode_document(list(TEXTS)), model.encode_query(list(TEXTS))]
    for found in (merged, kind(str(tmp_path / "merged"), device="cpu")):
        for rows, truth in zip([found.encode_document(list(TEXTS)), found.encode_query(list(TEXTS))], truths):
            assert (
                max(distance(torch.as_tensor(one), torch.as_tensor(other)) for one, other in zip(rows, truth)) <= 1e-5
            )


def test_a_skiplist_of_documents_alone_is_refused(multi_vector: Any) -> None:
    """Virtual tokens would have to be skipped in queries, too, and its words would be with them."""
    needs(RELEASE >= (6, 0), "MultiVectorEncoder came with 6.0")
    model = multi_vector("bert", skiplist_words=["the"])
    with pytest.raises(UnsupportedModelError, match="its own skiplist for document only"):
        merge_and_unload(model)
