"""What a registry puts on a module, and how it is found again.

A ``Dispatcher`` is the only thing that the library puts on a module: one pre-hook and one forward hook, which run the
hooks of one registry in their order. It refers to no module and no registry, so that a model with hooks on it can be
copied and pickled, in part or whole, and nothing else comes along. What it runs is on its registry's board.
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
    calls_of,
    drop_hooks,
    ends_recomputation,
    hooks_of,
    keep_keys_free,
    keys_taken,
    pre_hooks_of,
)
from .board import Attached, Board, Entry, Place, State, new_key
from .call import NOTHING, STARTING, Call, Hook

_Kwargs = dict[str, Any]


class _Running(threading.local):
    """The calls that run in one thread, of modules with hooks of any registry: the innermost last.

    Not a ContextVar, at which torch.compile breaks its graph, nor a class attribute as default, to which assignments
    are lost in it (PyTorch 2.13).
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []


_running = _Running()


class Dispatcher:
    """Runs the entries of one registry on one module, lower ``order`` first, in ``before`` and ``after`` alike.

    Args:
        path: Where the module sits, for the hooks' messages.
        board: Where the registry's hooks are.
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
        """What marks the hooks of the registry, by which they are found again on a copied model."""
        return self.at[0].state.owner

    def put_on(self, module: nn.Module) -> None:
        """Put the two hooks on the module. An interrupt between them leaves what runs nothing."""
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        # always_call: the forward hook runs, too, when the forward raised; so `failed` works and no call stays.
        module.register_forward_hook(self._after, always_call=True)

    @torch.jit.unused
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: _Kwargs | None = None) -> Any:
        if kwargs is None:
            return None  # an interrupt in `put_on`: PyTorch has the hook, and not yet that it takes keywords
        board, key = self.at
        call = Call(module, self.path, args, kwargs)
        # Taken down for `_after`: what is attached or taken off meanwhile has run nothing before the module.
        call._entries = entries = board.state.running.get(key, ())
        compiling = is_compiling()
        # Before the entries run: if one raises, `_after` runs all the same, and must not take an outer forward's call.
        self._begin(call)
        for entry in entries:
            if not compiling:  # a changing counter would be guarded on, and the model recompiled at every call
                entry.calls += 1
            if entry.before is not None:
                entry.before(call)
        # What is being handled around this forward, so that an error of the forward's own is told apart.
        call._around = NOTHING if compiling else sys.exc_info()[1]
        return call.args, call.kwargs

    def _begin(self, call: Call) -> None:
        """Put a call on the stack, under the one around it."""
        calls = _running.calls
        call._owner = self
        # torch.export runs the modules as they are, by default, and no hook when one of them raises.
        if not is_dynamo_compiling():
            call._visible = calls_of(call.module, enough=1) == 1
            while calls and _is_over(calls, call):
                calls.pop()
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
        """Take the innermost call of the module off the stack. Those of other registries may stand above it."""
        calls = _running.calls
        for index in range(len(calls) - 1, -1, -1):
            if calls[index]._owner is self and calls[index].module is module:
                return calls.pop(index)
        return None

    def _failed(self, call: Call, error: BaseException) -> None:
        """Tell the hooks of an error once it has left every module with hooks: what a forward catches is no failure."""
        for entry in call._entries:
            entry.hook._left(call)
        if ends_recomputation(error):
            return
        failures, outer = [*(call._failures or ()), (call, error)], call.parent
        if outer is not None:  # with which it is forgotten, if that ends well
            outer._failures = failures if outer._failures is None else [*outer._failures, *failures]
            return
        for failed, reason in failures:
            for entry in failed._entries if _led_to(reason, error) else ():
                if entry.failed is not None:
                    entry.failed(failed, reason)

    def __getstate__(self) -> dict[str, Any]:
        # Not the board, which has the hooks of the other modules, too.
        return {"path": self.path, "owner": self.owner, "entries": self.entries, "keys": keys_taken()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        keep_keys_free(state["keys"])
        key, hooks = new_key(), {}
        for entry in state["entries"]:
            entry.key = key
            hooks[entry.name] = Attached(entry.hook, entry.order, entry.turn, {self.path: entry})
        # Which module it is on is for `HookRegistry.adopt` to find.
        self.at = Board(State(state["owner"], hooks, {key: Place(self.path, None)})), key


def _led_to(reason: BaseException, error: BaseException) -> bool:
    """Tell whether ``error`` is ``reason``, or was raised while that was handled."""
    found: BaseException | None = error
    while found is not None and found is not reason:
        found = found.__cause__ or found.__context__
    return found is reason


def _is_over(calls: list[Call], beginning: Call) -> bool:
    """Tell whether the innermost call has ended, and stayed: PyTorch ran no hook after it, as after an interrupt.

    Each call of a module has a frame on Python's stack, but for those that torch.compile made frames of its own for.
    """
    last = calls[-1]
    if not last._visible:
        return False
    of_it = _like(calls, last) + (beginning.module is last.module and beginning._owner is last._owner)
    return calls_of(last.module, enough=of_it) < of_it


def _is_same(calls: list[Call], outer: Call, beginning: Call) -> bool:
    """Tell whether another registry's dispatcher began ``outer`` for the very call that is beginning now."""
    if outer.module is not beginning.module or outer._owner is beginning._owner:
        return False
    return _like(calls, beginning) < _like(calls, outer)


def _like(calls: list[Call], one: Call) -> int:
    """Count the calls of the same module by the same dispatcher."""
    return sum(call.module is one.module and call._owner is one._owner for call in calls)


def dispatcher_of(hook: Any) -> Dispatcher | None:
    """Return the dispatcher that put a hook of PyTorch's on a module, or None if it is somebody else's."""
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, Dispatcher) else None


def take_off(module: nn.Module, board: Board, key: int) -> None:
    """Take what the board's registry put on a module off, all of it or what an interrupt left of it."""
    for held in list(hooks_of(module)):
        dispatcher = dispatcher_of(held.hook)
        if dispatcher is not None and dispatcher.at == (board, key):
            drop_hooks(module, dispatcher)


def hooked_for(module: nn.Module, kind: type) -> bool:
    """Tell whether a module has hooks of an owner of this class. Asked in every forward."""
    for hook in pre_hooks_of(module):
        dispatcher = getattr(hook, "__self__", None)
        if type(dispatcher) is Dispatcher and isinstance(dispatcher.owner, kind):
            return True
    return False


def hooks_on(module: nn.Module) -> Iterator[Hook]:
    """Yield what runs on a module itself, of all registries."""
    for dispatcher in dict.fromkeys(dispatcher_of(held.hook) for held in hooks_of(module)):
        if dispatcher is not None:
            yield from (entry.hook for entry in dispatcher.entries)


def dispatchers_on(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module, Dispatcher]]:
    """Yield every dispatcher on the modules, such as ``model.named_modules()``: also of a copied or unpickled model."""
    for path, module in modules:
        for held in hooks_of(module):
            # It has one hook before the forward and one after it: the latter stands for both.
            dispatcher = dispatcher_of(held.hook) if held.kind == "forward hook" else None
            if dispatcher is not None:
                yield path, module, dispatcher
