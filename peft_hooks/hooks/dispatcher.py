"""What a registry puts on a module, and how to find it again.

A ``Dispatcher`` is the only thing that the library puts on a module: one pre-hook and one forward hook, which run the
hooks of one registry in order. It refers to no module and no registry, so a model with hooks can be copied or pickled,
in part or as a whole, and nothing else comes along. What it runs is on its registry's board.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling, is_dynamo_compiling

from ..compat.torch_internals import (
    drop_hooks,
    ends_recomputation,
    hooks_of,
    keep_keys_free,
    keys_taken,
    pre_hooks_of,
)
from .board import Attached, Board, Entry, Place, State, new_key
from .call import NOTHING, STARTING, Call, Hook
from .running import count_like, drop_ended, has_frame

_Kwargs = dict[str, Any]


class _Running(threading.local):
    """The calls running in one thread, of modules with hooks of any registry, innermost last.

    This is not a ContextVar, because torch.compile breaks its graph there; and the default is not a class attribute,
    because torch.compile loses assignments to it (PyTorch 2.13).
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []


_running = _Running()


class Dispatcher:
    """Run the entries of one registry on one module: lower ``order`` first, in both ``before`` and ``after``.

    Args:
        path: The module's path, for the hooks' messages.
        board: Where the registry keeps its hooks.
        key: The key of the module's place there.
    """

    def __init__(self, path: str, board: Board, key: int) -> None:
        self.path = path
        self.at = board, key

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What runs on the module, in order."""
        board, key = self.at
        return board.state.running.get(key, ())

    @property
    def owner(self) -> Hashable:
        """The owner that marks the registry's hooks, by which they are found again on a copied model."""
        return self.at[0].state.owner

    def put_on(self, module: nn.Module) -> None:
        """Put the two hooks on the module. An interrupt between the two leaves a hook that runs nothing."""
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        # always_call: the forward hook also runs when the forward raises, so `failed` works and no call is left over.
        module.register_forward_hook(self._after, always_call=True)

    @torch.jit.unused
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: _Kwargs | None = None) -> Any:
        if kwargs is None:
            return None  # `put_on` was interrupted: PyTorch has the hook, but does not yet know that it takes keywords
        board, key = self.at
        call = Call(module, self.path, args, kwargs)
        # Recorded for `_after`: a hook attached in the meantime has not run before the module.
        call._entries = entries = board.state.running.get(key, ())
        compiling = is_compiling()
        # Before the entries run: if one raises, `_after` still runs, and must not pop the call of an outer forward.
        self._begin(call)
        for entry in entries:
            if not compiling:  # a changing counter would become a guard, and every call would recompile the model
                entry.calls += 1
            if entry.before is not None:
                entry.before(call)
        # The exception being handled around this forward, to tell it apart from one that the forward itself raises.
        call._around = NOTHING if compiling else sys.exc_info()[1]
        return call.args, call.kwargs

    def _begin(self, call: Call) -> None:
        """Push a call onto the stack, inside the call around it."""
        calls = _running.calls
        call._owner = self
        # By default torch.export runs the modules as they are, and runs no hook when one of them raises.
        if not is_dynamo_compiling():
            call._visible = has_frame(call.module)
            drop_ended(calls, call)
        if calls:
            call._outer = calls[-1]
            call._same = _is_same(calls, calls[-1], call)
        calls.append(call)

    @torch.jit.unused
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = self._end(module)
        # None: a pre-hook raised before ours ran, or the hook was attached while the module ran.
        if call is None or call._around is STARTING:
            return None
        if call._around is not NOTHING:
            error = sys.exc_info()[1]
            if error is not None and error is not call._around:
                self._failed(call, error)
                return None
        for entry in call._entries:
            if entry.after is not None:
                replaced = entry.after(call, output)
                if replaced is not None:
                    output = replaced
        return output

    def _end(self, module: nn.Module) -> Call | None:
        """Remove the module's innermost call from the stack. Calls of other registries may lie above it."""
        calls = _running.calls
        for index in range(len(calls) - 1, -1, -1):
            if calls[index]._owner is self and calls[index].module is module:
                return calls.pop(index)
        return None

    def _failed(self, call: Call, error: BaseException) -> None:
        """Report an error to the hooks once it has left every module with hooks: a caught error is not a failure."""
        for entry in call._entries:
            entry.hook._aborted(call)
        if ends_recomputation(error):
            return
        failures, outer = [*(call._failures or ()), (call, error)], call.parent
        if outer is not None:  # if the outer call succeeds, this failure is forgotten with it
            outer._failures = failures if outer._failures is None else [*outer._failures, *failures]
            return
        for failed, reason in failures:
            for entry in failed._entries if _led_to(reason, error) else ():
                if entry.failed is not None:
                    entry.failed(failed, reason)

    def __getstate__(self) -> dict[str, Any]:
        # Not the board, which also has the hooks of the other modules.
        return {"path": self.path, "owner": self.owner, "entries": self.entries, "keys": keys_taken()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        keep_keys_free(state["keys"])
        key, hooks = new_key(), {}
        for entry in state["entries"]:
            entry.key = key
            hooks[entry.name] = Attached(entry.hook, entry.order, entry.turn, {self.path: entry})
        # `HookRegistry.adopt` finds out which module it is on.
        self.at = Board(State(state["owner"], hooks, {key: Place(self.path, None)})), key


def _led_to(reason: BaseException, error: BaseException) -> bool:
    """Tell whether ``error`` is ``reason``, or was raised while ``reason`` was being handled."""
    found: BaseException | None = error
    while found is not None and found is not reason:
        found = found.__cause__ or found.__context__
    return found is reason


def _is_same(calls: list[Call], outer: Call, beginning: Call) -> bool:
    """Tell whether another registry's dispatcher began ``outer`` for the very call that is beginning now."""
    if outer.module is not beginning.module or outer._owner is beginning._owner:
        return False
    return count_like(calls, beginning) < count_like(calls, outer)


def dispatcher_of(hook: Any) -> Dispatcher | None:
    """Return the dispatcher that a PyTorch hook belongs to, or None if it is someone else's hook."""
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, Dispatcher) else None


def take_off(module: nn.Module, board: Board, key: int) -> None:
    """Remove what the board's registry put on a module, or as much of it as an interrupt left."""
    for held in list(hooks_of(module)):
        dispatcher = dispatcher_of(held.hook)
        if dispatcher is not None and dispatcher.at == (board, key):
            drop_hooks(module, dispatcher)


def hooked_for(module: nn.Module, kind: type) -> bool:
    """Tell whether a module has hooks whose owner is of this class. Runs in every forward, so it must be fast."""
    for hook in pre_hooks_of(module):
        dispatcher = getattr(hook, "__self__", None)
        if type(dispatcher) is Dispatcher and isinstance(dispatcher.owner, kind):
            return True
    return False


def hooks_on(module: nn.Module) -> Iterator[Hook]:
    """Yield the hooks of all registries on a module itself."""
    for dispatcher in dict.fromkeys(dispatcher_of(held.hook) for held in hooks_of(module)):
        if dispatcher is not None:
            yield from (entry.hook for entry in dispatcher.entries)


def dispatchers_on(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module, Dispatcher]]:
    """Yield every dispatcher on modules such as ``model.named_modules()``, of copied and unpickled models as well."""
    for path, module in modules:
        for held in hooks_of(module):
            # A dispatcher has one hook before the forward and one after it; the latter stands for both.
            dispatcher = dispatcher_of(held.hook) if held.kind == "forward hook" else None
            if dispatcher is not None:
                yield path, module, dispatcher
