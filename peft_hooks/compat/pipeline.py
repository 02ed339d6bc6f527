"""The Transformers of what was given as a model of Sentence Transformers, or an error that says what to give."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from .._arguments import in_words, loading
from ..errors import UnsupportedModelError
from . import cross_encoders as cross
from . import sentence_transformers as releases


def pipeline(model: Any) -> tuple[nn.Module, list[tuple[str, Any]]]:
    """Return the module that hooks of ``model`` go on, and what takes texts in it, with paths.

    Raises:
        TypeError: If ``model`` is no module: a name, a list, a class, None.
        UnsupportedModelError: If it is a module that has no Transformer: a ``PeftModel``, an ``AutoModel``.
    """
    root = cross.root_of(model)
    if not isinstance(root, nn.Module):
        raise TypeError(f"expected a SentenceTransformer, got {in_words(model)}: {loading(model)}")
    found = cross.inputs_of(root)
    if not found:
        raise UnsupportedModelError(_no_transformer(model))
    return root, found


def _encoders() -> tuple[type, ...]:
    """Return the classes of models that encode texts by any modules, as far as the release has them."""
    library = sys.modules.get("sentence_transformers")
    found = (getattr(library, name, None) for name in ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"))
    return tuple(kind for kind in found if isinstance(kind, type))


def _no_transformer(model: nn.Module) -> str:
    """Say what is missing in a module that has no Transformer, and what to give instead."""
    if isinstance(model, _encoders()):
        parts = ", ".join(type(module).__name__ for module in model.children()) or "none"
        return (
            f"this {type(model).__name__} has no Transformer module (its modules: {parts}), so there is nothing that a "
            f"PEFT adapter could be on: no hooks are needed"
        )
    kind = releases.peft_class()
    what = "its backbone or its adapter"
    if kind is not None and isinstance(model, kind):
        what = "the PeftModel; peft_hooks.add_prompt_adapter(model, peft_config) puts an adapter into one"
    return (
        f"expected a Sentence Transformers model, got {in_words(model)}, which has no Transformer module: give the "
        f"SentenceTransformer itself, not {what}"
    )
