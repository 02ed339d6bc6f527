"""The reference computed by hand agrees with each release on one unpadded text, wherever the release runs."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

from peft_hooks.testing import POOLING_MODES, TEXTS, tiny_model

from . import methods, reference
from .attention_by_hand import rows_behind

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", *methods.NO_CACHE)
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma3_text", "gpt2", "opt", "phi3")
EVERY_METHOD = (*methods.METHODS, *methods.VARIANTS)
CELLS = [(architecture, method) for architecture in ENCODERS + DECODERS for method in EVERY_METHOD]
BLIND = [(a, m) for a, m in CELLS if a in methods.NO_CACHE and m in methods.CACHE_METHODS]
TEXT, TASK, PROMPT = TEXTS[1], 1, "query : "


@functools.cache
def plain_model(architecture: str) -> Any:
    """Build each backbone once; return `None` if this release of transformers does not have it."""
    try:
        return tiny_model(architecture)
    except ValueError as error:
        if "has no architecture" not in str(error):
            raise
        return None


@functools.cache
def plain_rows(architecture: str) -> torch.Tensor:
    return reference.reference_token_embeddings(plain_model(architecture), TEXT)


def model_with(architecture: str, method: str) -> Any:
    if plain_model(architecture) is None:
        pytest.skip(f"transformers has no {architecture}")
    model = copy.deepcopy(plain_model(architecture))
    try:
        peft_model = methods.put_adapter(model, method)
    except methods.Unavailable as error:
        pytest.skip(str(error))
    if method == "multitask_prompt_tuning":
        peft_model.prompt_encoder["default"].register_forward_pre_hook(_select_task)
    return model


def _select_task(_: Any, args: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return args[0], torch.full((args[0].shape[0],), TASK)


def native_rows(model: Any, text: str) -> torch.Tensor:
    features = dict(model.tokenizer([text], return_tensors="pt"))
    with torch.no_grad():
        rows: torch.Tensor = model[0](features)["token_embeddings"][0]
    return rows


def native_pooling(rows: torch.Tensor, mask: list[int], mode: str, prompt_length: int = 0) -> torch.Tensor:
    """Pool rows with the release's own Pooling module (on a copy: before 3.0, max pooling writes into its input)."""
    pooling = tiny_model(pooling=mode, include_prompt=False)[1]
    features: dict[str, Any] = {"token_embeddings": rows.clone().unsqueeze(0), "attention_mask": torch.tensor([mask])}
    if prompt_length:
        features["prompt_length"] = prompt_length
    pooled: torch.Tensor = pooling(features)["sentence_embedding"][0]
    return pooled


@pytest.mark.parametrize(("architecture", "method"), [cell for cell in CELLS if cell not in BLIND])
def test_token_embeddings_agree_with_the_release(architecture: str, method: str) -> None:
    """What a release returns for one unpadded text is right, and the reference returns the same."""
    model = model_with(architecture, method)
    expected = reference.reference_token_embeddings(model, TEXT, task_id=TASK)
    try:
        actual = native_rows(model, TEXT)
    except ValueError as error:
        if "max_cache_len is None" not in str(error):  # PEFT 0.16 and 0.17: prefix tuning of Gemma 2 and 3
            raise
        pytest.skip(str(error))
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.double(), expected, atol=5e-5, rtol=0)
    virtual = methods.VIRTUAL_TOKENS if method in methods.ROW_METHODS else 0
    assert len(expected) == virtual + len(plain_rows(architecture))
    moved = (expected[virtual:] - plain_rows(architecture)).abs().max()
    assert moved > 0.5, "the adapter hardly changes the text's embeddings"


@pytest.mark.parametrize("method", methods.CACHE_METHODS)
def test_a_backbone_without_a_cache_has_no_reference(method: str) -> None:
    """Where past_key_values have no effect and no layers are written out by hand, the reference says so."""
    model = model_with("fnet", method)
    with pytest.raises(reference.NoReference, match="past_key_values"):
        reference.reference_token_embeddings(model, TEXT)


@pytest.mark.parametrize("method", methods.CACHE_METHODS)
def test_layers_by_hand_are_those_of_a_backbone_with_a_cache(method: str) -> None:
    """BERT is written out too: its rows after a prefix equal those after a cache."""
    model = model_with("bert", method)
    wrapped = reference.wrapped_backbone(model)
    pairs = [
        (keys[0].transpose(0, 1).flatten(1), values[0].transpose(0, 1).flatten(1))
        for keys, values in reference.key_values(wrapped)
    ]
    ids = torch.tensor(model.tokenizer(TEXT)["input_ids"])
    rows = rows_behind(reference.plain_backbone(wrapped), ids, pairs)
    torch.testing.assert_close(rows, reference.reference_token_embeddings(model, TEXT), atol=1e-9, rtol=0)


@pytest.mark.parametrize("architecture", methods.NO_CACHE)
def test_layers_by_hand_are_the_releases_where_there_is_no_prefix(architecture: str) -> None:
    """With keys and values of zero tokens, the layers by hand return what the backbone returns for the text alone."""
    model = model_with(architecture, "prompt_tuning")
    plain = reference.plain_backbone(reference.wrapped_backbone(model))
    layers = int(plain.config.num_hidden_layers)
    none = [(torch.zeros(0, 32, dtype=torch.float64),) * 2] * layers
    rows = rows_behind(plain, torch.tensor(model.tokenizer(TEXT)["input_ids"]), none)
    torch.testing.assert_close(rows, plain_rows(architecture), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("architecture", "method"), BLIND)
def test_a_release_fails_or_ignores_a_prefix_on_a_backbone_without_a_cache(architecture: str, method: str) -> None:
    """Without hooks."""
    model = model_with(architecture, method)
    try:
        actual = native_rows(model, TEXT)
    except (TypeError, RuntimeError):
        return
    torch.testing.assert_close(actual.double(), plain_rows(architecture), atol=5e-5, rtol=0)


@pytest.fixture(scope="module")
def prompted() -> tuple[Any, torch.Tensor, int, int]:
    """A BERT with prompt tuning, its rows for a prompt and a text, and the number of virtual and of prompt tokens."""
    model = model_with("bert", "prompt_tuning")
    rows = reference.reference_token_embeddings(model, PROMPT + TEXT)
    return model, rows, methods.VIRTUAL_TOKENS, 3


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_pool_is_the_release_pooling_with_a_mask_of_ones(prompted: Any, mode: str, include_prompt: bool) -> None:
    """The policy `pool` is what Sentence Transformers 3.3 - 6.1 did: ones everywhere, the first positions left out."""
    model, rows, _, length = prompted
    expected = native_pooling(rows, [1] * len(rows), mode, 0 if include_prompt else length)
    if mode == "cls":
        expected = rows[0]  # 5.5 to 6.1 read the first remaining position, other releases read position 0
    actual = reference.reference_embedding(
        model, TEXT, pooling=mode, virtual_tokens="pool", prompt=PROMPT, include_prompt=include_prompt
    )
    torch.testing.assert_close(actual, expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_auto_leaves_the_prompt_out_at_its_real_place(prompted: Any, mode: str, include_prompt: bool) -> None:
    """The policy `auto` counts virtual tokens and the text; the prompt's tokens are between them."""
    model, rows, virtual, length = prompted
    skipped = 0 if include_prompt else length
    mask = [1] * virtual + [0] * skipped + [1] * (len(rows) - virtual - skipped)
    expected = rows[virtual + skipped] if mode == "cls" else native_pooling(rows, mask, mode)
    actual = reference.reference_embedding(model, TEXT, pooling=mode, prompt=PROMPT, include_prompt=include_prompt)
    torch.testing.assert_close(actual, expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("policy", ["ignore", "strip"])
def test_ignore_and_strip_pool_the_text_alone(prompted: Any, mode: str, policy: str) -> None:
    """The policies `ignore` and `strip` pool the text's rows as if there were no others."""
    model, rows, virtual, length = prompted
    text = rows[virtual:]
    expected = text[length] if mode == "cls" else native_pooling(text, [1] * len(text), mode, length)
    actual = reference.reference_embedding(
        model, TEXT, pooling=mode, virtual_tokens=policy, prompt=PROMPT, include_prompt=False
    )
    torch.testing.assert_close(actual, expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ["bert", "qwen2", "llama", "gpt2"])
def test_the_prompt_length_is_the_release_own(architecture: str) -> None:
    """Without an adapter, a prompt is left out of the mean as `encode` leaves it out."""
    model = tiny_model(architecture, include_prompt=False)
    expected = torch.tensor(model.encode(TEXT, prompt=PROMPT)).double()
    actual = reference.reference_embedding(model, TEXT, prompt=PROMPT, include_prompt=False)
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=0)


def test_more_modes_are_concatenated_in_the_releases_order() -> None:
    """A tiny model concatenates its modes in the same order on every release."""
    model = tiny_model("bert", pooling=("lasttoken", "mean", "cls"))
    expected = torch.tensor(model.encode(TEXT)).double()
    actual = reference.reference_embedding(model, TEXT, pooling=("cls", "mean", "lasttoken"))
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=0)


def test_each_task_has_its_own_prompt() -> None:
    """Multitask prompt tuning gives one text different embeddings for different tasks, and needs to know the task."""
    model = model_with("bert", "multitask_prompt_tuning")
    first, second = (reference.reference_embedding(model, TEXT, task_id=task) for task in (0, 1))
    assert (first - second).abs().max() > 0.1
    with pytest.raises(ValueError, match="needs a task_id"):
        reference.reference_embedding(model, TEXT)
