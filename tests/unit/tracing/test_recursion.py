"""A model whose root calls itself is one forward: no call of it begins another, and each ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import Call, Hook, HookRegistry, trace_shapes


class Tree(nn.Module):
    """Calls itself twice at each level, and may fail at the innermost."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.leaf = nn.Linear(2, 2)
        self.fails = fails

    def forward(self, x: Any, depth: int = 2) -> Any:
        if depth:
            return self(x, depth - 1) + self(x, depth - 1)
        if self.fails:
            raise ValueError("deep")
        return self.leaf(x)


class Holder(nn.Module):
    """Has one inside."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, x: Any) -> Any:
        return self.tree(x)


class Balanced(Hook):
    """Counts the calls that are open."""

    def __init__(self) -> None:
        self.open = self.seen = self.failures = 0

    def before(self, call: Call) -> None:
        self.open, self.seen = self.open + 1, self.seen + 1

    def after(self, call: Call, output: Any) -> None:
        self.open -= 1

    def failed(self, call: Call, error: BaseException) -> None:
        self.open, self.failures = self.open - 1, self.failures + 1


@pytest.mark.parametrize("make", [Tree, lambda: Holder(Tree())], ids=["root", "inside"])
@pytest.mark.parametrize("depth", [None, 0])
def test_each_forward_is_one_and_each_call_ends(make: Any, depth: int | None) -> None:
    model, hook = make(), Balanced()
    HookRegistry(model).attach(hook, to="**")
    with trace_shapes(model, depth=depth) as trace:
        for _ in range(3):
            model(torch.ones(1, 2))
    assert len(trace.forwards) == 3
    assert {row.state for row in trace.rows} == {"done"}
    assert hook.open == 0
    if depth is None:
        assert len(trace) == hook.seen


def test_one_that_fails_has_failed_once_for_each_call_that_it_left() -> None:
    model, hook = Tree(fails=True), Balanced()
    HookRegistry(model).attach(hook, to="")
    with trace_shapes(model) as trace:
        for _ in range(2):
            with pytest.raises(ValueError, match="deep"):
                model(torch.ones(1, 2))
    assert len(trace.forwards) == 2
    assert {row.state for row in trace.rows} == {"raised"}
    assert (hook.open, hook.failures) == (0, 6)
