"""The exceptions of the library. Messages give names, shapes and the way out, never tensor values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeftHooksError(Exception):
    """Base class of every error that peft_hooks raises on purpose."""


class HookNameError(PeftHooksError, LookupError):
    """A hook's name is unknown, or taken already."""


class SelectorError(PeftHooksError, LookupError):
    """A selector matches no module, or is of a kind that cannot select one."""


class HookError(PeftHooksError, RuntimeError):
    """Hooks cannot be attached as asked: a compiled model, other options in force, a model that is gone."""


class UnsupportedModelError(PeftHooksError, ValueError):
    """The model cannot give right embeddings with this adapter, whatever the hooks; the message says what can."""


class LoadError(PeftHooksError, ValueError):
    """A saved model cannot be loaded: it is damaged, incomplete, would run code, or its base model is not found."""


class SaveError(PeftHooksError, ValueError):
    """A model cannot be saved as asked, and nothing was written."""


class DimensionError(PeftHooksError, ValueError):
    """Tensors disagree about a named dimension."""


class DimensionWarning(UserWarning):
    """Tensors disagree about a named dimension, in a check that was asked to warn."""


def close_matches(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"``, or what is known when nothing is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(match) for match in close) + "?"
    if not names:
        return ""
    shown = ", ".join(repr(known_name) for known_name in names[:8])
    return f"; there are: {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
