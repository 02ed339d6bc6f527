"""Refuse, before any hook is attached, models that no hooks can make correct."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat.pipeline import Encoder, Pipeline
from ..errors import UnsupportedModelError
from .classifier import refuse_classifier
from .padding_probe import padding_is_read
from .prefix_probe import is_kept_by_peft, prefix_is_used
from .probes import forward_fails
from .task import TaskId, tasks_in
from .token_modules import refuse_token_modules


def refuse_what_cannot_be_right(pipeline: Pipeline, task_id: TaskId, virtual_tokens: str = "auto") -> None:
    """Raise if a model's embeddings cannot be correct with the hooks on.

    Raises:
        UnsupportedModelError: If no adapter is in the path of its forward, a prefix does not reach the layers of its
            backbone, the backbone reads padding, virtual tokens cannot be told from text, or its head cannot be given
            the text alone.
        ValueError: If ``task_id`` is given and no adapter has tasks.
    """
    for encoder in pipeline.encoders:
        if encoder.is_transformer:
            _refuse_stray_adapter(encoder)
    if not any(encoder.adapted for encoder in pipeline.encoders):
        raise UnsupportedModelError(
            f"this {type(pipeline.root).__name__} has no PEFT adapter: put one on with "
            f"peft_hooks.add_prompt_adapter(model, PromptTuningConfig(...))"
        )
    refuse_options(pipeline, task_id, virtual_tokens)
    refuse_token_modules(pipeline)
    for encoder in pipeline.encoders:
        for name, config in encoder.prompts.items():
            _refuse_adapter(encoder, name, config)
        _refuse_reader_of_padding(encoder)


def refuse_options(pipeline: Pipeline, task_id: TaskId, virtual_tokens: str) -> None:
    """Raise if a model cannot follow the policy, or if ``task_id`` is given and no adapter has such a task."""
    for encoder in pipeline.encoders:
        refuse_classifier(encoder, virtual_tokens)
    if task_id is None:
        return
    holders = [encoder.module for encoder in pipeline.encoders]
    prompts: list[Any] = [one for each in holders for one in releases.prompt_encoders(each, "MULTITASK_PROMPT_TUNING")]
    if not prompts:
        raise ValueError(f"task_id={task_id} is given, but no adapter has tasks: only MULTITASK_PROMPT_TUNING does")
    tasks = max(int(prompt.num_tasks) for prompt in prompts)
    if max(tasks_in(task_id)) >= tasks:
        raise ValueError(f"task_id={task_id} is given, but the adapter has the tasks 0 to {tasks - 1}")


def _refuse_stray_adapter(encoder: Encoder) -> None:
    path, stray = encoder.path, releases.stray_backbone(encoder.module)
    if stray is not None:
        where = f"model[{path}]" if path.isdigit() else f"Transformer {path!r}"
        raise UnsupportedModelError(
            f"a {type(stray).__name__} was assigned to {where}.auto_model, which this release of Sentence Transformers "
            f"never calls, so it does nothing: `adapter = dict({where}.named_children())['auto_model']; "
            f"del {where}.auto_model; {where}.model = adapter`"
        )


def _refuse_adapter(encoder: Encoder, name: str, config: Any) -> None:
    method, transformer = releases.method_of(config), encoder.module
    where = f"Transformer {encoder.path!r} with the {method} adapter {name!r}"
    if releases.forward_skips_prompts(encoder.outer):
        raise UnsupportedModelError(
            f"{where}: {type(encoder.outer).__name__}.forward skips the prompt: make the adapter with "
            f'task_type="FEATURE_EXTRACTION", or with peft_hooks.add_prompt_adapter(model, config)'
        )
    if getattr(transformer, "can_flatten_inputs", False):
        raise UnsupportedModelError(
            f"{where}: inputs are flattened into one row without padding, in which only the first text can have "
            f"virtual tokens in front: set `model[0].unpad_inputs = False`"
        )
    if method in releases.PREFIX_METHODS:
        reason = prefix_is_used(transformer, name)
        advice = "PROMPT_TUNING or P_TUNING (virtual tokens among the inputs), or LORA"
        if reason is not None and is_kept_by_peft(transformer, name):
            advice += '; or make the adapter with task_type="FEATURE_EXTRACTION", with which the head is not trained'
    else:
        reason, advice = forward_fails(transformer, name), "LORA, which adds no virtual tokens"
    if reason is not None:
        advice = "LORA" if cross.has_unknown_head(transformer) else advice
        raise UnsupportedModelError(
            f"{where}: the backbone {backbones.model_type(transformer)!r} {reason}: use {advice}"
        )


def _refuse_reader_of_padding(encoder: Encoder) -> None:
    reason = padding_is_read(encoder.module)
    if reason is not None:
        raise UnsupportedModelError(
            f"Transformer {encoder.path!r}: the backbone {backbones.model_type(encoder.module)!r} {reason}: with or "
            f"without an adapter, its embeddings depend on the batch, which no hook can change. Use another backbone, "
            f"or encode one text at a time without hooks"
        )


def level_of_caller() -> int:
    """Return the ``stacklevel`` with which a warning in the calling function points outside this package."""
    level, frame = 1, sys._getframe(1)
    inside = ((__package__ or "").partition(".")[0], "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        level, frame = level + 1, frame.f_back
    return level


def fit_positions(encoder: Encoder) -> None:
    """Lower ``max_seq_length``, with a warning, if virtual tokens and text exceed the backbone's positions."""
    transformer, positions = encoder.module, encoder.positions
    virtual = max((config.num_virtual_tokens for config in encoder.prompts.values()), default=0)
    former: int | None = transformer.max_seq_length
    if positions is None or not virtual or (former is not None and former + virtual <= positions):
        return
    if virtual >= positions:
        raise UnsupportedModelError(
            f"{virtual} virtual tokens leave no room for text: the backbone has {positions} positions. Use fewer"
        )
    fitting = positions - virtual
    warnings.warn(
        f"max_seq_length is lowered from {former} to {fitting}: the backbone {backbones.model_type(transformer)!r} has "
        f"{positions} positions, and {virtual} of them go to virtual tokens",
        stacklevel=level_of_caller(),
    )
    transformer.max_seq_length = fitting
