"""Keep the hooks of a registry in a single immutable ``State``, which is replaced in one step.

A ``Board`` holds the current state, and the dispatchers on the modules read it. An interrupt therefore leaves either
all modules with the old hooks or all with the new ones. What PyTorch holds on the modules is updated separately: a
dispatcher without entries in the state runs nothing.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from .call import Call, Hook

new_key = itertools.count().__next__
"""Return a new key for a place: one module that a registry has hooks on."""


@dataclass(slots=True)
class Entry:
    """One hook on one module.

    ``turn`` numbers the hooks of a registry in the order in which they were attached; ``key`` is the place's key.
    ``calls`` is counted without a lock, so threads and replicas may lose a few.
    """

    name: str
    hook: Hook
    order: int
    turn: int = 0
    key: int = -1
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


@dataclass(frozen=True)
class Attached:
    """One attached hook and its entries by path, which are on no module while it is disabled.

    ``since`` is how often each path had been called when the entries were put on, to tell what has run since.
    """

    hook: Hook
    order: int
    turn: int
    entries: Mapping[str, Entry]
    enabled: bool = True
    since: Counter[str] = field(default_factory=Counter)


class Place(NamedTuple):
    """One module that a registry has hooks on; ``reference`` is None while it is not yet known which module."""

    path: str
    reference: weakref.ReferenceType[nn.Module] | None

    @property
    def module(self) -> nn.Module | None:
        """The module, or None if it is unknown or no longer exists."""
        return None if self.reference is None else self.reference()


@dataclass(frozen=True, eq=False)
class State:
    """All hooks of a registry; immutable.

    Attributes:
        owner: Marks the registry's hooks.
        hooks: The attached hooks by name.
        known: The places of the entries by key.
        note: What the owner needs to remember about these hooks.
        outer: The state that is set aside while this one is in force; its dispatchers stay on the modules.
        running: What runs in each place, in order.
        places: Where a dispatcher has to be.
    """

    owner: Hashable
    hooks: Mapping[str, Attached] = field(default_factory=dict)
    known: Mapping[int, Place] = field(default_factory=dict)
    note: Any = None
    outer: State | None = None
    running: Mapping[int, tuple[Entry, ...]] = field(init=False)
    places: Mapping[int, Place] = field(init=False)

    def __post_init__(self) -> None:
        running: dict[int, tuple[Entry, ...]] = {}
        known: dict[int, Place] = {}
        for _, attached in self.ordered():
            for entry in attached.entries.values():
                known[entry.key] = self.known[entry.key]
                if attached.enabled:
                    running[entry.key] = (*running.get(entry.key, ()), entry)
        places = {} if self.outer is None else dict(self.outer.places)
        places.update((key, known[key]) for key in running)
        object.__setattr__(self, "known", known)
        object.__setattr__(self, "running", running)
        object.__setattr__(self, "places", places)

    def ordered(self) -> list[tuple[str, Attached]]:
        """Return the hooks in the order in which they run."""
        return sorted(self.hooks.items(), key=lambda item: (item[1].order, item[1].turn))

    def calls(self) -> Counter[str]:
        """Count the calls of the hooks on each path."""
        calls: Counter[str] = Counter()
        for attached in self.hooks.values():
            for path, entry in attached.entries.items():
                calls[path] += entry.calls
        return calls

    def where(self) -> set[tuple[str, nn.Module | None]]:
        """Return pairs of a hook's name and a module that it is on."""
        hooks = self.hooks.items()
        return {(name, self.known[entry.key].module) for name, one in hooks for entry in one.entries.values()}

    def next_turn(self) -> int:
        """Return the turn of the next hook to be attached."""
        return 1 + max((attached.turn for attached in self.hooks.values()), default=0)

    def keys(self) -> dict[Place, int]:
        """Return the keys of all known places, including those of states that are set aside."""
        keys = {} if self.outer is None else self.outer.keys()
        keys.update((place, key) for key, place in self.known.items() if place.module is not None)
        return keys

    def having(self, name: str, attached: Attached, known: Mapping[int, Place]) -> State:
        """Return this state with one more hook, on the modules in ``known``."""
        return replace(self, hooks={**self.hooks, name: attached}, known={**self.known, **known})

    def lacking(self, name: str) -> State:
        """Return this state without one hook."""
        return replace(self, hooks={other: attached for other, attached in self.hooks.items() if other != name})

    def switched(self, names: Iterable[str], enabled: bool) -> State:
        """Return this state with the named hooks enabled or disabled."""
        since, hooks = self.calls(), dict(self.hooks)
        for name in names:
            if name in hooks and hooks[name].enabled is not enabled:
                hooks[name] = replace(hooks[name], enabled=enabled, since=since if enabled else hooks[name].since)
        return replace(self, hooks=hooks)

    def inside(self, other: State) -> bool:
        """Tell whether ``other`` is set aside while this state is in force."""
        return self.outer is not None and (self.outer is other or self.outer.inside(other))


class Board:
    """Hold the current state: attaching or detaching anything is one assignment to ``state``."""

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state = state
