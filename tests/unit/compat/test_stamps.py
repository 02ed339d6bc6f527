"""A stamp of modules holds while nothing that can be seen has changed."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks.compat.stamps import Stamp


def made() -> nn.Module:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2))
    model.config = types.SimpleNamespace(eps=1.0, rope={"theta": 1})
    model.scaling = {"default": 1.0}
    model.active = ["default"]
    model.extra = torch.zeros(2)
    return model.eval()  # type: ignore[no-any-return]


def set_data(weight: Any, value: Any) -> None:
    weight.data = value


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda model: torch.no_grad()(lambda: model[0].weight.add_(1))(),
    "other memory": lambda model: set_data(model[0].weight, model[0].weight.data.clone()),
    "other strides": lambda model: set_data(model[0].weight, model[0].weight.data.t()),
    "other dtype": lambda model: model.half(),
    "other parameter": lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(2, 2))),
    "no parameter": lambda model: setattr(model[0], "bias", None),
    "a buffer": lambda model: model[1].running_mean.add_(1),
    "a tensor that is an attribute": lambda model: model.extra.add_(1),
    "training": lambda model: model[1].train(),
    "a child": lambda model: model.append(nn.Identity()),
    "another child": lambda model: model.__setitem__(0, nn.Linear(2, 2)),
    "a hook": lambda model: model[0].register_forward_hook(lambda *_: None),
    "a backward hook": lambda model: model[0].register_full_backward_hook(lambda *_: None),
    "a number": lambda model: setattr(model[1], "eps", 0.5),
    "a number in a dict": lambda model: model.scaling.update(default=2.0),
    "a name in a list": lambda model: model.active.append("other"),
    "a config": lambda model: setattr(model.config, "eps", 2.0),
    "a dict of a config": lambda model: model.config.rope.update(theta=2),
    "a forward of its own": lambda model: setattr(model[0], "forward", lambda hidden: hidden),
    "a tensor in place of a number": lambda model: setattr(model[1], "eps", torch.zeros(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    model = made()
    stamp = Stamp([model], "cpu")
    assert stamp.holds("cpu")
    CHANGES[change](model)
    assert not stamp.holds("cpu")


def test_a_forward_is_no_change() -> None:
    model = made()
    stamp = Stamp([model], "cpu")
    model[:2](torch.zeros(3, 2))  # type: ignore[index]
    assert stamp.holds("cpu")


def test_a_write_around_pytorch_is_not_seen() -> None:
    """The twin, of which the option warns."""
    model: Any = made()
    stamp = Stamp([model], "cpu")
    model[0].weight.data.add_(1)
    model[0].weight.detach().numpy()[:] = 7
    assert stamp.holds("cpu")


def test_autocast_is_a_change_for_its_length() -> None:
    stamp = Stamp([made()], "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not stamp.holds("cpu")
    assert stamp.holds("cpu")


def test_memory_that_was_let_go_of_is_not_taken_for_the_same() -> None:
    """It is held, so that no other tensor has its address."""
    model: Any = made()
    stamp = Stamp([model], "cpu")
    for _ in range(50):
        model[0].weight.data = model[0].weight.data + 1
        assert not stamp.holds("cpu")


def test_a_tensor_without_a_version_cannot_be_stamped() -> None:
    with torch.inference_mode():
        model = made()
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensors"):
        Stamp([model], "cpu")
