"""An exception that nobody traced is explained after the fact, from its traceback alone.

What a trace knows beside it, such as what each module was given and what the model returned, is not known here. This
module imports no other library before there is something to explain.
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

_MOST = 20  # exceptions of one chain or group that are looked at


def explain_afterwards(error: BaseException) -> Failure | None:
    """Add a note to an exception that the forward of any module raised, as a trace does.

    The exceptions that it came from, and those in a group, are explained as well where they are the ones that a forward
    raised: Python prints each with its own notes. One that has a note keeps it and gains no other. Nothing is added to
    what the code raises on purpose, nor to an error that has nothing to do with tensors. Never raises.

    Args:
        error: The exception. Neither it nor a frame or tensor of its traceback is kept.

    Returns:
        The first failure that was explained, or None.
    """
    if "torch" not in sys.modules:
        return None
    first = None
    for one in _chain(error):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of attributes that others deprecated, and only looked at here
                failure = _explain(one)
        except Exception:  # an error while explaining must not hide the error that is explained
            logger.debug("an exception could not be explained", exc_info=True)
            continue
        first = first or failure
    return first


def _explain(error: BaseException) -> Failure | None:
    """Explain one exception by itself."""
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
    """Return the exceptions that one came from, or that are in it if it is a group."""
    context = None if error.__suppress_context__ else error.__context__
    inner: Any = getattr(error, "exceptions", ())
    parts = inner if isinstance(inner, (tuple, list)) else ()
    return [one for one in (error.__cause__, context, *parts) if isinstance(one, BaseException)]
