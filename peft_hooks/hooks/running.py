"""The calls that run in a thread, and the repair after an interrupt.

PyTorch runs no hook of a module that a KeyboardInterrupt leaves, so the call stays listed as one that runs. Python's
own stack shows which calls do run: each has a frame there, except where torch.compile made frames of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import nn

from ..compat.torch_internals import calls_of


class Running(Protocol):
    """One call of one module, begun by a dispatcher or by a trace."""

    @property
    def module(self) -> nn.Module | None:
        """The module that is called."""

    @property
    def _owner(self) -> object:
        """What began the call."""

    @property
    def _visible(self) -> bool:
        """Whether a frame on Python's stack shows that the call is running."""


AnyRunning = TypeVar("AnyRunning", bound=Running)


def has_frame(module: nn.Module) -> bool:
    """Tell whether a frame on Python's stack shows a call of ``module`` that begins."""
    return calls_of(module, enough=1) == 1


def drop_ended(calls: list[AnyRunning], beginning: Running | None = None) -> None:
    """Drop the innermost calls that are listed though they have ended.

    Args:
        calls: The calls that a thread is listed to be in, innermost last.
        beginning: The call that is beginning now, and has a frame, but is not yet listed.
    """
    while calls and _has_ended(calls, beginning):
        calls.pop()


def _has_ended(calls: Sequence[Running], beginning: Running | None) -> bool:
    last = calls[-1]
    if last.module is None:
        return True  # a call that runs keeps its module alive
    if not last._visible:
        return False
    listed = count_like(calls, last) + (beginning is not None and _alike(beginning, last))
    return calls_of(last.module, enough=listed) < listed


def count_like(calls: Sequence[Running], one: Running) -> int:
    """Count the calls of the same module with the same owner."""
    return sum(_alike(call, one) for call in calls)


def _alike(one: Running, other: Running) -> bool:
    return one.module is other.module and one._owner is other._owner
