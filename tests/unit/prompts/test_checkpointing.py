"""Prefix tuning and gradient checkpointing, with the hooks on: as without it, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig

from peft_hooks import add_prompt_adapter
from peft_hooks.errors import UnsupportedModelError
from peft_hooks.testing import TEXTS, tiny_model


def trained(kind: Any) -> tuple[Any, Any, Any]:
    """Return a model in training, its features and its backbone."""
    model = tiny_model("bert")
    try:
        add_prompt_adapter(model, kind(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3))
    except UnsupportedModelError as error:
        pytest.skip(f"refused when attached: {error}")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    features = (model.preprocess if hasattr(model, "preprocess") else model.tokenize)(list(TEXTS[:2]))
    return model.train(), features, getattr(model[0], "auto_model", None) or model[0].model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig])
def test_checkpointing_is_right_or_refused_by_name(kind: Any) -> None:
    model, features, backbone = trained(kind)
    wanted = model(dict(features))["sentence_embedding"]
    backbone.gradient_checkpointing_enable()
    try:
        got = model(dict(features))["sentence_embedding"]
    except UnsupportedModelError as error:
        assert kind is PrefixTuningConfig
        assert "gradient_checkpointing_disable()" in str(error)
        assert "Transformer '0'" in str(error)
    else:
        assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_it_is_refused_only_while_training() -> None:
    model, features, backbone = trained(PrefixTuningConfig)
    wanted = model(dict(features))["sentence_embedding"]
    backbone.gradient_checkpointing_enable()
    model.eval()
    assert torch.allclose(model(dict(features))["sentence_embedding"], wanted, atol=1e-6)
    model.train()
    backbone.gradient_checkpointing_disable()
    assert torch.allclose(model(dict(features))["sentence_embedding"], wanted, atol=1e-6)
