"""What cannot be right whatever the hooks, found before any is attached and refused by name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat.pipeline import pipeline
from ..errors import UnsupportedModelError
from .classifier import refuse_classifier
from .padding_probe import padding_is_read
from .prefix_probe import prefix_is_used
from .probes import forward_fails
from .task import TaskId, tasks_in
from .token_modules import refuse_token_modules


def refuse_what_cannot_be_right(model: Any, task_id: TaskId, virtual_tokens: str = "auto") -> None:
    """Raise if ``model`` cannot give right embeddings with the hooks on.

    Raises:
        TypeError: If ``model`` is no module: a name, a list, None.
        UnsupportedModelError: If it is no Sentence Transformers model, has no adapter that its forward passes, has a
            prefix that its backbone ignores, a backbone that reads padding,
            is set up so that virtual tokens cannot be told from text, or has a head
            that cannot be given the text alone.
        ValueError: If ``task_id`` is given and no adapter has tasks.
    """
    _, transformers = pipeline(model)
    for path, transformer in releases.transformers_of(model):
        _refuse_stray_adapter(path, transformer)
    if not any(releases.has_adapter(transformer) for _, transformer in transformers):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has no PEFT adapter: put one on with "
            f"peft_hooks.add_prompt_adapter(model, PromptTuningConfig(...))"
        )
    refuse_options(model, task_id, virtual_tokens)
    refuse_token_modules(model)
    for path, transformer in transformers:
        for name, config in releases.prompt_configs(transformer).items():
            _refuse_adapter(path, transformer, name, config)
        _refuse_reader_of_padding(path, transformer)


def refuse_options(model: nn.Module, task_id: TaskId, virtual_tokens: str) -> None:
    """Raise if ``model`` cannot follow the policy, or ``task_id`` is given and no adapter has such a task."""
    transformers = cross.inputs_of(model)
    for path, transformer in transformers:
        refuse_classifier(path, transformer, virtual_tokens)
    if task_id is None:
        return
    encoders: list[Any] = [e for _, t in transformers for e in releases.prompt_encoders(t, "MULTITASK_PROMPT_TUNING")]
    if not encoders:
        raise ValueError(f"task_id={task_id} is given, but no adapter has tasks: only MULTITASK_PROMPT_TUNING has")
    tasks = max(int(encoder.num_tasks) for encoder in encoders)
    if max(tasks_in(task_id)) >= tasks:
        raise ValueError(f"task_id={task_id} is given, but the adapter has the tasks 0 to {tasks - 1}")


def _refuse_stray_adapter(path: str, transformer: Any) -> None:
    stray = releases.stray_backbone(transformer)
    if stray is not None:
        where = f"model[{path}]" if path.isdigit() else f"Transformer {path!r}"
        raise UnsupportedModelError(
            f"a {type(stray).__name__} was assigned to {where}.auto_model, which this release of Sentence Transformers "
            f"never calls, so it does nothing: `adapter = dict({where}.named_children())['auto_model']; "
            f"del {where}.auto_model; {where}.model = adapter`"
        )


def _refuse_adapter(path: str, transformer: Any, name: str, config: Any) -> None:
    method, backbone = releases.method_of(config), releases.backbone_of(transformer)
    where = f"Transformer {path!r} with the {method} adapter {name!r}"
    if releases.forward_skips_prompts(backbone):
        raise UnsupportedModelError(
            f"{where}: {type(backbone).__name__}.forward passes the prompt by: make the adapter with "
            f'task_type="FEATURE_EXTRACTION", or with peft_hooks.add_prompt_adapter(model, config)'
        )
    if getattr(transformer, "can_flatten_inputs", False):
        raise UnsupportedModelError(
            f"{where}: inputs are flattened into one row without padding, where virtual tokens can stand before the "
            f"first text only: set `model[0].unpad_inputs = False`"
        )
    if method in releases.PREFIX_METHODS:
        reason = prefix_is_used(transformer, name)
        advice = "PROMPT_TUNING or P_TUNING (virtual tokens among the inputs), or LORA"
    else:
        reason, advice = forward_fails(transformer, name), "LORA, which adds no virtual tokens"
    if reason is not None:
        advice = "LORA" if cross.has_unknown_head(transformer) else advice
        raise UnsupportedModelError(
            f"{where}: the backbone {backbones.model_type(transformer)!r} {reason}: use {advice}"
        )


def _refuse_reader_of_padding(path: str, transformer: Any) -> None:
    reason = padding_is_read(transformer)
    if reason is not None:
        raise UnsupportedModelError(
            f"Transformer {path!r}: the backbone {backbones.model_type(transformer)!r} {reason}: with an adapter and "
            f"without, its embeddings depend on the batch, which no hook can change. Use another backbone, or encode "
            f"one text at a time without hooks"
        )


def level_of_caller() -> int:
    """Return the ``stacklevel`` that makes a warning of the function that asks point out of this package."""
    level, frame = 1, sys._getframe(1)
    inside = ((__package__ or "").partition(".")[0], "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        level, frame = level + 1, frame.f_back
    return level


def fit_positions(transformer: Any) -> Callable[[], None] | None:
    """Lower ``max_seq_length`` where virtual tokens and text exceed the backbone's positions, with a warning.

    Returns:
        What puts the former value back, or None if nothing was changed.
    """
    positions = backbones.position_count(transformer)
    virtual = max((config.num_virtual_tokens for config in releases.prompt_configs(transformer).values()), default=0)
    former: int | None = transformer.max_seq_length
    if positions is None or not virtual or (former is not None and former + virtual <= positions):
        return None
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

    def put_back() -> None:
        if transformer.max_seq_length == fitting:
            transformer.max_seq_length = former

    return put_back
