"""Find other code's hooks on a module or below: what they see must not change, whatever our hooks do to a forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from torch import nn

from ..compat.torch_internals import ModuleHook, has_global_hooks, hooked_modules, hooks_of
from .call import Call
from .dispatcher import Dispatcher, dispatcher_of


class Onlooker(NamedTuple):
    """Someone else's hook.

    Attributes:
        kind: ``"forward hook"``, or another of PyTorch's kinds.
        module: The module that it is on, or None if it is on every module.
    """

    kind: str
    module: nn.Module | None


def onlookers(root: nn.Module, owner: Hashable, harmless: Callable[[Any], bool]) -> Iterator[Onlooker]:
    """Yield the hooks on a module and below that do not belong to a registry with this owner.

    They include those of the user's own registries and of ``trace_shapes``. Runs in every forward, so it must be fast.

    Args:
        root: The module.
        owner: Marks the registry's hooks.
        harmless: Tells which hooks to skip, because they ignore what they are called with.
    """
    if has_global_hooks():
        yield Onlooker("hook", None)
    for module in hooked_modules(root):
        for held in hooks_of(module):
            if not _is_owned(held, owner) and not harmless(held.hook):
                yield Onlooker(held.kind, module)


def is_watched(call: Call, harmless: Callable[[Any], bool]) -> bool:
    """Tell whether someone else's hooks are on the module of a call, or below."""
    return others_below(call.module, call, harmless)


def others_below(root: nn.Module, call: Call, harmless: Callable[[Any], bool]) -> bool:
    """Tell whether hooks of other owners than the call's are on a module or below; False in a probe's own calls."""
    dispatcher = call._owner
    if not isinstance(dispatcher, Dispatcher):
        return False
    return next(onlookers(root, dispatcher.owner, harmless), None) is not None


def _is_owned(held: ModuleHook, owner: Hashable) -> bool:
    """Tell whether a hook belongs to a registry with this owner, or to one that runs nothing there."""
    dispatcher = dispatcher_of(held.hook)
    return dispatcher is not None and (dispatcher.owner == owner or not dispatcher.entries)
