"""Bindings of the named dimensions in one forward, shared by the hooks on its modules."""

from __future__ import annotations

import threading

import torch
from torch.compiler import is_compiling

from ..hooks.call import Call

# A plain tuple, for speed: several are made in every forward.
Bound = tuple[int, str, torch.Size, str]
"""What a name is bound to: its size, then the tensor that bound it, that tensor's shape, and its module."""

Table = dict[str, Bound]

UNBOUND: Table = {}
"""What is bound when a forward begins. A single table, so that hooks recognize it by identity."""


class Forward:
    """One thread's forward.

    Attributes:
        bound: What is bound. Tables are never changed, only replaced, so undoing means assigning a former table.
        seen: The paths of the checked modules that ran with no other checked module around them.
    """

    __slots__ = ("bound", "seen")

    def __init__(self) -> None:
        self.bound = UNBOUND
        self.seen: set[str] = set()


class _Local(threading.local):
    def __init__(self) -> None:
        self.forward = Forward()


class Bindings:
    """What the names are bound to in the forward running in this thread. Shared by the hooks of one model.

    Inside ``torch.compile`` nothing is carried from module to module.

    Args:
        joined: Whether modules that are called one after another, with no checked module around them, make up one
            forward until one of them is called again: Sentence Transformers before 5.7 never calls the whole model.
    """

    def __init__(self, joined: bool = True) -> None:
        self.joined = joined
        self._local = _Local()

    def enter(self, call: Call, starts: bool = False) -> Forward:
        """Record that a call begins, and return the forward that it belongs to.

        A new forward begins with a module that ``starts`` one while the root is not running, and with a module that is
        already running.
        """
        if is_compiling():
            return Forward()
        forward, path = self._local.forward, call.path
        if self in call.notes:
            return forward  # another hook on this module
        around = [outer.path for outer in call.enclosing() if self in outer.notes]
        if around:
            new = path in around or (starts and "" not in around)
        else:
            new = starts or not self.joined or path in forward.seen
        if new:
            forward.bound = UNBOUND
            forward.seen.clear()
        if new or not around:
            forward.seen.add(path)
        call.notes[self] = forward.bound
        return forward

    def forward(self) -> Forward:
        """Return the forward of this thread."""
        return self._local.forward

    def __reduce__(self) -> tuple[type, tuple[bool]]:
        return Bindings, (self.joined,)  # bindings belong to a thread: a copy starts with none
