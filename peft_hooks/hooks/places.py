"""Keep what PyTorch holds on the modules in line with a registry's state, without keeping any module alive."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import replace

from torch import nn

from .board import Attached, Board, Place, State, new_key
from .dispatcher import Dispatcher, dispatchers_on, take_off
from .undo import always


class Places(Board):
    """A board, and the modules that have, or may have, a dispatcher that reads it."""

    __slots__ = ("_held",)

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._held: dict[int, Place] = {}

    def switch(self, state: State) -> None:
        """Put ``state`` in force with one assignment; what happens before and after it changes no forward."""
        always(lambda: self._put_in_force(state), self._tidy)

    def _put_in_force(self, state: State) -> None:
        for key in sorted(state.places.keys() - self._held.keys()):
            self._held[key] = place = state.places[key]
            module = place.module
            if module is not None:
                Dispatcher(place.path, self, key).put_on(module)
        self.state = state

    def _tidy(self) -> None:
        for key in self._held.keys() - self.state.places.keys():
            module = self._held[key].module
            if module is not None:
                take_off(module, self, key)
            del self._held[key]

    @classmethod
    def found_on(cls, model: nn.Module, owner: Hashable) -> Places:
        """Return what a registry of ``owner`` left on ``model``, which may be a copy of the registry's model."""
        places = cls(State(owner))
        found: list[tuple[Dispatcher, int]] = []
        hooks: dict[str, Attached] = {}
        for path, module, dispatcher in dispatchers_on(model.named_modules()):
            if dispatcher.owner != owner:
                continue
            key = new_key()
            found.append((dispatcher, key))
            places._held[key] = Place(path, weakref.ref(module))
            for entry in dispatcher.entries:
                entry.key = key
                former = hooks.get(entry.name, Attached(entry.hook, entry.order, entry.turn, {}))
                hooks[entry.name] = replace(former, entries={**former.entries, path: entry})
        places.state = State(owner, hooks, dict(places._held))
        for dispatcher, key in found:  # each dispatcher runs the same hooks before this assignment and after it
            dispatcher.at = places, key
        return places
