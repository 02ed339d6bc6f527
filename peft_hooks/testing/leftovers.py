"""List the hooks on a model, for tests that none are left behind."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from ..compat.torch_internals import hooks_of
from ..hooks.dispatcher import Dispatcher


class Left(NamedTuple):
    """One hook on one module.

    Attributes:
        path: The path of the module.
        module: The name of the module's class.
        hook: What the hook is, and whose.
        kind: ``"forward hook"``, or another of PyTorch's four kinds.
        key: The key under which PyTorch keeps it; no two hooks share one.
        ours: Whether this library put it there.
    """

    path: str
    module: str
    hook: str
    kind: str
    key: int
    ours: bool


def hooks_on(model: nn.Module, foreign: bool = False) -> list[Left]:
    """Return every hook of this library on the modules of ``model``, and with ``foreign`` other code's hooks."""
    found = []
    for path, module in model.named_modules():
        for kind, key, hook in hooks_of(module):
            left = Left(path, type(module).__name__, _described(hook), kind, key, _is_ours(hook))
            if foreign or left.ours:
                found.append(left)
    return found


def written(model: nn.Module, left: Iterable[Left]) -> str:
    """Return hooks as text, with one line per owner and module."""
    lines: dict[str, list[str]] = {}
    for hook in left:
        kinds = lines.setdefault(f"{hook.module} {hook.path!r}: {hook.hook}", [])
        if not hook.ours:
            kinds.append(hook.kind)
    shown = [f"  {line} ({', '.join(kinds)})" if kinds else f"  {line}" for line, kinds in lines.items()]
    return "\n".join([f"hooks are left on {type(model).__name__}:", *shown])


def _owner(hook: Any) -> Any:
    owner = getattr(hook, "__self__", None)
    return None if isinstance(owner, ModuleType) else owner  # a builtin function's `__self__` is its module


def _is_ours(hook: Any) -> bool:
    owner = _owner(hook)
    home = getattr(hook, "__module__", "") if owner is None else type(owner).__module__
    return str(home).partition(".")[0] == (__package__ or "").partition(".")[0]


def _described(hook: Any) -> str:
    owner = _owner(hook)
    if isinstance(owner, Dispatcher):
        entries = ", ".join(f"{entry.name} ({type(entry.hook).__name__})" for entry in owner.entries) or "no hooks"
        return f"{entries} of {owner.owner}"
    if owner is not None:
        return f"{type(owner).__module__}.{type(owner).__name__}"
    name = getattr(hook, "__qualname__", type(hook).__name__)
    return f"{getattr(hook, '__module__', type(hook).__module__)}.{name}"
