"""Hooks of others on a module or below: what they see must not change, whatever a hook of ours makes of a forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from torch import nn

from ..compat.torch_internals import Held, has_global_hooks, hooked_modules, hooks_of
from .call import Call
from .dispatcher import Dispatcher, dispatcher_of


class Onlooker(NamedTuple):
    """A hook of somebody else.

    Attributes:
        kind: ``"forward hook"``, or another of PyTorch's kinds.
        module: The module that it is on, or None if it is on every module.
    """

    kind: str
    module: nn.Module | None


def onlookers(root: nn.Module, owner: Hashable, harmless: Callable[[Any], bool]) -> Iterator[Onlooker]:
    """Yield the hooks on a module and below that are not of a registry with this owner.

    Those of a registry of one's own and of ``trace_shapes`` are among them. Asked in every forward.

    Args:
        root: The module.
        owner: What the registry's hooks are marked with.
        harmless: Tells which hooks are no one's: they do not see what they are called with, or make nothing of it.
    """
    if has_global_hooks():
        yield Onlooker("hook", None)
    for module in hooked_modules(root):
        for held in hooks_of(module):
            if not _is_owned(held, owner) and not harmless(held.hook):
                yield Onlooker(held.kind, module)


def is_watched(call: Call, harmless: Callable[[Any], bool]) -> bool:
    """Tell whether hooks of others are on the module of a call, or below."""
    return others_below(call.module, call, harmless)


def others_below(root: nn.Module, call: Call, harmless: Callable[[Any], bool]) -> bool:
    """Tell whether hooks of others than the call's are on a module or below. No dispatcher began a call of a probe."""
    dispatcher = call._owner
    if not isinstance(dispatcher, Dispatcher):
        return False
    return next(onlookers(root, dispatcher.owner, harmless), None) is not None


def _is_owned(held: Held, owner: Hashable) -> bool:
    """Tell whether a hook is of a registry with this owner, or of one that has nothing there that runs."""
    dispatcher = dispatcher_of(held.hook)
    return dispatcher is not None and (dispatcher.owner == owner or not dispatcher.entries)
