"""The four policies for virtual tokens, with prompts, single tokens, hidden states and masks of any dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_hooks import prompt_mask_hooks
from peft_hooks.testing import POOLING_MODES

from ..tools.checks import RELEASE, TEXTS, distance, encoded, expected, forward, in_order, with_pooling
from ..tools.methods import ROW_METHODS, VIRTUAL_TOKENS
from ..tools.reference import reference_token_embeddings

POLICIES = ("auto", "pool", "ignore", "strip")
POOLINGS = (*POOLING_MODES, ("cls", "mean"), ("cls", "weightedmean", "max"), ("weightedmean", "lasttoken"))
BACKBONES = [
    ("bert", "right"),
    ("roberta", "right"),
    ("llama", "right"),
    ("llama", "left"),
    ("gpt2", "left"),
    ("qwen3", "left"),
]
METHODS = ("prompt_tuning", "prefix_tuning", "lora")
PROMPT = "query : "
PROMPTS = {"no prompt": ("", True), "prompt counted": (PROMPT, True), "prompt left out": (PROMPT, False)}
on_backbones = pytest.mark.parametrize(("architecture", "side"), BACKBONES)
with_methods = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize("prompted", PROMPTS)
@pytest.mark.parametrize("policy", POLICIES)
@with_methods
@on_backbones
def test_every_pooling_gives_the_reference_under_every_policy_and_prompt(
    architecture: str, side: str, method: str, policy: str, prompted: str, shared: Any
) -> None:
    """Single modes and combined ones, in one batch and alone."""
    model = shared(architecture, side, method)
    prompt, include_prompt = PROMPTS[prompted]
    how: dict[str, Any] = {"virtual_tokens": policy, "prompt": prompt, "include_prompt": include_prompt}
    texts = TEXTS[:4]
    truth = dict(
        zip(POOLING_MODES, expected(model, texts, pooling=POOLING_MODES, **how).chunk(len(POOLING_MODES), dim=1))
    )
    given = {"prompt": prompt} if prompt else {}
    for pooling in POOLINGS:
        pooled = with_pooling(model, pooling, include_prompt)
        with prompt_mask_hooks(pooled, virtual_tokens=policy):
            batched = encoded(pooled, texts, **given)
            alone = encoded(pooled, texts[:1], **given)
        wanted = torch.cat([truth[mode] for mode in in_order(pooling)], dim=1)
        assert distance(batched, wanted) <= 1e-4, f"{pooling} in a batch"
        assert distance(alone, wanted[:1]) <= 1e-4, f"{pooling} alone"


@pytest.mark.parametrize("policy", ["auto", "strip"])
@with_methods
@on_backbones
def test_token_embeddings_are_the_rows_of_the_text(
    architecture: str, side: str, method: str, policy: str, shared: Any
) -> None:
    """``output_value="token_embeddings"`` has one row for each token on either side, the reference's."""
    model = shared(architecture, side, method)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        found = model.encode(list(TEXTS), output_value="token_embeddings")
    for text, rows in zip(TEXTS, found, strict=True):
        virtual = VIRTUAL_TOKENS if method in ROW_METHODS else 0
        truth = reference_token_embeddings(model, text)[virtual:]
        assert rows.shape == truth.shape
        assert distance(rows, truth) <= 1e-4


@pytest.mark.parametrize("policy", ["auto", "strip"])
def test_token_embeddings_hold_the_prompt_too_when_pooling_leaves_it_out(policy: str, shared: Any) -> None:
    """What Pooling does not count is still a token of the text."""
    model = with_pooling(shared("bert", "right", "prompt_tuning"), "mean", include_prompt=False)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        (rows,) = model.encode([TEXTS[0]], prompt=PROMPT, output_value="token_embeddings")
    truth = reference_token_embeddings(model, PROMPT + TEXTS[0])[VIRTUAL_TOKENS:]
    if RELEASE >= (6, 0):  # sentence-transformers PR #3944: the mask without the prompt is not kept any more
        assert distance(rows, truth) <= 1e-4
    else:
        assert distance(rows[-len(truth) :], truth[-len(rows) :]) <= 1e-4


@pytest.mark.parametrize("side", ["right", "left"])
def test_ignore_keeps_the_rows_of_virtual_tokens_with_a_mask_of_zeros(side: str, shared: Any) -> None:
    """The output is as long as the backbone's, and no pooling counts the rows."""
    model = shared("llama", side, "prompt_tuning")
    features = model.tokenize(list(TEXTS))
    with prompt_mask_hooks(model, virtual_tokens="ignore"):
        found = forward(model, features)
    length = features["input_ids"].size(1)
    assert found["token_embeddings"].size(1) == VIRTUAL_TOKENS + length
    assert found["attention_mask"].tolist() == [
        [0] * VIRTUAL_TOKENS + sorted(row, reverse=True) for row in features["attention_mask"].tolist()
    ]


def test_pool_keeps_the_rows_of_virtual_tokens_with_a_mask_of_ones(shared: Any) -> None:
    """As Sentence Transformers 3.3 to 6.1 did."""
    model = shared("bert", "right", "prompt_tuning")
    features = model.tokenize(list(TEXTS))
    with prompt_mask_hooks(model, virtual_tokens="pool"):
        found = forward(model, features)
    length = features["input_ids"].size(1)
    assert found["token_embeddings"].size(1) == VIRTUAL_TOKENS + length
    assert found["attention_mask"].tolist() == [
        [1] * VIRTUAL_TOKENS + row for row in features["attention_mask"].tolist()
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "gpt2", "llama"])
def test_hidden_states_are_cut_with_the_token_embeddings(architecture: str, policy: str, adapted: Any) -> None:
    """``all_layer_embeddings`` are as long as ``token_embeddings`` and end with them, where the release gives them."""
    model = adapted(architecture, "prompt_tuning", output_hidden_states=True)
    features = model.tokenize(list(TEXTS))
    with prompt_mask_hooks(model, virtual_tokens=policy):
        found = forward(model, features)
    length = features["input_ids"].size(1) + (VIRTUAL_TOKENS if policy in ("pool", "ignore") else 0)
    assert found["token_embeddings"].size(1) == length
    assert {layer.size(1) for layer in found["all_layer_embeddings"]} == {length}
    assert torch.equal(found["all_layer_embeddings"][-1], found["token_embeddings"])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
@with_methods
def test_the_mask_keeps_the_dtype_that_it_was_given_in(
    method: str, dtype: torch.dtype, policy: str, shared: Any
) -> None:
    """Whatever the dtype, the embedding is the same. 3.3 to 6.1 turn the mask into float32 by themselves."""
    model = shared("bert", "right", method)
    features = model.tokenize(list(TEXTS))
    with prompt_mask_hooks(model, virtual_tokens=policy):
        usual = forward(model, dict(features))["sentence_embedding"]
        features["attention_mask"] = given = features["attention_mask"].to(dtype)
        with torch.no_grad():
            assert model[0](dict(features))["attention_mask"].dtype == dtype
        found = forward(model, features)
    assert features["attention_mask"] is given
    assert found["attention_mask"].dtype == dtype
    assert distance(found["sentence_embedding"], usual) <= 1e-6


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_unchanged_under_every_policy_with_a_prompt_left_out(side: str, policy: str, shared: Any) -> None:
    """Releases before 5.7 write the mask without the prompt into the caller's tensor."""
    model = with_pooling(shared("llama", side, "prompt_tuning"), ("cls", "mean", "weightedmean"), include_prompt=False)
    features = model.tokenize([PROMPT + text for text in TEXTS])
    features["prompt_length"] = 2
    given = dict(features)
    values = {key: value.clone() for key, value in given.items() if isinstance(value, torch.Tensor)}
    with prompt_mask_hooks(model, virtual_tokens=policy):
        first, second = (forward(model, features)["sentence_embedding"] for _ in range(2))
    assert torch.equal(first, second)
    assert list(features) == list(given)
    assert all(features[key] is given[key] for key in given)
    assert all(torch.equal(features[key], values[key]) for key in values)


def test_without_virtual_tokens_every_policy_is_the_same(shared: Any) -> None:
    """LoRA and prefix tuning add no rows."""
    for method in ("lora", "prefix_tuning"):
        model = shared("bert", "right", method)
        found = []
        for policy in POLICIES:
            with prompt_mask_hooks(model, virtual_tokens=policy):
                found.append(encoded(model))
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_normalize_module_after_pooling_is_reached(plain: Any, put: Any) -> None:
    """The rest of the pipeline runs as always."""
    model = plain("bert", normalize=True)
    put(model, "prompt_tuning")
    with prompt_mask_hooks(model):
        assert distance(encoded(model), torch.nn.functional.normalize(expected(model), dim=1)) <= 1e-5
