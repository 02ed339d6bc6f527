"""What a registry puts on a module, and how it is found again.

A ``Dispatcher`` is the only thing that the library puts on a module: one pre-hook and one forward hook, which run the
hooks of one registry in their order. It refers to no module and no registry, so that a model with hooks on it can be
copied and pickled, in part or whole, and nothing else comes along.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from ..compat.torch_internals import calls_of, child_of, hooks_of, is_compiled
from .call import NOTHING, STARTING, Call, Hook

_Kwargs = dict[str, Any]


@dataclass(slots=True)
class Entry:
    """One hook on one module. ``calls`` counts without a lock: threads and replicas may lose a few."""

    name: str
    hook: Hook
    order: int
    calls: int = 0
    before: Callable[[Call], None] | None = field(init=False)
    after: Callable[[Call, Any], Any] | None = field(init=False)
    failed: Callable[[Call, BaseException], None] | None = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.order, (int, float)):
            raise TypeError(f"name={self.name!r}, order={self.order!r}: give a str, and a number: lower runs first")
        kind = type(self.hook)
        self.before = self.hook.before if kind.before is not Hook.before else None
        self.after = self.hook.after if kind.after is not Hook.after else None
        self.failed = self.hook.failed if kind.failed is not Hook.failed else None


class _Local(threading.local):
    """The calls that run in one thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Call] = []


class Dispatcher:
    """Runs the entries of one registry on one module, lower ``order`` first, in ``before`` and ``after`` alike.

    Args:
        path: Where the module sits, for the hooks' messages.
        owner: What the registry goes by, so that ``dispatchers`` finds it again on a copied model.
    """

    def __init__(self, path: str, owner: Hashable) -> None:
        self.path = path
        self.owner = owner
        self.entries: tuple[Entry, ...] = ()
        self._handles: tuple[Any, ...] = ()
        self._local = _Local()

    def set_entries(self, module: nn.Module, entries: list[Entry], stay: bool = False) -> None:
        """Put ``entries`` in force; with none left, nothing of the dispatcher stays on the module unless ``stay``."""
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.order, entry.name)))
        if self.entries and not self._handles:
            # Each handle is kept before the next step can raise: with no entries left, all of them are removed again.
            self._handles = (module.register_forward_pre_hook(self._before, with_kwargs=True),)
            # always_call: the forward hook runs, too, when the forward raised; so `failed` works and no call stays.
            self._handles += (module.register_forward_hook(self._after, always_call=True),)
        elif not self.entries and not stay:
            for handle in self._handles:
                handle.remove()
            self._handles = ()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: _Kwargs) -> tuple[tuple[Any, ...], _Kwargs]:
        call = Call(module, self.path, args, kwargs)
        stack = self._local.stack
        compiling = is_compiling()
        if stack and not compiling:
            # PyTorch runs no hook after a KeyboardInterrupt: what it left here goes, and outer calls of itself stay.
            del stack[max(calls_of(module) - 1, 0) :]
        # Before the entries run: if one raises, `_after` runs all the same, and must not take an outer forward's call.
        stack.append(call)
        for entry in self.entries:
            if not compiling:  # a changing counter would be guarded on, and the model recompiled at every call
                entry.calls += 1
            if entry.before is not None:
                entry.before(call)
        # What is being handled around this forward, so that an error of the forward's own is told apart.
        call.around = NOTHING if compiling else sys.exc_info()[1]
        return call.args, call.kwargs

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        stack = self._local.stack
        if not stack:
            return None  # a pre-hook raised before ours ran, or the hook was attached while the module ran
        call = stack.pop()
        if call.around is STARTING:
            return None
        if call.around is not NOTHING:
            error = sys.exc_info()[1]
            if error is not None and error is not call.around:
                self._failed(call, error)
                return None
        for entry in self.entries:
            if entry.after is not None:
                replaced = entry.after(call, output)
                if replaced is not None:
                    output = replaced
        return output

    def _failed(self, call: Call, error: BaseException) -> None:
        for entry in self.entries:
            if entry.failed is not None:
                entry.failed(call, error)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._local = _Local()


def dispatchers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Dispatcher]]:
    """Yield every dispatcher on ``model`` and its submodules with its path, also of a copied or unpickled model."""
    for path, module in model.named_modules():
        for held in hooks_of(module):
            owner = getattr(held.hook, "__self__", None)
            # It has one hook before the forward and one after it: the latter stands for both.
            if held.kind == "forward hook" and isinstance(owner, Dispatcher):
                yield path, module, owner


def compiled_part(model: nn.Module, path: str) -> str | None:
    """Return the path of the compiled module at or around ``path``, or None.

    ``torch.compile`` leaves out hooks that are attached after it, without a word.
    """
    module, at = model, ""
    for part in ("", *path.split(".")) if path else ("",):
        if part:
            child = child_of(module, part)
            module = module if child is None else child  # not `or`: a compiled module's truth is its length
            at = f"{at}.{part}" if at else part
        if is_compiled(module):
            return at
    return None
