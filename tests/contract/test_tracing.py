"""The hooks read no tensor's values: they run on fake tensors, and add no graph break to a compiled model."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from peft_hooks import (
    HookError,
    add_prompt_adapter,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    without_adapter,
)

from ..tools.checks import TEXTS, break_graph, distance, forward, options_for, unchanged
from ..tools.methods import METHODS, backbone_of, pipeline_of, prefix_tuning, put_backbone
from ..tools.wording import assert_says

POLICIES = ("auto", "pool", "ignore", "strip")
POOLING = ("cls", "max", "mean", "weightedmean", "lasttoken")


# --- fake tensors ---------------------------------------------------------------------------------------------------


def faked(mode: FakeTensorMode, model: nn.Module) -> Any:
    """Return a copy of the model whose parameters, buffers and prompt tokens have shapes and no values."""
    fake = copy.deepcopy(model)
    for module in fake.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(parameter.data), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
        tokens = vars(module).get("prompt_tokens", {})
        tokens.update({name: mode.from_tensor(value) for name, value in tokens.items()})
    return fake


def fake_features(mode: FakeTensorMode, model: Any) -> dict[str, Any]:
    """Return the tokens of the texts as fake tensors."""
    features = model.tokenize(list(TEXTS))
    return {key: mode.from_tensor(value) for key, value in features.items() if isinstance(value, torch.Tensor)}


@pytest.fixture(scope="session")
def without_fast_attention(plain: Any, put: Any) -> Any:
    """Build a model whose backbone makes its masks without a look at them, unlike for its fast attention."""

    def make(architecture: str, method: str | None, **options: Any) -> Any:
        from transformers import AutoModel

        model = plain(architecture, **options)
        backbone = backbone_of(model)
        slow = AutoModel.from_config(copy.deepcopy(backbone.config), attn_implementation="eager").eval()
        slow.load_state_dict(backbone.state_dict())
        put_backbone(model, slow)
        if method is not None:
            put(model, method)
        return model

    return make


def run(model: Any, features: dict[str, Any]) -> tuple[int, ...]:
    """Run the pipeline on fake tensors and return the embedding's shape."""
    found = forward(model, features)
    assert isinstance(found["sentence_embedding"], FakeTensor)
    return tuple(found["sentence_embedding"].shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("architecture", "side"), [("bert", "right"), ("gpt2", "left"), ("llama", "left")])
def test_hooks_that_are_attached_run_on_fake_tensors(
    architecture: str, side: str, method: str, without_fast_attention: Any
) -> None:
    """Any read of a value would raise."""
    model, mode = without_fast_attention(architecture, method, padding_side=side, pooling=POOLING), FakeTensorMode()
    with prompt_mask_hooks(model, **options_for(method)):
        fake, features = faked(mode, model), fake_features(mode, model)
    with mode:
        assert run(fake, features) == (len(TEXTS), len(POOLING) * 32)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", METHODS)
def test_hooks_can_be_attached_to_fake_tensors(method: str, policy: str, without_fast_attention: Any) -> None:
    """Where there are no values the probe of a prefix goes by the signature."""
    model, mode = without_fast_attention("bert", method, pooling=POOLING), FakeTensorMode()
    fake, features = faked(mode, model), fake_features(mode, model)
    with mode, unchanged(fake), prompt_mask_hooks(fake, virtual_tokens=policy, **options_for(method)):
        assert run(fake, features) == (len(TEXTS), len(POOLING) * 32)


def test_the_length_of_a_prompt_that_is_left_out_is_not_read(without_fast_attention: Any) -> None:
    """It may be a tensor. Where no virtual token is counted, Pooling itself leaves the prompt out, and may read it."""
    how: dict[str, Any] = {"padding_side": "left", "pooling": ("cls", "mean"), "include_prompt": False}
    model = without_fast_attention("llama", "prompt_tuning", **how)
    mode = FakeTensorMode()
    fake, features = faked(mode, model), fake_features(mode, model)
    features["prompt_length"] = mode.from_tensor(torch.tensor([2]))
    with mode, prompt_mask_hooks(fake):
        assert run(fake, features) == (len(TEXTS), 64)


def test_a_read_of_a_value_does_raise() -> None:
    """The twin that shows that the mode is on."""
    mode = FakeTensorMode()
    with mode, pytest.raises(DataDependentOutputException):
        mode.from_tensor(torch.ones(2)).sum().item()


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_where_nothing_can_be_measured_the_table_says_so(architecture: str, method: str, adapted: Any) -> None:
    """On the meta device, whatever the signature of a forward says."""
    model = adapted(architecture, method).to("meta")
    with unchanged(model), register_prompt_mask_hooks(model) as handle:
        assert_says(handle.describe().remarks[-1], "Transformer '0' | on trust | no values")


# --- torch.compile --------------------------------------------------------------------------------------------------


def graph_breaks(model: Any, features: dict[str, Any]) -> int | None:
    """Count the graph breaks of one call of the pipeline, or return None where the call itself raises."""
    torch._dynamo.reset()
    with torch.no_grad():
        try:
            return len(torch._dynamo.explain(pipeline_of(model))(dict(features)).break_reasons)
        except (RuntimeError, TypeError, ValueError):
            return None


COMPILED = [
    ("bert", "right", "prompt_tuning"),
    ("bert", "right", "prefix_tuning"),
    ("bert", "right", "multitask_prompt_tuning"),
    ("mpnet", "right", "prefix_tuning"),
    ("albert", "right", "prefix_tuning"),
    ("llama", "left", "prompt_tuning"),
    ("llama", "left", "prefix_tuning"),
    ("llama", "left", "multitask_prompt_tuning"),
]


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "side", "method"), COMPILED)
def test_hooks_add_no_graph_break(architecture: str, side: str, method: str, shared: Any) -> None:
    """Over the same model without hooks, or, where that raises, over one with another adapter that runs, or with none.

    PEFT itself breaks the graph to warn of token types, which it drops; without them there is no break at all.
    """
    model = shared(architecture, side, method)
    tokens = dict(model.tokenize(list(TEXTS)))
    for features in (tokens, {key: tokens[key] for key in ("input_ids", "attention_mask")}):
        others = (shared(architecture, side, other) for other in (method, "prompt_tuning", "prefix_tuning"))
        runs = (found for found in (graph_breaks(other, features) for other in others) if found is not None)
        without = next(runs, None)
        if without is None:
            with without_adapter(model):
                without = graph_breaks(model, features) + ("token_type_ids" in features)
        with prompt_mask_hooks(model, **options_for(method)):
            found = graph_breaks(model, features)
        assert found is not None
        assert found <= without


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(("architecture", "side", "method"), COMPILED)
def test_a_compiled_model_gives_what_it_gives_uncompiled(
    architecture: str, side: str, method: str, broken: bool, shared: Any
) -> None:
    """The hooks are attached first, and run inside, in one graph or where it breaks in the middle of the backbone."""
    model, options = shared(architecture, side, method), options_for(method)
    features = dict(model.tokenize(list(TEXTS)))
    linear = next(module for module in backbone_of(model).base_model.modules() if isinstance(module, nn.Linear))
    breaks = linear.register_forward_hook(break_graph) if broken else contextlib.nullcontext()
    with breaks, prompt_mask_hooks(model, **options), torch.no_grad():
        pipeline = pipeline_of(model)
        eager = pipeline(dict(features))
        compiled = torch.compile(pipeline, backend="eager")
        assert distance(compiled(dict(features)), eager) <= 1e-6
        shorter = dict(model.tokenize(list(TEXTS[:3])))
        assert distance(compiled(dict(shorter)), pipeline(dict(shorter))) <= 1e-6


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "side", "method"), COMPILED)
def test_a_compiled_model_is_compiled_twice_for_batches_of_all_sizes(
    architecture: str, side: str, method: str, shared: Any
) -> None:
    """For the first size and for any other, as without hooks; forwards that are not compiled change nothing in it."""
    model, counter = shared(architecture, side, method), CompileCounter()
    with prompt_mask_hooks(model, **options_for(method)), torch.no_grad():
        pipeline = pipeline_of(model)
        compiled = torch.compile(pipeline, backend=counter)
        for number in range(1, 6):
            tokens = model.tokenize(["a cat " * number, "rain"] * number)
            features = {key: tokens[key] for key in ("input_ids", "attention_mask")}
            pipeline({key: value[:, 1:] for key, value in features.items()})
            compiled(features)
    assert counter.frame_count == 2


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
def test_hooks_inside_a_compiled_model_do_not_count_calls_and_say_so(adapted: Any) -> None:
    """A counter would be guarded on, and the model compiled anew for every call."""
    model = adapted("bert")
    features = dict(model.tokenize(list(TEXTS)))
    with torch.no_grad():
        handle = register_prompt_mask_hooks(model)
        truth = forward(model, dict(features))["sentence_embedding"]
        compiled = torch.compile(model, backend="eager")
        assert distance(compiled(dict(features))["sentence_embedding"], truth) <= 1e-6
        assert register_prompt_mask_hooks(model) is handle
        handle.remove()


@pytest.mark.usefixtures("clean_dynamo")
def test_a_compiled_model_takes_no_adapter_and_is_left_as_it_was(plain: Any) -> None:
    """``add_prompt_adapter`` says to attach first, too."""
    model = plain("bert")
    config = prefix_tuning(model)
    model[0].compile(backend="eager")
    with unchanged(model), pytest.raises(HookError, match="is compiled already"):
        add_prompt_adapter(model, config)
