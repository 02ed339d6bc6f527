"""Where the hooks of one registry are: on which modules, through which dispatchers. Keeps no module alive."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from torch import nn

from .call import Hook
from .dispatcher import Dispatcher, Entry, dispatchers


@dataclass
class Attached:
    """One attached hook: its entries by path. While it is disabled the entries are on no module.

    ``since`` is how often each path had fired when the entries were put on, to tell what ran since.
    """

    hook: Hook
    order: int
    entries: dict[str, Entry]
    enabled: bool = True
    since: Counter[str] = field(default_factory=Counter)


@dataclass
class Target:
    """One module that the registry has hooks on. Pinned, its dispatcher stays on the module with nothing to run."""

    module: weakref.ReferenceType[nn.Module]
    dispatcher: Dispatcher
    entries: list[Entry] = field(default_factory=list)
    pinned: bool = False

    def update(self) -> None:
        """Bring the module's hooks in line with ``entries``."""
        module = self.module()
        if module is not None:
            self.dispatcher.set_entries(module, self.entries, stay=self.pinned)


class Places:
    """The targets of one registry by path."""

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.targets: dict[str, Target] = {}

    @classmethod
    def found_on(cls, model: nn.Module, owner: Hashable) -> Places:
        """Return what a registry of ``owner`` left on ``model``, which may be a copy of the model it was made for."""
        places = cls(owner)
        for path, module, dispatcher in dispatchers(model):
            if dispatcher.owner == owner:
                places.targets[path] = Target(weakref.ref(module), dispatcher, list(dispatcher.entries))
        return places

    def set_aside(self, owner: Hashable) -> Places:
        """Return places of ``owner`` that run nothing, on the same modules: what PyTorch holds there stays as it is."""
        aside = Places(owner)
        aside.targets = {path: Target(old.module, old.dispatcher, pinned=True) for path, old in self.targets.items()}
        aside.update()
        return aside

    def update(self) -> None:
        """Bring every module in line with its target."""
        for target in self.targets.values():
            target.dispatcher.owner = self.owner
            target.update()

    def add(self, found: Iterable[tuple[str, nn.Module]]) -> None:
        """Make a target of each module that is none yet."""
        for path, module in found:
            if path not in self.targets:
                self.targets[path] = Target(weakref.ref(module), Dispatcher(path, self.owner))

    def put_on(self, attached: Attached) -> None:
        """Put a hook on its modules, all or none."""
        attached.enabled = True
        try:
            for path, entry in attached.entries.items():
                target = self.targets[path]
                target.entries.append(entry)
                target.update()
        except BaseException:
            self.take_off(attached)
            raise

    def take_off(self, attached: Attached) -> None:
        """Take a hook off its modules."""
        attached.enabled = False
        for path, entry in attached.entries.items():
            target = self.targets.get(path)
            if target is not None:
                target.entries = [other for other in target.entries if other is not entry]
                target.update()

    def keep_only(self, paths: set[str]) -> None:
        """Forget the targets that no hook has any more."""
        self.targets = {path: old for path, old in self.targets.items() if old.pinned or path in paths}
