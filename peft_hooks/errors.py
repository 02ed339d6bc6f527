"""The library's exceptions. Messages give names, shapes and what to do, never tensor values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ._public import public


@public
class PeftHooksError(Exception):
    """Base class of every error that peft_hooks raises deliberately.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, PeftHooksError
        >>> try:
        ...     HookRegistry(torch.nn.Linear(2, 2)).detach("log")
        ... except PeftHooksError as error:
        ...     print(type(error).__name__)
        HookNameError
    """


@public
class HookNameError(PeftHooksError, LookupError):
    """A hook's name is unknown, or already taken.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry
        >>> model = torch.nn.Linear(2, 2)
        >>> HookRegistry(model).detach("log")
        Traceback (most recent call last):
        ...
        peft_hooks.HookNameError: no hook is named 'log'
    """


@public
class SelectorError(PeftHooksError, LookupError):
    """A selector matches no module, or is not a kind of selector.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, LogShapes
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> HookRegistry(model).attach(LogShapes(), to=torch.nn.GELU)
        Traceback (most recent call last):
        ...
        peft_hooks.SelectorError: Sequential has no module of class GELU; there are: 'Linear', 'Sequential'
    """


@public
class HookError(PeftHooksError, RuntimeError):
    """Hooks cannot be attached as asked: the model is compiled, has hooks with other options, or no longer exists.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry
        >>> HookRegistry(torch.nn.Linear(2, 2)).model
        Traceback (most recent call last):
        ...
        peft_hooks.HookError: the model of this registry is gone: keep a reference to it while you ...
    """


@public
class UnsupportedModelError(PeftHooksError, ValueError):
    """No hooks can make this model's embeddings correct with this adapter; the message says what would.

    Example:
        >>> from peft_hooks import register_prompt_mask_hooks
        >>> from peft_hooks.testing import tiny_model
        >>> register_prompt_mask_hooks(tiny_model("bert"))
        Traceback (most recent call last):
        ...
        peft_hooks.UnsupportedModelError: this SentenceTransformer has no PEFT adapter: put one on with ...
    """


@public
class LoadError(PeftHooksError, ValueError):
    """A saved model cannot be loaded: it is damaged or incomplete, would run code, or its base model is not found.

    Example:
        >>> import peft_hooks
        >>> peft_hooks.load("./no/such/folder")
        Traceback (most recent call last):
        ...
        peft_hooks.LoadError: ./no/such/folder: not a model directory, and no such path exists
    """


@public
class SaveError(PeftHooksError, ValueError):
    """A model cannot be saved as asked, and nothing was written.

    Example:
        >>> import warnings
        >>> import peft_hooks
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> handle = peft_hooks.add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> peft_hooks.save(model, warnings.__file__)
        Traceback (most recent call last):
        ...
        peft_hooks.SaveError: ...warnings.py: this is a file: give a folder
    """


@public
class MissingExtraError(PeftHooksError, ImportError):
    """A call needs a package that is not installed; the message names the extra that provides it.

    Example:
        >>> import peft_hooks
        >>> issubclass(peft_hooks.MissingExtraError, ImportError)
        True
    """


@public
class DimensionError(PeftHooksError, ValueError):
    """Tensors disagree about a named dimension.

    Example:
        >>> import torch
        >>> from peft_hooks import assert_dimensions
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> with assert_dimensions(model, {"0": {"input": "batch seq 4"}}):
        ...     model(torch.zeros(7, 4))
        Traceback (most recent call last):
        ...
        peft_hooks.DimensionError: Linear '0' input: input is [7, 4], but should have 3 dimensions (batch seq 4)
    """


@public
class DimensionWarning(UserWarning):
    """Tensors disagree about a named dimension, in a check that warns instead of raising.

    Example:
        >>> import torch, warnings
        >>> from peft_hooks import DimensionWarning, assert_dimensions
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     with assert_dimensions(model, {"0": {"input": "batch seq 4"}}, on_error="warn"):
        ...         _ = model(torch.zeros(7, 4))
        >>> [warning.category is DimensionWarning for warning in caught]
        [True]
    """


def close_matches(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"``, or a list of the known names if none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(match) for match in close) + "?"
    if not names:
        return ""
    shown = ", ".join(repr(known_name) for known_name in names[:8])
    return f"; there are: {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
