"""The hooks for hidden states, on hand-made tensors."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import HookRegistry
from peft_hooks.prompts.hidden_states import KeepHiddenStates, ReplayLayers

HOOKS = [KeepHiddenStates(), ReplayLayers()]


class Backbone(nn.Module):
    """Gives its keyword arguments back."""

    def forward(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs


class Transformer(nn.Module):
    """Writes three layers into what it is given, as Sentence Transformers' does."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        layers = tuple(features["input_ids"] + layer for layer in range(3))
        features.update(token_embeddings=layers[-1], all_layer_embeddings=layers)
        return features


class Replay:
    """Does what AdaptiveLayerLoss puts in the place of `forward` since 5.4."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward
        self.layer_idx: int | None = None

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        if self.layer_idx is None:
            output: dict[str, Any] = self.forward(features)
            return output
        return {**features, "token_embeddings": features["all_layer_embeddings"][self.layer_idx]}


class OwnCache(Replay):
    """Does what it put there before, which keeps its layers itself."""

    embeddings: tuple[Tensor, ...] = ()


@pytest.fixture
def backbone() -> nn.Module:
    module = Backbone()
    HookRegistry(module).attach(KeepHiddenStates(), to="")
    return module


def test_what_nobody_asked_for_is_left_to_the_config(backbone: nn.Module) -> None:
    """None is not handed on; everything else is."""
    found = backbone(output_hidden_states=None, output_attentions=None, return_dict=None, input_ids=1)
    assert found == {"return_dict": None, "input_ids": 1}


@pytest.mark.parametrize("asked", [True, False])
def test_what_somebody_asked_for_is_handed_on(backbone: nn.Module, asked: bool) -> None:
    """Either way."""
    assert backbone(output_hidden_states=asked) == {"output_hidden_states": asked}


class Copying(ReplayLayers):
    """Hands the Transformer a copy as well, as ExtendPromptMask does after it."""

    def before(self, call: Any) -> None:
        super().before(call)
        call.first = dict(call.first)


def replaying(kind: type[Replay] = Replay) -> tuple[nn.Sequential, Any]:
    """Build a model whose Transformer runs behind a replay."""
    model = nn.Sequential(Transformer())
    HookRegistry(model).attach(Copying(), to="0")
    replay = kind(model[0].forward)
    vars(model[0])["forward"] = replay
    return model, replay


def test_each_batch_gets_its_own_layers_again_and_stays_as_it_was() -> None:
    """Two batches of the same shape, each layer of each."""
    model, replay = replaying()
    first, second = {"input_ids": torch.zeros(2, 3)}, {"input_ids": torch.ones(2, 3)}
    model(first), model(second)
    for layer in range(3):
        replay.layer_idx = layer
        for features, number in ((second, 1), (first, 0)):
            assert torch.equal(model(features)["token_embeddings"], torch.full((2, 3), float(number + layer)))
            assert list(features) == ["input_ids"]


def test_a_batch_that_was_not_seen_gets_nothing() -> None:
    """The loss's own error, not the layers of another batch."""
    model, replay = replaying()
    model({"input_ids": torch.zeros(2, 3)})
    replay.layer_idx = 0
    with pytest.raises(KeyError, match="all_layer_embeddings"):
        model({"input_ids": torch.zeros(2, 3)})


def test_layers_go_when_the_loss_has_its_value() -> None:
    """Nothing holds them: neither the hook nor the batch."""
    model, replay = replaying()
    features = {"input_ids": torch.zeros(2, 3)}
    layer = weakref.ref(model(features)["all_layer_embeddings"][0])
    assert layer() is not None
    vars(model[0]).pop("forward")
    del replay
    gc.collect()
    assert layer() is None


def test_a_replay_that_keeps_its_layers_itself_is_left_alone() -> None:
    """Before 5.4."""
    model, replay = replaying(OwnCache)
    features = {"input_ids": torch.zeros(2, 3)}
    model(features)
    replay.layer_idx = 0
    with pytest.raises(KeyError, match="all_layer_embeddings"):
        model(features)


def test_without_a_replay_nothing_is_kept() -> None:
    """Whatever else replaced `forward`."""
    model = nn.Sequential(Transformer())
    HookRegistry(model).attach(Copying(), to="0")
    vars(model[0])["forward"] = model[0].forward
    layer = weakref.ref(model({"input_ids": torch.zeros(2, 3)})["all_layer_embeddings"][0])
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize("hook", HOOKS, ids=repr)
def test_the_hooks_travel_with_a_model(hook: Any) -> None:
    """Through pickle and deepcopy."""
    assert repr(pickle.loads(pickle.dumps(hook))) == repr(copy.deepcopy(hook)) == f"{type(hook).__name__}()"
