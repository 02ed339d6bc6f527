"""Explain what only text models have: virtual tokens, a maximum length, a vocabulary, optional arguments."""

from __future__ import annotations

import ast
import inspect

from torch import nn

from ...compat import sentence_transformers as releases
from ..records import Adapter
from .failure import Bound, Finding
from .ghosts import Operand
from .scene import Scene
from .tracebacks import CALLS


def virtual_tokens(
    scene: Scene, operands: list[Operand], pair: tuple[int, int], bounds: tuple[Bound, ...]
) -> Finding | None:
    """Find two sizes, of operands or what they were made from, that differ by the virtual tokens of an adapter."""
    pairs = [pair]
    if len(operands) == 2:
        others = [(a, b) for a, b in zip(*(one.root.shape for one in operands)) if a != b]
        pairs += others if len(others) == 1 else []  # they differ in the length only
    for short, long in (sorted(one) for one in pairs):
        for adapter in scene.adapters:
            if adapter.virtual_tokens == long - short:
                return _of_virtual_tokens(scene, adapter, operands, (short, long), bounds)
    return None


def _of_virtual_tokens(
    scene: Scene, adapter: Adapter, operands: list[Operand], pair: tuple[int, int], bounds: tuple[Bound, ...]
) -> Finding:
    short, long = pair
    extra = adapter.virtual_tokens
    cause = f"{long} - {short} = {extra} = num_virtual_tokens of {adapter}"
    checkpoints = any(getattr(one, "gradient_checkpointing", False) and one.training for one in scene.modules.values())
    if adapter.method in releases.PREFIX_METHODS and checkpoints:
        cause += ": its prefix is a cache (past_key_values), which gradient checkpointing discards"
        return Finding("checkpointing", cause, "model.gradient_checkpointing_disable()", bounds)
    if scene.row is None:
        longer = max(operands, key=lambda one: max(one.root.shape, default=0)).root
        cause += f": {longer.text} {list(longer.shape)} has the virtual tokens in front, the other tensor does not"
        name = longer.text if longer.text.isidentifier() else "the output"
        fix = f"drop them, {name}[:, {extra}:], or give the model the labels and let it compute the loss"
        return Finding("virtual tokens", cause, fix, bounds)
    mask = next((bound for bound in bounds if "mask" in bound.leaf), None)
    if mask is not None and mask.size == short:
        cause += f": {mask.leaf} does not cover the virtual tokens"
    elif mask is not None:
        cause += f": {mask.leaf} covers virtual tokens that are not there"
    fix = f"make the attention_mask {extra} positions longer or shorter, on the left"
    fix = "peft_hooks.register_prompt_mask_hooks(model)" if scene.transformers else fix
    return Finding("virtual tokens", cause, fix, bounds)


def virtual_tokens_inside(scene: Scene) -> Finding | None:
    """Find tensors whose lengths differ by the virtual tokens, in an expression that no other rule explains."""
    if not scene.adapters or not scene.steps:
        return None
    place = [*scene.last_places()][-1]
    node = scene.steps[place].node
    parts = [] if node is None else [one for one in ast.walk(node) if isinstance(one, (ast.Name, ast.Subscript))]
    operands = [one for one in (scene.names.of_expression(place, part) for part in parts) if len(one.shape) > 1]
    for number, other in enumerate(operands):
        for one in operands[:number]:
            pair = one.shape[1], other.shape[1]
            found = virtual_tokens(scene, [], pair, (scene.bound(one, 1), scene.bound(other, 1)))
            if found is not None:
                return found
    return None


def no_batch(scene: Scene) -> Finding | None:
    """Find a single text that a transformers model was given without a batch dimension."""
    for call in scene.calls:
        ids = call.given.get("input_ids")
        if getattr(type(call.module), "main_input_name", None) == "input_ids" and getattr(ids, "ndim", 0) == 1:
            one = scene.names.of_parameter(call.place, "input_ids", ids)
            where = scene.where(call.module)
            cause = f"{one} has 1 dimension, but {where} takes 2, [batch, length]: the batch dimension is missing"
            return Finding("rank", cause, f"use {one.name}.unsqueeze(0)", scene.bounds(one))
    return None


def room(scene: Scene, rows: int, start: int) -> tuple[str, str, str]:
    """Say how much room a table of positions leaves for tokens.

    Args:
        scene: What is known.
        rows: The number of positions in the table.
        start: The first position.

    Returns:
        The virtual tokens among them, the first position, and how to truncate the text, each as text.
    """
    left, virtual = rows - start, ""
    offset = f": they begin at {start}, which leaves {left} for tokens" if start else ""
    for adapter in scene.adapters:
        left -= adapter.virtual_tokens
        virtual = f", {adapter.virtual_tokens} of them virtual tokens of {adapter}"
    cut = f"model.max_seq_length = {left}" if scene.transformers else f"truncate the text to at most {left} tokens"
    return virtual, offset, cut


def vocabulary(scene: Scene) -> int | None:
    """Return the number of tokens in the tokenizer of a Sentence Transformers model, or None."""
    for _, transformer in scene.transformers:
        tokenizer = getattr(transformer, "tokenizer", None)
        if hasattr(type(tokenizer), "__len__"):
            return len(tokenizer)  # type: ignore[arg-type]
    return None


def is_vocabulary(scene: Scene, table: nn.Module | None) -> bool:
    """Tell whether a table holds the token embeddings of a transformers model."""
    return table is not None and any(_embeddings_of(module) is table for module in scene.modules.values())


def _embeddings_of(module: nn.Module) -> object:
    try:
        ask = getattr(type(module), "get_input_embeddings", None)
        return None if ask is None else ask(module)
    except Exception:  # some models have none
        return None


def is_optional(scene: Scene, operand: Operand) -> bool:
    """Tell whether an operand is an argument of the model's forward that can be left out."""
    name = operand.text
    if not name.isidentifier() or scene.steps[operand.place].module is not scene.model:
        return False
    for step in scene.steps:  # without a trace, the steps begin outside the model
        if step.file == CALLS or step.name == "forward":
            break
        if step.module is scene.model:
            return False
    frame = scene.steps[0].frame.f_back
    while frame is not None:  # the model's own generate() creates such arguments
        if frame.f_locals.get("self") is scene.model and frame.f_code.co_filename != CALLS:
            return False
        frame = frame.f_back
    parameter = inspect.signature(scene.model.forward).parameters.get(name)
    return parameter is not None and parameter.default is None
