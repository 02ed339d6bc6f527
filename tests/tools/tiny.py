"""Tiny models, plain and adapted, for tests and programs; what the installed releases cannot have is Unavailable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_hooks.testing import tiny_model

from .methods import Unavailable, put_adapter


def plain(architecture: str = "bert", **options: Any) -> Any:
    """Build a tiny model without an adapter.

    Raises:
        Unavailable: If the installed transformers lacks the architecture.
    """
    try:
        return tiny_model(architecture, **options)
    except ValueError as error:
        if "has no architecture" not in str(error):
            raise
        raise Unavailable(str(error)) from error


def adapted(
    architecture: str = "bert", method: str = "prompt_tuning", *, adapter: Mapping[str, Any] = {}, **options: Any
) -> Any:
    """Build a tiny model of one's own with an adapter; it has no hooks.

    Raises:
        Unavailable: If the installed transformers lacks the architecture, or PEFT the method.
    """
    model = plain(architecture, **options)
    put_adapter(model, method, **adapter)
    return model
