"""Steps that Ctrl-C cannot leave half done: each ends as if it had run, or as if it had not.

A KeyboardInterrupt can be raised before any line, even in ``finally``. So whatever must run is written twice, one
``finally`` inside the other, and is idempotent, even after a partial run. A single interrupt cannot hit both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")


def block(enter: Callable[[], _T], leave: Callable[[], Any]) -> Iterator[_T]:
    """Yield once between two steps, for ``yield from`` in a ``contextlib.contextmanager``.

    Not a context manager itself: an interrupt at the end of a ``with`` statement skips its ``__exit__``.

    Args:
        enter: Runs first; its result is yielded.
        leave: Runs at the end, whatever was raised, even by ``enter``. It may run twice.
    """
    try:
        try:
            yield enter()
        finally:
            leave()
    finally:
        leave()


def always(step: Callable[[], _T], then: Callable[[], Any]) -> _T:
    """Run ``step``, then ``then``, whatever was raised. ``then`` may run twice."""
    try:
        try:
            return step()
        finally:
            then()
    finally:
        then()


def attempt(step: Callable[[], _T], undo: Callable[[], Any]) -> _T:
    """Run ``step``, and ``undo`` if it does not complete. ``undo`` may run twice."""
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
    """Run ``step``, and run it once more if it is interrupted."""
    try:
        step()
    except BaseException as error:
        if not isinstance(error, Exception):
            step()
        raise
