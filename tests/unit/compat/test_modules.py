"""What is found in a pipeline by class."""

from __future__ import annotations

from torch import nn

from peft_hooks.compat.st_modules import outermost


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
