"""The names of a function's positional parameters, by which contracts and traces name what goes into a module."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

from ..compat.torch_internals import scripted_parameters


def positional(function: Any, skip: int) -> tuple[str, ...]:
    """Return the names of the positional parameters of a function after the first ``skip``; none if it hides them."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def of_module(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's ``forward``."""
    scripted = scripted_parameters(module)
    kind: Any = type(module)
    return of_class(kind) if scripted is None else scripted


@functools.cache
def of_class(kind: Any) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module class's ``forward``; read once for each class."""
    return positional(kind.forward, 1)
