"""Mark classes and functions as public: their ``__module__`` is the one that users import them from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Named = TypeVar("_Named", bound=Callable[..., object])


def public(named: _Named) -> _Named:
    """Set the ``__module__`` of a public class or function to ``peft_hooks``.

    Reprs, error messages and pickles then name what users import, and survive a move between files.
    """
    named.__module__ = "peft_hooks"
    return named
