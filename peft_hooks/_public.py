"""What makes a class or function public: the module that users import it from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Named = TypeVar("_Named", bound=Callable[..., object])


def public(named: _Named) -> _Named:
    """Give a public class or function ``peft_hooks`` as its module.

    So reprs, error messages and pickles name what users import, and survive a move between files.
    """
    named.__module__ = "peft_hooks"
    return named
