"""What is found in a pipeline: by class, and whether a module may read padding."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from peft_hooks.compat.st_modules import outermost, reads_padding
from peft_hooks.testing import tiny_model
from peft_hooks.testing.models import pipeline_modules


class Outer(nn.Sequential):
    """What is looked for."""


def test_the_outermost_modules_of_a_class_come_in_order_each_once_and_with_its_first_path() -> None:
    shared = Outer(nn.Linear(1, 1))
    model = nn.Sequential(
        nn.Sequential(shared, Outer(Outer())), shared, nn.ModuleDict({"a": Outer(), "b": nn.Identity()})
    )
    found = [path for path, _ in outermost(model, Outer)]
    assert found == ["0.0", "0.1", "2.a"]
    named = dict(model.named_modules())
    assert all(named[path] is module for path, module in outermost(model, Outer))
    assert [path for path, _ in outermost(model, Outer, nn.Identity)] == [*found, "2.b"]
    assert [path for path, _ in outermost(shared, Outer)] == [""]
    assert list(outermost(model)) == []


class OwnForward(nn.Module):
    """A module of an unknown kind."""

    def forward(self, features: Any) -> Any:
        return features


@pytest.mark.parametrize("unknown", [nn.Identity, OwnForward])
def test_only_modules_that_are_known_are_known_to_read_no_padding(unknown: type[nn.Module]) -> None:
    model = tiny_model("bert")
    assert not reads_padding(model)
    model.append(pipeline_modules().Normalize())
    assert not reads_padding(model)
    model.append(unknown())
    assert reads_padding(model)


def test_a_pooling_with_a_forward_of_its_own_may_read_padding() -> None:
    modules = pipeline_modules()

    class Own(modules.Pooling):  # type: ignore[misc,name-defined]
        def forward(self, features: Any) -> Any:
            return features

    assert reads_padding(nn.Sequential(tiny_model("bert")[0], Own(32)))


@pytest.mark.parametrize("last", [True, False])
def test_a_module_of_one_route_is_enough(last: bool) -> None:
    modules = pipeline_modules()
    if not hasattr(modules, "Router"):
        pytest.skip("Router came with Sentence Transformers 5.0")
    bert = tiny_model("bert")
    routes = [[bert[0], bert[1]], [bert[0], OwnForward() if last else modules.Pooling(32)]]
    assert reads_padding(nn.Sequential(modules.Router.for_query_document(*routes))) is last
