"""Describe wrong arguments in words, and what to pass instead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from .errors import UnsupportedModelError


def in_words(value: Any) -> str:
    """Describe a value for a message: ``the str 'minilm'``, ``None``, ``a BertModel``, ``the class Linear``."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if isinstance(value, str):
        return f"the {name} {value if len(value) <= 80 else value[:77] + '...'!r}"
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def need_module(value: Any, who: str) -> None:
    """Check that ``value`` is a module; otherwise raise an error that says what to pass to ``who``.

    Raises:
        TypeError: If ``value`` is not an ``nn.Module``.
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
    raise TypeError(f"{who} needs an nn.Module, got {in_words(value)}: {hint}")


def refuse_meta(model: nn.Module) -> None:
    """Refuse a model whose parameters have no values to compute with.

    Raises:
        UnsupportedModelError: If a parameter is on the meta device.
    """
    name = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if name is not None:
        raise UnsupportedModelError(
            f"{name!r} of this {type(model).__name__} is on the meta device, where there are shapes and no values: "
            f"load the weights first, SentenceTransformer(path)"
        )


def texts_given(texts: Any, pairs: bool = False) -> list[Any]:
    """Return the texts to encode as a list of at least two; with ``pairs``, each must be a pair of texts.

    Raises:
        TypeError: If ``texts`` is not a list of texts (or of pairs).
        ValueError: If there are fewer than two.
    """
    wanted = "a list of at least two (text, text) pairs" if pairs else "a list of at least two texts"
    if isinstance(texts, str):
        raise TypeError(f"texts is one string: give {wanted}, of different lengths")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts is {texts!r}: give {wanted}, of different lengths")
    given = list(texts)
    if len(given) < 2:
        raise ValueError(
            f"got {len(given)} text{'' if len(given) == 1 else 's'}: at least two are needed to make a batch"
        )
    for text in given:
        if pairs and (isinstance(text, str) or not isinstance(text, Sequence) or len(text) != 2):
            raise TypeError(f"a CrossEncoder scores pairs, got {text!r}: give {wanted}")
        if text is None or isinstance(text, (bytes, float, int)):
            raise TypeError(f"texts contains {text!r}: give {wanted}")
    return given


def need_path(value: Any, what: str) -> str:
    """Return a path as a str.

    Args:
        value: The argument that should be a path.
        what: What the path should lead to, for the message.

    Raises:
        TypeError: If ``value`` is neither a str nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"expected {what}, got {in_words(value)}")
    return os.fspath(value)


def loading(value: Any) -> str:
    """Return a hint on how to get a Sentence Transformers model from a value that is not a module."""
    if isinstance(value, type):
        return "give a loaded model, not a class"
    if isinstance(value, (list, tuple, set, dict)):
        return "give one model"
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    return f"load it first, SentenceTransformer({'path' if path is None else repr(path)})"
