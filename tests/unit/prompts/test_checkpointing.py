"""Prefix tuning and gradient checkpointing, with the hooks on: as without it, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from torch.utils.checkpoint import checkpoint

from peft_hooks import Call, Hook, HookRegistry, add_prompt_adapter, assert_dimensions, trace_shapes
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


class Counted(Hook):
    """Counts the calls that failed."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def failed(self, call: Call, error: BaseException) -> None:
        self.failures.append(f"{call.path}: {type(error).__name__}")


class Steps(torch.nn.Module):
    """Runs its layers with gradient checkpointing of the default kind, which stops what it computes again early."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)) for _ in range(2)
        )
        self.fails_again = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(self.run, layer, x, use_reentrant=False)
        return x

    def run(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.fails_again and torch._C._current_graph_task_id() != -1:
            x = x[:, :2]
        return layer(x)


def test_what_gradient_checkpointing_stops_has_not_failed() -> None:
    model, hook = Steps(), Counted()
    HookRegistry(model).attach(hook, to="**")
    with assert_dimensions(model, {"layers.*": {"input": "batch 3"}}), trace_shapes(model) as trace:
        for rows in (2, 5):
            model(torch.ones(rows, 3, requires_grad=True)).sum().backward()
    assert hook.failures == []
    assert trace.failure is None
    assert "raised" not in {row.state for row in trace.rows}
    assert "stopped" in {row.state for row in trace.rows}


def test_what_fails_while_it_is_computed_again_has_failed() -> None:
    model, hook = Steps(), Counted()
    HookRegistry(model).attach(hook, to="**")
    with pytest.raises(RuntimeError, match="mat1 and mat2"), trace_shapes(model) as trace:
        output = model(torch.ones(2, 3, requires_grad=True)).sum()
        model.fails_again = True
        output.backward()
    assert hook.failures == ["layers.1.0: RuntimeError", "layers.1: RuntimeError"]
    assert trace.failure is not None
    assert trace.failure.where.startswith("Linear 'layers.1.0'")
