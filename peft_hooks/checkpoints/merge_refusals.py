"""Refuses, by name, what no plain model can equal, and says what to use instead; the comparison decides the rest."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._arguments import refuse_meta
from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..compat.pipeline import read_pipeline
from ..errors import UnsupportedModelError
from ..prompts.task import TaskId
from .merged_backbone import TO_USE
from .merged_modules import MEANS

MERGED = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
"""The methods whose virtual tokens are like words to the backbone."""

_SINGLE = frozenset({"cls", "lasttoken"})


def the_transformer(model: Any) -> tuple[nn.Module, Any]:
    """Return the module that the hooks of ``model`` go on, and its one Transformer, whose prompt can be merged."""
    read = read_pipeline(model)
    root, encoders = read.root, read.encoders
    refuse_meta(root)
    if len(encoders) != 1:
        places = ", ".join(repr(encoder.path) for encoder in encoders)
        raise UnsupportedModelError(
            f"this {type(model).__name__} has Transformers at {places}, each with its own tokenizer: merge a model "
            f"with one route at a time"
        )
    path, transformer = encoders[0].path, encoders[0].module
    if "." in path:
        raise UnsupportedModelError(f"the Transformer {path!r} is in a Router: merge a model of only that route")
    config = releases.active_config(transformer)
    if config is None and not releases.has_adapter(transformer):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has no PEFT adapter, so it is already plain: save it with "
            f"model.save_pretrained(path)"
        )
    method = "LORA" if config is None else releases.method_of(config)
    if method in releases.PREFIX_METHODS:
        raise UnsupportedModelError(
            f"{method} puts keys and values into every layer, which no word embedding can do: {TO_USE}"
        )
    backbone = releases.plain_backbone(transformer)
    if method not in MERGED or set(state.tuner_layers(backbone)) - set(state.wrapped_heads(backbone)):
        what = f"the adapter is {method}" if method not in MERGED else "LoRA layers are in the backbone"
        raise UnsupportedModelError(
            f"{what}: PEFT itself merges that into the weights of its layers, with PeftModel.merge_and_unload(); "
            f"peft_hooks merges {', '.join(MERGED)}"
        )
    _refuse_tokenizer(getattr(transformer, "tokenizer", None))
    return root, transformer


def refuse_without_task(transformer: Any, task_id: TaskId) -> None:
    """Raise ValueError if the adapter has tasks but not exactly one is chosen."""
    config = releases.active_config(transformer)
    if releases.method_of(config) == "MULTITASK_PROMPT_TUNING" and not isinstance(task_id, int):
        raise ValueError(
            f"multitask prompt tuning has a prompt for each of its {config.num_tasks} tasks: choose the one to merge, "
            f"merge_and_unload(model, task_id=0), or on the command line --task-id 0"
        )


def _refuse_tokenizer(tokenizer: Any) -> None:
    """Raise UnsupportedModelError if the tokenizer has no post-processor that could put tokens before a text."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} is a slow one, written in Python, without a post-processor that "
            f"could put virtual tokens before a text: load the model with a fast tokenizer (use_fast=True), or use "
            f"peft_hooks.save(model, path) and load it with this library"
        )


def refuse_modules(model: Any, policy: str) -> None:
    """Raise UnsupportedModelError for what no plain folder can express, and say what to use instead."""
    for path, pooling in releases.poolings_of(model) if isinstance(model, nn.Module) else ():
        if not getattr(pooling, "include_prompt", True):
            raise UnsupportedModelError(
                f"Pooling {path!r} leaves the prompt out (include_prompt=False), and would leave out the virtual "
                f"tokens with it: train with include_prompt=True, or {TO_USE}"
            )
        rest = releases.pooling_modes(pooling) - MEANS - _SINGLE
        if policy in ("ignore", "strip") and rest:
            raise UnsupportedModelError(
                f"Pooling {path!r} is {', '.join(sorted(rest))}, from which no plain model can exclude virtual tokens "
                f"(virtual_tokens={policy!r}): train and merge with mean pooling or with "
                f'virtual_tokens="auto", or {TO_USE}'
            )
