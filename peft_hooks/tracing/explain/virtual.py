"""Sizes that differ by the virtual tokens of an adapter."""

from __future__ import annotations

import ast

from torch import nn

from ...compat import sentence_transformers as releases
from ..records import Adapter
from .failure import Bound, Finding
from .operands import Operand
from .scene import Scene


def virtual_tokens(
    scene: Scene, operands: list[Operand], pair: tuple[int, int], bounds: tuple[Bound, ...]
) -> Finding | None:
    """Find that two sizes, or those of what they were made of, differ by the virtual tokens of an adapter."""
    pairs = [pair]
    if len(operands) == 2:
        roots = [one.root.shape for one in operands]
        pairs += [(a, b) for a, b in zip(*roots) if a != b]
    for short, long in (sorted(one) for one in pairs):
        for adapter in scene.adapters:
            if adapter.virtual_tokens == long - short:
                return _of_virtual_tokens(scene, adapter, operands, (short, long), bounds)
    return None


def _of_virtual_tokens(
    scene: Scene, adapter: Adapter, operands: list[Operand], pair: tuple[int, int], bounds: tuple[Bound, ...]
) -> Finding:
    short, long = pair
    extra = long - short
    if adapter.method in releases.PREFIX_METHODS and any(_checkpoints(module) for module in scene.modules.values()):
        cause = (
            f"{long} - {short} = {extra} = num_virtual_tokens of {adapter}: its prefix is a cache (past_key_values),"
            " which gradient checkpointing throws away"
        )
        return Finding("checkpointing", cause, "model.gradient_checkpointing_disable()", bounds)
    cause = f"{long} - {short} = {extra} = num_virtual_tokens of {adapter}"
    if scene.row is None:
        longer = max(operands, key=lambda one: max(one.root.shape, default=0)).root
        cause += f": {longer.text} {list(longer.shape)} has the virtual tokens in front, the other has not"
        name = longer.text if longer.text.isidentifier() else "the output"
        fix = f"leave them out, {name}[:, {extra}:], or give the model the labels and let it compute the loss"
        return Finding("virtual tokens", cause, fix, bounds)
    for bound in bounds:
        if "mask" in bound.leaf:
            covers = "does not cover the" if bound.size == short else "covers"
            cause += f": {bound.leaf} {covers} virtual tokens" + ("" if bound.size == short else " that are not there")
            break
    if scene.pipeline:
        fix = "peft_hooks.register_prompt_mask_hooks(model)"
    else:
        fix = f"make the attention_mask {extra} positions longer or shorter, on the left"
    return Finding("virtual tokens", cause, fix, bounds)


def virtual_tokens_inside(scene: Scene) -> Finding | None:
    """Find tensors in an expression that cannot be worked out whose lengths differ by the virtual tokens."""
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


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False)) and module.training
