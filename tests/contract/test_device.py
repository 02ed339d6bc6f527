"""No hook that stays on waits for a device, or reads what is on it: on fake tensors, on a GPU, and in one graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from peft_hooks import (
    AssertDimensions,
    ExtendPromptMask,
    Hook,
    HookRegistry,
    PutPaddingLast,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
)
from peft_hooks.prompts.hidden_states import KeepHiddenStates, ReplayLayers
from peft_hooks.prompts.mask import PreparePooling
from peft_hooks.prompts.task import SelectTask

from ..tools.checks import TEXTS, distance, forward, options_for, with_pooling
from ..tools.methods import METHODS

POLICIES = ("auto", "pool", "ignore", "strip")
POOLING = ("cls", "max", "mean", "weightedmean", "lasttoken")
BATCH, TEXT, VIRTUAL, WIDTH = 3, 6, 4, 8

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: only it can be waited for")


# --- each hook alone -------------------------------------------------------------------------------------------------


class HandOn(nn.Module):
    """Returns its features with what a Transformer or a backbone adds to them."""

    def __init__(self, **adds: Tensor) -> None:
        super().__init__()
        self.adds = adds

    def forward(self, features: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        return {**(features or kwargs), **self.adds}


class Task(nn.Module):
    """Takes the ids of tasks as PEFT's prompt encoder does."""

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor | None:
        return task_ids


class Place(NamedTuple):
    """Somewhere that tensors are, and a block in which a read of one raises."""

    put: Callable[[Tensor], Tensor]
    block: Callable[[], AbstractContextManager[object]]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Let everything that makes the host wait for the GPU raise."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["fake", pytest.param("cuda", marks=needs_gpu)])
def place(request: pytest.FixtureRequest) -> Place:
    """Tensors without values, and tensors on a GPU that nobody may wait for."""
    if request.param == "cuda":
        return Place(lambda tensor: tensor.to("cuda"), no_waiting)
    mode = FakeTensorMode()
    return Place(mode.from_tensor, lambda: mode)


def batch_at(place: Place) -> dict[str, Tensor]:
    """Return the features of a batch, and rows with virtual tokens in front."""
    ids = torch.ones(BATCH, TEXT, dtype=torch.int64)
    real = {
        "input_ids": ids,
        "attention_mask": ids,
        "token_embeddings": torch.zeros(BATCH, VIRTUAL + TEXT, WIDTH),
        "long_mask": torch.ones(BATCH, VIRTUAL + TEXT),
    }
    return {name: place.put(tensor) for name, tensor in real.items()}


def test_a_read_of_a_value_does_raise(place: Place) -> None:
    """The twin that shows that the block is on guard."""
    ids = batch_at(place)["input_ids"]
    with place.block(), pytest.raises((RuntimeError, DataDependentOutputException)):
        ids.sum().item()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_mask_is_extended_without_a_look_at_it(policy: Any, place: Place) -> None:
    """The hook on the Transformer, under each policy."""
    given = batch_at(place)
    with place.block():
        model = HandOn(token_embeddings=given["token_embeddings"])
        HookRegistry(model).attach(ExtendPromptMask(policy, expected=VIRTUAL), to="")
        found = model({key: given[key] for key in ("input_ids", "attention_mask")})
    length = TEXT + (0 if policy == "strip" else VIRTUAL)
    assert found["attention_mask"].shape == found["token_embeddings"].shape[:2] == (BATCH, length)


def test_padding_goes_last_without_a_look_at_the_mask(place: Place) -> None:
    """The hook on the Transformer; on another model what comes out is rolled back."""
    given = batch_at(place)
    features = {key: given[key] for key in ("input_ids", "attention_mask")}
    with place.block():
        model = HandOn()
        HookRegistry(model).attach(PutPaddingLast(), to="")
        assert model(features)["input_ids"].shape == (BATCH, TEXT)
        found = model(**features, last_hidden_state=given["token_embeddings"])
    assert found["last_hidden_state"].shape == (BATCH, VIRTUAL + TEXT, WIDTH)


OTHERS: list[Hook] = [
    AssertDimensions({"input_ids": "i64: batch seq", "attention_mask": "batch seq"}, {"token_embeddings": "batch _ 8"}),
    KeepHiddenStates(),
    ReplayLayers(),
]


@pytest.mark.parametrize("hook", OTHERS, ids=lambda hook: type(hook).__name__)
def test_the_other_hooks_read_no_value(hook: Hook, place: Place) -> None:
    """Each on a module that hands on its features."""
    given = batch_at(place)
    with place.block():
        model = HandOn(token_embeddings=given["token_embeddings"])
        HookRegistry(model).attach(hook, to="")
        assert model(given)["token_embeddings"].shape == (BATCH, VIRTUAL + TEXT, WIDTH)


def test_a_task_is_selected_without_a_look_at_the_prompt(place: Place) -> None:
    """The hook on PEFT's prompt encoder."""
    given, model = batch_at(place), Task()
    with place.block():
        HookRegistry(model).attach(SelectTask(1), to="")
        assert model(given["input_ids"]).shape == (BATCH,)


@pytest.mark.parametrize(("policy", "include_prompt"), [*((policy, True) for policy in POLICIES), ("auto", False)])
def test_pooling_is_prepared_without_a_look_at_the_mask(
    policy: Any, include_prompt: bool, place: Place, plain: Any
) -> None:
    """The hook on Pooling, which leaves a prompt out itself where virtual tokens count; elsewhere Pooling may read."""
    model = with_pooling(plain("bert"), POOLING, include_prompt)[1]
    HookRegistry(model).attach(PreparePooling(policy), to="")
    given = batch_at(place)
    if not include_prompt:
        given["prompt_length"] = 2  # type: ignore[assignment]
    given.update(attention_mask=given["long_mask"], token_embeddings=given["token_embeddings"].repeat(1, 1, 4))
    with place.block():
        found = model(given)
    assert found["sentence_embedding"].shape == (BATCH, len(POOLING) * 32)


# --- in one graph ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_the_half_behind_the_backbone_is_one_graph(policy: Any, shared: Any) -> None:
    """What ``fullgraph=True`` asks for: the mask's hook on the Transformer, and those of Pooling, checks on."""
    model = shared("bert", "right", "prompt_tuning")
    features = dict(model.tokenize(list(TEXTS)))
    with prompt_mask_hooks(model, virtual_tokens=policy), torch.no_grad():
        between = model[0](dict(features))
        torch._dynamo.reset()
        try:
            pooled = torch.compile(lambda given: model[1](given)["sentence_embedding"], backend="eager", fullgraph=True)
            assert distance(pooled(dict(between)), model[1](dict(between))["sentence_embedding"]) <= 1e-6
        finally:
            torch._dynamo.reset()


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def on_gpu(plain: Any, put: Any) -> Any:
    """Return a model with an adapter and the hooks, and features, on the GPU."""

    def make(method: str) -> tuple[Any, dict[str, Any]]:
        model = plain("bert", pooling=("cls", "mean"))
        put(model, method)
        model.to("cuda")
        register_prompt_mask_hooks(model, **options_for(method))
        tokens = model.tokenize(list(TEXTS))
        return model, {key: value.to("cuda") for key, value in tokens.items() if isinstance(value, Tensor)}

    return make


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
def test_embeddings_on_a_gpu_are_those_of_the_cpu(method: str, on_gpu: Any) -> None:
    """To what its arithmetic gives."""
    model, features = on_gpu(method)
    with torch.no_grad():
        found = forward(model, dict(features))["sentence_embedding"].cpu()
        model.to("cpu")
        truth = forward(model, {key: value.cpu() for key, value in features.items()})["sentence_embedding"]
    assert distance(found, truth) <= 1e-3


@needs_gpu
def test_a_cuda_graph_of_the_half_behind_the_backbone_gives_what_it_gives_alone(on_gpu: Any) -> None:
    """Captured once with the hooks on, replayed on other values."""
    model, features = on_gpu("prompt_tuning")
    with torch.no_grad():
        between = {key: value for key, value in model[0](dict(features)).items() if isinstance(value, Tensor)}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is allocated at a first call is not to be captured
            model[1](dict(between))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            pooled = model[1](dict(between))["sentence_embedding"]
        between["token_embeddings"].mul_(2)
        graph.replay()
        assert distance(pooled.cpu(), model[1](dict(between))["sentence_embedding"].cpu()) <= 1e-5
