"""What a wrong call was given, in words, and what to give in its place."""

from __future__ import annotations

import os
from typing import Any

from torch import nn


def shown(value: Any) -> str:
    """Return what was given, for a message: ``the str 'minilm'``, ``None``, ``a BertModel``, ``the class Linear``."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if isinstance(value, str):
        return f"the {name} {value if len(value) <= 80 else value[:77] + '...'!r}"
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def need_module(value: Any, who: str) -> None:
    """Raise TypeError if ``value`` is no module, with what to give to ``who``.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(value, nn.Module):
        return
    hint = "load the model first"
    if isinstance(value, type):
        hint = "make an instance of it"
    elif isinstance(value, (list, tuple, set, dict)):
        hint = "give one module"
    elif isinstance(getattr(value, "model", None), nn.Module):
        hint = "give its `.model`"
    raise TypeError(f"{who} needs an nn.Module, got {shown(value)}: {hint}")


def loading(value: Any) -> str:
    """Return how to come from what is no module to a model of Sentence Transformers."""
    if isinstance(value, type):
        return "give a loaded model, not a class"
    if isinstance(value, (list, tuple, set, dict)):
        return "give one model"
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    return f"load it first, SentenceTransformer({'path' if path is None else repr(path)})"
