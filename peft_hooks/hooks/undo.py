"""Steps that Ctrl-C cannot leave half done: each ends as if it had run, or as if it had not.

A KeyboardInterrupt can be raised before any line, also in ``finally``. So what has to run is written twice, the second
time around the first, and is such that running it again, or after a part of it, changes nothing more. One interrupt
cannot hit both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")


def block(enter: Callable[[], _T], leave: Callable[[], Any]) -> Iterator[_T]:
    """Yield once between two steps, for ``yield from`` in a ``contextlib.contextmanager``.

    Not a context manager itself: an interrupt where a ``with`` statement ends passes by its ``__exit__``.

    Args:
        enter: Run first; what it returns is yielded.
        leave: Run at the end, whatever was raised, also by ``enter``. It may run twice.
    """
    try:
        try:
            yield enter()
        finally:
            leave()
    finally:
        leave()


def always(step: Callable[[], _T], then: Callable[[], Any]) -> _T:
    """Run ``step``, and ``then`` whatever it raised. ``then`` may run twice."""
    try:
        try:
            return step()
        finally:
            then()
    finally:
        then()


def attempt(step: Callable[[], _T], undo: Callable[[], Any]) -> _T:
    """Run ``step``, and if it does not come to its end, ``undo``, which may run twice."""
    done = False
    try:
        try:
            result = step()
            done = True
            return result
        finally:
            if not done:
                undo()
    finally:
        if not done:
            undo()


def surely(step: Callable[[], Any]) -> None:
    """Run ``step``, and once more if it is interrupted."""
    try:
        step()
    except BaseException as error:
        if not isinstance(error, Exception):
            step()
        raise
