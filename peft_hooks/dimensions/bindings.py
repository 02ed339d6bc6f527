"""What the named dimensions of one forward are bound to, shared by the hooks on its modules."""

from __future__ import annotations

import threading

import torch
from torch.compiler import is_compiling

from ..hooks.call import Call

# Plain tuples: several are made in every forward.
Bound = tuple[int, str, torch.Size, str]
"""What a name is bound to: its size, and by which tensor, of which shape, of which module."""

Table = dict[str, Bound]

UNBOUND: Table = {}
"""What is bound as a forward begins. One table, so that a hook knows it again."""


class Forward:
    """One thread's forward.

    Attributes:
        bound: What is bound. Never changed, only replaced: going back to a former table is to put it here again.
        running: The calls of checked modules that run, the innermost last, and what was bound before each.
        seen: The paths of those that ran with no other around them.
    """

    __slots__ = ("bound", "running", "seen")

    def __init__(self) -> None:
        self.bound = UNBOUND
        self.running: list[tuple[Call, Table]] = []
        self.seen: set[str] = set()


class _Local(threading.local):
    def __init__(self) -> None:
        self.forward = Forward()


class Bindings:
    """What the names are bound to in the forward that runs in this thread. Shared by the hooks of one model.

    Nothing is kept from module to module inside ``torch.compile``.

    Args:
        joined: Whether modules that are called one after another, with no checked module around them, make up one
            forward until one of them comes again: Sentence Transformers before 5.7 never calls the whole model.
    """

    def __init__(self, joined: bool = True) -> None:
        self.joined = joined
        self._local = _Local()

    def enter(self, call: Call, starts: bool = False) -> Forward:
        """Note that a call begins, and return the forward that it belongs to.

        A new one begins with a module that ``starts`` one while the root does not run, and with one that runs already:
        no module calls itself, but a KeyboardInterrupt runs no hook.
        """
        if is_compiling():
            return Forward()
        forward, path = self._local.forward, call.path
        running = forward.running
        if running:
            if running[-1][0] is call:
                return forward  # another hook on this module
            paths = [other.path for other, _ in running]
            new = path in paths or (starts and "" not in paths)
        else:
            new = starts or not self.joined or path in forward.seen
        if new:
            forward.bound = UNBOUND
            running.clear()
            forward.seen.clear()
        if not running:
            forward.seen.add(path)
        running.append((call, forward.bound))
        return forward

    def forward(self) -> Forward:
        """Return the forward of this thread."""
        return self._local.forward

    def __reduce__(self) -> tuple[type, tuple[bool]]:
        return Bindings, (self.joined,)  # what is bound belongs to a thread: a copy starts with nothing


def leave(forward: Forward, call: Call) -> Table | None:
    """Note that a call is done, and whatever ran inside it; return what was bound before, once for each call."""
    running = forward.running
    for index in range(len(running) - 1, -1, -1):
        if running[index][0] is call:
            former = running[index][1]
            del running[index:]
            return former
    return None
