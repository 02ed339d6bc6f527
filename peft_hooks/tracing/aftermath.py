"""Explain an exception that was not traced, after the fact, from its traceback alone.

What only a trace knows, such as what each module was given and what the model returned, is not known here. This module
imports no other library until there is something to explain.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import PeftHooksError

if TYPE_CHECKING:
    from .explain.failure import Failure

logger = logging.getLogger("peft_hooks")

_MOST = 20  # the most exceptions of one chain or group that are explained


def explain_afterwards(error: BaseException) -> Failure | None:
    """Add a note to an exception that the forward of any module raised, as a trace does.

    Its causes and contexts and the exceptions in a group are explained, too, if a forward raised them: Python prints
    each with its own notes. An exception that already has a note keeps it and gains no other. No note is added to what
    the code raises on purpose, or to an error that has nothing to do with tensors. Never raises.

    Args:
        error: The exception. No reference to it, or to a frame or tensor in its traceback, is kept.

    Returns:
        The first failure that was explained, or None.
    """
    if "torch" not in sys.modules:
        return None
    first = None
    for one in _chain(error):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about others' deprecated attributes, which are only read here
                failure = _explain(one)
        except Exception:  # an error in the explanation must not hide the original error
            logger.debug("an exception could not be explained", exc_info=True)
            continue
        first = first or failure
    return first


def _explain(error: BaseException) -> Failure | None:
    """Explain a single exception."""
    from .explain.entry import add_explanation, explain_traceback, is_explained

    if not isinstance(error, Exception) or isinstance(error, PeftHooksError) or is_explained(error):
        return None
    failure = explain_traceback(error)
    if failure is not None:
        add_explanation(error, failure)
    return failure


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that Python prints with it, each once."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += _printed_with(one)


def _printed_with(error: BaseException) -> list[BaseException]:
    """Return an exception's cause and context, and its parts if it is a group."""
    context = None if error.__suppress_context__ else error.__context__
    inner: Any = getattr(error, "exceptions", ())
    parts = inner if isinstance(inner, (tuple, list)) else ()
    return [one for one in (error.__cause__, context, *parts) if isinstance(one, BaseException)]
