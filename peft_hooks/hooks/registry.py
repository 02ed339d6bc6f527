"""``HookRegistry``: named, ordered forward hooks on any ``nn.Module``, with their whole life."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator

from torch import nn

from .._arguments import need_module
from ..errors import HookError, HookNameError, close_matches
from .call import Hook
from .dispatcher import Entry, compiled_part
from .selectors import Roles, Selector, select
from .table import HookTable, describe
from .targets import Attached, Places

_numbers = itertools.count()


def _find_roles(model: nn.Module) -> Roles:
    from ..compat.sentence_transformers import (
        find_roles,  # knows Sentence Transformers; asked only when a selector may be a role
    )

    return find_roles(model)


class HookRegistry:
    """The forward hooks that one owner has on a model.

    Attaching, detaching, enabling and disabling are not thread-safe; the hooks themselves run in any thread.
    The registry does not keep the model alive, and nothing of it stays on a module that has no enabled hook of it.

    Args:
        model: Any ``nn.Module``.
        roles: Finds the paths of named roles in the model. The default knows ``"transformer"``, ``"backbone"`` and
            ``"pooling"`` of Sentence Transformers models.
        owner: What the hooks on the modules are marked with. One registry for an owner and model is enough.

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
        self._hooks: dict[str, Attached] = {}
        self._places = Places(f"registry {next(_numbers)}" if owner is None else owner)

    @classmethod
    def adopt(cls, model: nn.Module, owner: Hashable) -> HookRegistry:
        """Make a registry of the hooks of ``owner`` that are on ``model`` already: a copied or unpickled model.

        Hooks that were disabled when the model was copied are on no module, and so are not found.
        """
        registry = cls(model, owner=owner)
        registry._places = Places.found_on(model, owner)
        for path, target in registry._places.targets.items():
            for entry in target.entries:
                attached = registry._hooks.setdefault(entry.name, Attached(entry.hook, entry.order, {}))
                attached.entries[path] = entry
        return registry

    @property
    def model(self) -> nn.Module:
        """The model.

        Raises:
            HookError: If it is gone: the registry does not keep it alive.
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
            name: What the hook goes by; by default its class name, with a number if that is taken.
            order: Lower runs first, before and after the module alike; equal orders run by name.

        Returns:
            The name.

        Raises:
            TypeError: If ``hook`` is not an instance of a ``Hook``, ``name`` no str or ``order`` no number.
            HookNameError: If the name is taken.
            SelectorError: If ``to`` matches no module.
            HookError: If a module is compiled already: PyTorch would leave the hook out without a word.
        """
        if not isinstance(hook, Hook):
            hint = ": make an instance of it" if isinstance(hook, type) else ""
            raise TypeError(f"attach needs an instance of a peft_hooks.Hook, got {hook!r}{hint}")
        name = self._free_name(type(hook).__name__) if name is None else name
        if name in self._hooks:
            raise HookNameError(
                f"a hook named {name!r} is attached already: detach({name!r}) first, or take another name"
            )
        found = select(self.model, to, self._roles)
        for path, _ in found:
            self._refuse_compiled(path, name)
        self._hooks[name] = Attached(hook, order, {path: Entry(name, hook, order) for path, _ in found})
        try:
            self._places.add(found)
            self._put_on(name)
        except BaseException:
            self.detach(name)
            raise
        return name

    def _refuse_compiled(self, path: str, name: str) -> None:
        compiled = compiled_part(self.model, path)
        if compiled is not None:
            raise HookError(
                f"{compiled or type(self.model).__name__!r} is compiled already, and PyTorch leaves out hooks that are "
                f"attached after torch.compile: attach {name!r} first, then compile"
            )

    def detach(self, name: str) -> None:
        """Take the hook off every module.

        Raises:
            HookNameError: If no hook has this name.
        """
        self._places.take_off(self._get(name))
        del self._hooks[name]
        self._places.keep_only({path for attached in self._hooks.values() for path in attached.entries})

    def clear(self) -> None:
        """Detach every hook of this registry. Hooks of others stay."""
        for name in list(self._hooks):
            self.detach(name)

    def enable(self, name: str) -> None:
        """Put a disabled hook back on its modules, in its order. Raises HookNameError for an unknown name."""
        if not self._get(name).enabled:
            self._put_on(name)

    def disable(self, name: str) -> None:
        """Take the hook off its modules until ``enable``; it costs nothing. Raises HookNameError for an unknown one."""
        if self._get(name).enabled:
            self._places.take_off(self._hooks[name])

    @contextlib.contextmanager
    def attached(self, hook: Hook, to: Selector, name: str | None = None, order: int = 0) -> Iterator[str]:
        """Attach for the length of a block, which gets the name. Blocks nest. Takes and raises what ``attach`` does."""
        name = self.attach(hook, to, name, order)
        try:
            yield name
        finally:
            if name in self._hooks and self._hooks[name].hook is hook:
                self.detach(name)

    @contextlib.contextmanager
    def disabled(self, *names: str) -> Iterator[None]:
        """Disable the named hooks, or all, for the length of a block; those that were disabled before stay so."""
        for name in names:
            self._get(name)
        chosen = [name for name in (names or self._hooks) if self._hooks[name].enabled]
        try:
            for name in chosen:
                self.disable(name)
            yield
        finally:
            for name in chosen:
                if name in self._hooks:
                    self.enable(name)

    @contextlib.contextmanager
    def replaced(self, owner: Hashable = None) -> Iterator[None]:
        """Set all hooks aside for the length of a block, which may attach others; the former come back after it.

        What PyTorch holds on the modules stays in place, so the block leaves no trace; its hooks are marked ``owner``.
        """
        hooks, places = self._hooks, self._places
        self._hooks, self._places = {}, places.set_aside(places.owner if owner is None else owner)
        try:
            yield
        finally:
            self.clear()
            self._hooks, self._places = hooks, places
            places.update()

    def describe(self) -> HookTable:
        """List every hook on every module: role, order, calls, and why a hook never fired, where that is known."""
        return describe(self.model, self._ordered(), self._calls(), self._roles(self.model))

    def _ordered(self) -> list[tuple[str, Attached]]:
        return sorted(self._hooks.items(), key=lambda item: (item[1].order, item[0]))

    def _get(self, name: str) -> Attached:
        try:
            return self._hooks[name]
        except KeyError:
            raise HookNameError(f"no hook is named {name!r}{close_matches(name, self._hooks)}") from None

    def _free_name(self, kind: str) -> str:
        numbered = (f"{kind}-{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain([kind], numbered) if name not in self._hooks)

    def _calls(self) -> Counter[str]:
        calls: Counter[str] = Counter()
        for attached in self._hooks.values():
            for path, entry in attached.entries.items():
                calls[path] += entry.calls
        return calls

    def _put_on(self, name: str) -> None:
        attached = self._hooks[name]
        attached.since = self._calls()
        self._places.put_on(attached)

    def __contains__(self, name: object) -> bool:
        return name in self._hooks

    def __iter__(self) -> Iterator[str]:
        return iter(self._hooks)

    def __len__(self) -> int:
        return len(self._hooks)

    def __repr__(self) -> str:
        model = self._model()
        count = f"{len(self)} hook{'' if len(self) == 1 else 's'}"
        lines = [f"HookRegistry({'a model that is gone' if model is None else type(model).__name__}, {count})"]
        for number, (name, attached) in enumerate(self._ordered()):
            places = ", ".join(repr(path) for path in attached.entries)
            off = "" if attached.enabled else ", disabled"
            lines.append(f"[{number}] {name}: {attached.hook!r} on {places}, order {attached.order}{off}")
        return "\n".join(lines)
