"""What is seen of virtual tokens that are computed once for all rows of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from peft_hooks.testing import TEXTS

from .methods import VIRTUAL_TOKENS, backbone_of, fill_adapter, prompt_tuning

BATCH = len(TEXTS)
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma3_text", "gpt2", "opt", "gpt_neox", "phi", "phi3")
METHODS = ("prompt_tuning", "p_tuning", "multitask_prompt_tuning")
ONCE, EVERY_ROW = [(1, VIRTUAL_TOKENS), (BATCH, 0)], [(BATCH, VIRTUAL_TOKENS)]


def layers_of(model: Any) -> nn.ModuleList:
    """Return the decoder's layers, wherever the architecture keeps them."""
    return next(module for module in backbone_of(model).base_model.modules() if isinstance(module, nn.ModuleList))


@contextlib.contextmanager
def runs(model: Any, length: int | None = None) -> Iterator[list[tuple[int, int]]]:
    """Note what goes through the first layer: rows, and positions; of those of the text only what is more.

    Not by a hook: sharing steps aside where others watch.
    """
    longest = model.tokenize(list(TEXTS))["input_ids"].shape[1] if length is None else length
    seen: list[tuple[int, int]] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        positions = hidden.shape[1]
        seen.append((hidden.shape[0], positions - longest if positions >= longest else positions))
        return forward(*args, **kwargs)

    layer: Any = layers_of(model)[0]
    forward = layer.forward
    layer.forward = note
    try:
        yield seen
    finally:
        del layer.forward


def remark(handle: Any) -> str:
    """Return the one remark of a handle."""
    (found,) = handle.describe().remarks
    return str(found)


def put_second(model: Any) -> None:
    """Add a second adapter of seven virtual tokens."""
    config = prompt_tuning(model, num_virtual_tokens=7)
    backbone_of(model).add_adapter("second", config)
    with torch.no_grad():
        backbone_of(model).set_adapter("second")
        fill_adapter(backbone_of(model), "second", 3, 1.0)


def look(*_: Any) -> None:
    """See what there is to see, and change nothing."""
