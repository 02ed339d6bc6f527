"""What the releases compute without hooks: where it is reproduced, and where it is put right."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import sentence_transformers
import torch

from peft_hooks import prompt_mask_hooks
from peft_hooks.testing import TEXTS

from ..tools.matrix import POOLINGS, adapted, pipeline
from ..tools.reference import reference_embedding

VERSION = tuple(int(part) for part in sentence_transformers.__version__.split(".")[:2])
EXTENDS = (3, 3) <= VERSION < (6, 2)
PROMPT = "query : "

extends_itself = pytest.mark.skipif(
    not EXTENDS, reason=f"Sentence Transformers {sentence_transformers.__version__} does not extend the mask itself"
)


@functools.cache
def model_with(architecture: str, method: str) -> Any:
    return adapted(architecture, "right", method)[0]


def encode(model: Any, **options: Any) -> torch.Tensor:
    return model.encode(list(TEXTS), batch_size=len(TEXTS), convert_to_tensor=True, **options)


@extends_itself
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_pool_gives_number_for_number_what_the_release_gives(
    architecture: str, method: str, pooling: str, include_prompt: bool
) -> None:
    if pooling == "cls" and not include_prompt and VERSION >= (5, 5):
        pytest.skip("5.5 to 6.1 read the first position that is left; `pool` reads position 0, as 3.3 to 5.4 did")
    if architecture == "llama" and not include_prompt and VERSION < (5, 0):
        pytest.skip("before 5.0 a prompt without a closing special token was taken to be one token shorter")
    model = pipeline(model_with(architecture, method), pooling, include_prompt)
    native = encode(model, prompt=PROMPT)
    with prompt_mask_hooks(model, virtual_tokens="pool", share_prompt=False):
        assert torch.equal(encode(model, prompt=PROMPT), native)


@extends_itself
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_mask_keeps_its_dtype_where_the_release_makes_it_float(architecture: str) -> None:
    model = pipeline(model_with(architecture, "prompt_tuning"), "mean")
    with torch.no_grad():
        assert model[0](model.tokenize(list(TEXTS)))["attention_mask"].dtype == torch.float32
        with prompt_mask_hooks(model):
            assert model[0](model.tokenize(list(TEXTS)))["attention_mask"].dtype == torch.int64


@extends_itself
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_prefix_tuning_is_right_where_the_release_extends_its_mask_too(architecture: str) -> None:
    model = pipeline(model_with(architecture, "prefix_tuning"), "mean")
    expected = torch.stack([reference_embedding(model, text) for text in TEXTS])
    if VERSION < (5, 4):
        with pytest.raises(RuntimeError, match=r"The expanded size of the tensor .* must match the existing size"):
            encode(model)
    else:
        assert (encode(model).double() - expected).abs().max() > 0.01  # Pooling fell back to a mask of ones
    with prompt_mask_hooks(model):
        assert (encode(model).double() - expected).abs().max() < 1e-4
