"""What these programs share. They run where neither PEFT nor peft_hooks is installed; each has its input from stdin."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def read(*absent: str) -> dict[str, Any]:
    """Return what is given, after making sure that some packages are not installed."""
    there = [name for name in ("peft", "peft_hooks", *absent) if importlib.util.find_spec(name) is not None]
    assert not there, f"installed here: {there}"
    given: dict[str, Any] = json.load(sys.stdin)
    return given


def both(model: str, embed: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return the embeddings that a model gives of texts together, and of each alone."""
    alone = np.concatenate([np.asarray(embed([text])) for text in texts])
    return {f"{model}_together": np.asarray(embed(texts)), f"{model}_alone": alone}


def write(given: dict[str, Any], version: str, **embeddings: Any) -> None:
    """Write the embeddings where the test reads them, and say the version."""
    np.savez(given["out"], **embeddings)
    print(json.dumps(version))
