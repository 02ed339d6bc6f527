"""Models that are saved and loaded again: with hooks, what they embed to, and one that cannot be saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from peft_hooks import register_prompt_mask_hooks
from peft_hooks.testing import TEXTS

from .checks import encoded, options_for


def with_hooks(model: Any, method: str = "prompt_tuning", **options: Any) -> Any:
    """Attach the hooks, with the options that the method cannot do without."""
    register_prompt_mask_hooks(model, **options_for(method), **options)
    return model


def vectors(model: Any, texts: Any = TEXTS) -> torch.Tensor:
    """Embed the texts in one batch, and the first alone."""
    return torch.cat([encoded(model, texts), encoded(model, texts[:1])])


@contextlib.contextmanager
def failing(model: Any) -> Iterator[None]:
    """Make the last module fail to be saved, after everything before it was written."""

    class Broken(nn.Module):
        def save(self, *_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        def forward(self, features: Any) -> Any:
            return features

    model.add_module("4", Broken())
    yield
    del model._modules["4"]
