"""``HookRegistry``: attach, order, disable and detach named forward hooks on any ``nn.Module``."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from .._arguments import need_module
from .._public import public
from ..errors import HookError, HookNameError, close_matches
from .board import Attached, State
from .call import Hook
from .places import Places
from .selectors import Roles, Selector
from .table import HookTable, describe
from .undo import block
from .wanted import Wanted, having

_numbers = itertools.count()


def _find_roles(model: nn.Module) -> Roles:
    from ..compat.sentence_transformers import find_roles  # asked only when a selector may be a role

    return find_roles(model)


@public
class HookRegistry:
    """The forward hooks that one owner has on a model.

    Attaching, detaching, enabling and disabling are not thread-safe; the hooks themselves run in any thread.
    The registry does not keep the model alive, and leaves nothing on a module on which it has no enabled hook.
    Wherever Ctrl-C hits, each call and each block is left either not begun or complete.

    Args:
        model: Any ``nn.Module``.
        roles: Finds the paths of named roles in the model. The default knows ``"transformer"``, ``"backbone"`` and
            ``"pooling"`` of Sentence Transformers models.
        owner: Marks the hooks on the modules. One registry per owner and model is enough.

    Raises:
        TypeError: If ``model`` is not an ``nn.Module``.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, LogShapes
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> registry = HookRegistry(model)
        >>> registry.attach(LogShapes(), to=torch.nn.Linear, name="log")
        'log'
        >>> registry.disable("log")
        >>> registry
        HookRegistry(Sequential, 1 hook)
        [0] log: LogShapes() on '0', order 0, disabled
    """

    def __init__(
        self, model: nn.Module, *, roles: Callable[[nn.Module], Roles] = _find_roles, owner: Hashable = None
    ) -> None:
        need_module(model, "HookRegistry")
        self._model = weakref.ref(model)
        self._roles = roles
        self._places = Places(State(f"registry {next(_numbers)}" if owner is None else owner))

    @classmethod
    def adopt(cls, model: nn.Module, owner: Hashable) -> HookRegistry:
        """Make a registry of the hooks of ``owner`` that are already on ``model``, a copied or unpickled model.

        Hooks that were disabled when the model was copied are on no module, and so are not found.
        """
        registry = cls(model, owner=owner)
        registry._places = Places.found_on(model, owner)
        return registry

    @property
    def model(self) -> nn.Module:
        """The model.

        Raises:
            HookError: If the model no longer exists: the registry does not keep it alive.
        """
        model = self._model()
        if model is None:
            raise HookError("the model of this registry is gone: keep a reference to it while you use the registry")
        return model

    def attach(self, hook: Hook, to: Selector, name: str | None = None, order: int = 0) -> str:
        """Attach ``hook`` to every module that ``to`` selects, all or none.

        Args:
            hook: An instance of a ``Hook``.
            to: A role, path, glob, module class, module or predicate ``(path, module) -> bool``.
            name: The hook's name; by default its class name, with a number if that is taken.
            order: Lower runs first, both before and after the module; equal orders run in the order of attachment.

        Returns:
            The name.

        Raises:
            TypeError: If ``hook`` is not an instance of a ``Hook``, ``name`` not a str or ``order`` not a number.
            HookNameError: If the name is taken.
            SelectorError: If ``to`` matches no module.
            HookError: If a module is already compiled: PyTorch would silently leave the hook out.
        """
        self._need_hook(hook)
        name = self._free_name(type(hook).__name__) if name is None else name
        wanted = Wanted(name, hook, to, order)
        self._places.switch(having(self.state, wanted, self.state.keys(), self.model, self._roles))
        return name

    def attach_all(
        self, wanted: Iterable[Wanted], note: Any = None, path_of: Mapping[nn.Module, str] | None = None
    ) -> None:
        """Replace all hooks with these, with a note of their owner's. Raises what ``attach`` raises."""
        keys = self.state.keys()
        state = replace(self.state, hooks={}, note=note)
        for one in wanted:
            state = having(state, one, keys, self.model, self._roles, path_of)
        self._places.switch(state)

    @staticmethod
    def _need_hook(hook: Hook) -> None:
        if not isinstance(hook, Hook):
            hint = ": make an instance of it" if isinstance(hook, type) else ""
            raise TypeError(f"attach needs an instance of a peft_hooks.Hook, got {hook!r}{hint}")

    def detach(self, name: str) -> None:
        """Remove the hook from every module.

        Raises:
            HookNameError: If no hook has this name.
        """
        self._get(name)
        self._places.switch(self.state.lacking(name))

    def clear(self) -> None:
        """Detach every hook of this registry. Other owners' hooks stay."""
        self._places.switch(replace(self.state, hooks={}))

    def reset(self) -> None:
        """Detach every hook of this registry, including those that a block has set aside."""
        self._places.switch(State(self.owner))

    def enable(self, name: str) -> None:
        """Put a disabled hook back on its modules, in its order. Raises HookNameError for an unknown name."""
        self._get(name)
        self._places.switch(self.state.switched([name], True))

    def disable(self, name: str) -> None:
        """Take the hook off its modules until ``enable``, at no cost. Raises HookNameError for an unknown name."""
        self._get(name)
        self._places.switch(self.state.switched([name], False))

    @contextlib.contextmanager
    def attached(self, hook: Hook, to: Selector, name: str | None = None, order: int = 0) -> Iterator[str]:
        """Attach for a ``with`` block, which gets the name. Blocks nest. Takes and raises what ``attach`` does."""
        self._need_hook(hook)
        chosen = self._free_name(type(hook).__name__) if name is None else name
        former = self.state.hooks.get(chosen)

        def leave() -> None:
            now = self.state.hooks.get(chosen)
            if now is not None and now is not former and now.hook is hook:
                self.detach(chosen)

        yield from block(lambda: self.attach(hook, to, chosen, order), leave)

    @contextlib.contextmanager
    def disabled(self, *names: str) -> Iterator[None]:
        """Disable the named hooks, or all, for a ``with`` block; hooks that were already disabled stay so."""
        for name in names:
            self._get(name)
        chosen = [name for name in (names or self.state.hooks) if self.state.hooks[name].enabled]
        yield from block(
            lambda: self._places.switch(self.state.switched(chosen, False)),
            lambda: self._places.switch(self.state.switched(chosen, True)),
        )

    @contextlib.contextmanager
    def replaced(self, owner: Hashable = None) -> Iterator[None]:
        """Set all hooks aside for a ``with`` block, which may attach others; the former come back at its end.

        What PyTorch holds on the modules stays in place, so the block leaves no trace; its hooks are marked ``owner``.
        """
        former = self.state
        yield from block(lambda: self.set_aside(owner), lambda: self.put_back(former))

    def set_aside(self, owner: Hashable = None) -> None:
        """Run none of the current hooks until ``put_back`` restores this state; hooks attached meanwhile do run."""
        self._places.switch(State(self.owner if owner is None else owner, outer=self.state))

    def put_back(self, former: State) -> None:
        """Put a state that was set aside in force again; do nothing if it is not set aside or ``reset`` dropped it."""
        if self.state.inside(former):
            self._places.switch(former)

    @property
    def state(self) -> State:
        """What is attached now: immutable, and replaced whenever something is attached or detached."""
        return self._places.state

    @property
    def owner(self) -> Hashable:
        """The owner that marks the hooks on the modules."""
        return self._places.state.owner

    def restore(self, former: State) -> None:
        """Put a former state of this registry in force, whatever has been attached or detached since."""
        self._places.switch(former)

    def describe(self) -> HookTable:
        """List every hook on every module: role, order, calls, and, where known, why it was never called."""
        return describe(self.model, self.state.ordered(), self.state.calls(), self._roles(self.model))

    def _get(self, name: str) -> Attached:
        try:
            return self.state.hooks[name]
        except KeyError:
            raise HookNameError(f"no hook is named {name!r}{close_matches(name, self.state.hooks)}") from None

    def _free_name(self, kind: str) -> str:
        numbered = (f"{kind}-{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain([kind], numbered) if name not in self.state.hooks)

    def __contains__(self, name: object) -> bool:
        return name in self.state.hooks

    def __iter__(self) -> Iterator[str]:
        return iter(self.state.hooks)

    def __len__(self) -> int:
        return len(self.state.hooks)

    def __repr__(self) -> str:
        model = self._model()
        count = f"{len(self)} hook{'' if len(self) == 1 else 's'}"
        lines = [f"HookRegistry({'a model that is gone' if model is None else type(model).__name__}, {count})"]
        for number, (name, attached) in enumerate(self.state.ordered()):
            places = ", ".join(repr(path) for path in attached.entries)
            off = "" if attached.enabled else ", disabled"
            lines.append(f"[{number}] {name}: {attached.hook!r} on {places}, order {attached.order}{off}")
        return "\n".join(lines)
