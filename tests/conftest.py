"""For every test: what it leaves behind in its thread keeps no later failure from being told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

from peft_hooks import Call, Hook, HookRegistry


class Told(Hook):
    """Notes the errors that it is told of."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def failed(self, call: Call, error: BaseException) -> None:
        self.errors.append(error)


class Fails(nn.Module):
    """Fails whatever it is given."""

    def forward(self) -> None:
        raise ZeroDivisionError


@pytest.fixture(autouse=True)
def a_later_failure_is_told() -> Iterator[None]:
    """A call that stays among those that run is taken for the one around all that follow it."""
    yield
    model, hook = Fails(), Told()
    HookRegistry(model).attach(hook, to="")
    with pytest.raises(ZeroDivisionError) as caught:
        model()
    assert hook.errors == [caught.value]
