"""``Hook.failed`` is told of what failed, and not of what a forward caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import Call, Hook, HookRegistry, assert_dimensions


class Failures(Hook):
    """Notes the calls that failed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def failed(self, call: Call, error: BaseException) -> None:
        self.seen.append(f"{call.path or 'root'}: {type(error).__name__}")


class Fails(nn.Module):
    def forward(self, x: Any) -> Any:
        raise ValueError("inner")


class Tries(nn.Module):
    """Catches what the first module raises and takes the second, or raises something else."""

    def __init__(self, then: nn.Module, translates: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.translates = Fails(), then, translates

    def forward(self, x: Any) -> Any:
        try:
            return self.first(x)
        except ValueError as error:
            if self.translates:
                raise KeyError("translated") from error
        return self.second(x)


@pytest.mark.parametrize("registries", [1, 2])
def test_what_the_forward_catches_has_not_failed(registries: int) -> None:
    model, hooks = nn.Sequential(Tries(nn.Identity())), [Failures() for _ in range(registries)]
    for hook in hooks:
        HookRegistry(model).attach(hook, to="**")
    with assert_dimensions(model, {"0": {"x": "batch"}, "0.first": {"x": "batch"}}):
        for size in (1, 2):
            model(torch.ones(size))
    assert [hook.seen for hook in hooks] == [[]] * registries


@pytest.mark.parametrize("registries", [1, 2])
def test_what_was_caught_before_a_failure_is_none_of_it(registries: int) -> None:
    model, hooks = nn.Sequential(Tries(nn.Sequential(nn.Linear(3, 1)))), [Failures() for _ in range(registries)]
    for hook in hooks:
        HookRegistry(model).attach(hook, to="**")
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 2))
    wanted = {"0.second.0: RuntimeError", "0.second: RuntimeError", "0: RuntimeError", "root: RuntimeError"}
    assert [set(hook.seen) for hook in hooks] == [wanted] * registries
    assert {len(hook.seen) for hook in hooks} == {4}


def test_an_error_that_became_another_has_failed_where_it_was_raised() -> None:
    model, hook = nn.Sequential(Tries(nn.Identity(), translates=True)), Failures()
    HookRegistry(model).attach(hook, to="**")
    with pytest.raises(KeyError):
        model(torch.ones(1))
    assert hook.seen == ["0.first: ValueError", "0: KeyError", "root: KeyError"]


class Branches(nn.Module):
    """Cannot be exported: which way it goes depends on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_after_an_export_that_failed_is_told(strict: bool) -> None:
    exported, model, hook = nn.Sequential(Branches()), nn.Sequential(Fails()), Failures()
    for one in (exported, model):
        HookRegistry(one).attach(hook, to="**")
    with pytest.raises(Exception, match=r"(?i)data-dependent"):  # of a class that PyTorch keeps private
        torch.export.export(exported, (torch.ones(2),), strict=strict)
    hook.seen.clear()
    with pytest.raises(ValueError, match="inner"):
        model(torch.ones(2))
    assert hook.seen == ["0: ValueError", "root: ValueError"]
