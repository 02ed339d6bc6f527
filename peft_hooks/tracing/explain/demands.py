"""Explain demands other than matching sizes: an existing dimension, contiguous memory, a dtype, a range of values."""

from __future__ import annotations

import ast
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .failure import Finding
from .ghosts import Operand, first, flat_of, many, shape_of
from .meta import method
from .scene import Scene
from .sites import Expression, expressions
from .table import BY_INDEX

_WITH_DIM = frozenset((
    "softmax", "log_softmax", "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "cumsum", "size",
    "transpose", "swapaxes", "squeeze", "flatten", "select", "chunk", "unbind", "norm", "std", "var", "logsumexp",
    "unsqueeze", "sort", "topk", "narrow", "split", "prod", "any", "all", "movedim", "index_select", "gather",
))  # fmt: skip
_OF_NUMBERS = frozenset(["narrow", "topk", "chunk", "split", "norm", "select", "std", "var", "sort"])  # not only dims
_LENGTHS = {
    "ctc_loss": (("input_lengths", "log_probs", 0), ("target_lengths", "targets", 1)),
    "pack_padded_sequence": (("lengths", "input", 0),),
}
_FLOATING = frozenset(["mean", "softmax", "log_softmax", "std", "var", "norm", "sigmoid_", "bernoulli"])


def unmet_demand(scene: Scene) -> Finding | None:
    """Find an operand that does not meet what an expression demands of it."""
    for expression in expressions(scene):
        one = next(iter(expression.operands.values()), None)
        if one is None or not one.is_tensor:
            continue
        rules = (_no_such_dimension, _permuted, _not_each, _not_in_order, _not_floating, _no_index)
        found = first(rule(scene, expression, one) for rule in rules)
        if found is not None:
            return found
    return _one_value(scene) or _no_probability(scene) or _too_small(scene) or _too_long(scene)


def _no_such_dimension(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    if expression.name not in _WITH_DIM:
        return None
    named = [expression.value(name) for name in ("dim", "dim0", "dim1", "axis")]
    plain = [] if expression.name in _OF_NUMBERS else [part.value for part in expression.arguments]
    dims = [dim for dim in (*named, *plain) if type(dim) is int]
    rank = len(one.shape) + (expression.name == "unsqueeze")
    wrong = next((dim for dim in dims if not -rank <= dim < rank), None)
    if wrong is None or rank == 0:
        return None
    has = f"{one} has {many(len(one.shape))}, 0 to {len(one.shape) - 1}"
    cause = f"{has}; {expression.name}() is asked for dimension {wrong}"
    return Finding("rank", cause, f"use a dimension from 0 to {rank - 1}, or give {one.name} more", scene.bounds(one))


def _permuted(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    if expression.name != "permute":
        return None
    dims = flat_of([part.value for part in expression.arguments])
    if len(dims) == len(one.shape) or not all(isinstance(dim, int) for dim in dims):
        return None
    cause = f"{one} has {many(len(one.shape))}, but permute() is given {len(dims)}"
    return Finding("rank", cause, f"name each of the {len(one.shape)} dimensions once", scene.bounds(one))


def _not_each(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    """Find a method that takes matrices, or a number for each dimension, on a tensor of more dimensions."""
    rank = len(one.shape)
    if expression.name == "t" and rank > 2:
        cause = f"{one} has {many(rank)}, but t() takes at most 2"
        return Finding("rank", cause, f"use {one.name}.transpose({rank - 2}, {rank - 1})", scene.bounds(one))
    times = flat_of([part.value for part in expression.arguments])
    if expression.name != "repeat" or len(times) >= rank or not all(type(time) is int for time in times):
        return None
    whole = ", ".join(map(str, times + [1] * (rank - len(times))))
    cause = f"{one} has {many(rank)}, but repeat() is given {many(len(times), 'number')}, {', '.join(map(str, times))}"
    return Finding("rank", cause, f"give a number for each, such as {one.name}.repeat({whole})", scene.bounds(one))


def _not_in_order(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    """Find a view that asks for the right number of elements: it can fail for one reason only."""
    sizes = [part.value for part in expression.arguments]
    if expression.name != "view" or not isinstance(scene.error, RuntimeError) or isinstance(sizes[0], torch.dtype):
        return None
    if method(one.value, "reshape", sizes, {}) is None:
        return None  # whether the number of elements is right is unknown
    cause = f"{one} is not contiguous: its elements are not in the memory order that view() needs"
    fix = f"use {one.name}.reshape(...), or {one.name}.contiguous() before view()"
    return Finding("view", cause, fix, scene.bounds(one))


def _not_floating(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    if expression.name not in _FLOATING or one.dtype is None or one.dtype.is_floating_point or one.dtype.is_complex:
        return None
    cause = f"{one} is {one.short}, but {expression.name}() takes floating-point numbers"
    return Finding("dtype", cause, f"use {one.name}.float()", scene.bounds(one))


def _no_index(scene: Scene, expression: Expression, one: Operand) -> Finding | None:
    parts: list[Operand] = []
    if expression.name in BY_INDEX and "index" in expression.operands:
        parts = [expression.operands["index"]]
    elif expression.name in ("getitem", "setitem") and isinstance(expression.node, ast.Subscript):
        node = expression.node.slice
        parts = [expression.operand(part) for part in (node.elts if isinstance(node, ast.Tuple) else [node])]
    for part in parts:
        by_index = expression.name in BY_INDEX
        if part.is_float or (by_index and part.dtype not in (None, torch.int64, torch.int32)):
            cause = f"{part} is {part.short}, but an index must hold whole numbers (i64)"
            mask = "" if by_index else f", or {part.name}.bool() if it is a mask"
            return Finding("dtype", cause, f"use {part.name}.long(){mask}", scene.bounds(part))
    return None


def _one_value(scene: Scene) -> Finding | None:
    """Find a batch norm in training mode that is given one value for each channel."""
    for place, step in enumerate(scene.steps):
        given = step.locals.get("input")
        shape = shape_of(given) or ()
        of_norm = step.in_torch and step.name == "batch_norm" and step.locals.get("training")
        if of_norm and len(shape) > 1 and math.prod(shape) == shape[1]:
            one = scene.names.of_parameter(place, "input", given)
            cause = f"{one} has one value for each of its {shape[1]} channels"
            cause += ": in training mode a batch norm needs more than one"
            fix = "use batches of two or more (drop_last=True), or model.eval()"
            return Finding("batch", cause, fix, scene.bounds(one))
    return None


def _no_probability(scene: Scene) -> Finding | None:
    """Find a loss on probabilities that is given other numbers."""
    for place, step in enumerate(scene.steps):
        given: dict[str, Any] = {name: step.locals.get(name) for name in ("input", "target")}
        of_loss = step.in_torch and step.name.startswith("binary_cross_entropy")
        if not of_loss or not all(isinstance(value, Tensor) for value in given.values()):
            continue
        one = scene.names.of_parameter(place, "target", given["target"])
        if not one.is_float:
            cause = f"{one}, the target, is {one.short}; {step.name}() takes floating-point numbers there"
            return Finding("dtype", cause, f"use {one.name}.float()", scene.bounds(one))
        for name, value in given.items() if step.name == "binary_cross_entropy" else ():
            one = scene.names.of_parameter(place, name, value)
            low, high = (0.0, 0.0) if not value.numel() else map(float, value.detach().aminmax())
            if not 0 <= low <= high <= 1:
                cause = f"{one}, the {name}, ranges from {low:.2f} to {high:.2f}; binary_cross_entropy() takes 0 to 1"
                logits = "use binary_cross_entropy_with_logits, or apply a sigmoid first"
                return Finding(
                    "index", cause, logits if name == "input" else "give targets from 0 to 1", scene.bounds(one)
                )
    return None


def _too_small(scene: Scene) -> Finding | None:
    """Find a convolution or pooling whose kernel is larger than its input."""
    for call in reversed(scene.calls):
        layer: Any = call.module
        given = shape_of(call.given.get("input"))
        kernel = getattr(layer, "kernel_size", None)
        if given is None or kernel is None or getattr(layer, "transposed", False) or isinstance(layer, nn.Unfold):
            continue
        spatial = len(kernel) if isinstance(kernel, tuple) else int(type(layer).__name__[-2:-1])
        settings = [_each(getattr(layer, name, 1), spatial) for name in ("kernel_size", "dilation", "padding")]
        for place, (reach, dilation, padding) in enumerate(zip(*settings), len(given) - spatial):
            needed = dilation * (reach - 1) + 1 - 2 * padding
            if place >= 0 and given[place] < needed:
                one = scene.names.of_parameter(call.place, "input", call.given["input"])
                have = f"{one} has {given[place]} in dimension {place}"
                cause = f"{have}, but the kernel of {scene.where(layer)} needs at least {needed} there"
                more = math.ceil((needed - given[place]) / 2 + padding)
                fix = f"use a larger input, a smaller kernel_size, or padding={more}"
                return Finding("length", cause, fix, (scene.bound(one, place),))
    return None


def _too_long(scene: Scene) -> Finding | None:
    """Find lengths of texts that exceed the size of the tensor that they belong to."""
    for place, step in enumerate(scene.steps):
        for lengths, name, along in _LENGTHS.get(step.name, ()) if step.in_torch else ():
            given, whole = step.locals.get(lengths), step.locals.get(name)
            shape, first = shape_of(whole) or (), bool(step.locals.get("batch_first"))
            at = along ^ first if step.name == "pack_padded_sequence" else along
            numbers = given.tolist() if isinstance(given, Tensor) else given
            if not isinstance(numbers, (list, tuple)) or len(shape) <= at or max(numbers, default=0) <= shape[at]:
                continue
            one, other = (scene.names.of_parameter(place, key, step.locals[key]) for key in (lengths, name))
            said = one.name if one.text == lengths else f"{one.name}, the {lengths},"
            cause = f"{said} go up to {max(numbers)}, but {other} has {shape[at]} in dimension {at}"
            fix = f"give {one.name} values of at most {shape[at]}, the length of {other.name}"
            return Finding("length", cause, fix, (scene.bound(other, at),))
    return _badly_packed(scene)


def _badly_packed(scene: Scene) -> Finding | None:
    """Find a packed sequence whose lengths exceed what was packed: PyTorch notices only when it is used."""
    for call in scene.calls:
        for name, value in call.given.items():
            if isinstance(value, PackedSequence) and int(value.batch_sizes.sum()) > len(value.data):
                one = scene.names.of_parameter(call.place, name, value)
                cause = f"{one.name} was packed with lengths up to {len(value.batch_sizes)},"
                cause += f" {int(value.batch_sizes.sum())} positions in total, but has {len(value.data)}"
                fix = "give pack_padded_sequence lengths that do not exceed the length of what is packed"
                return Finding("length", f"{cause}: a length is too large", fix)
    return None


def _each(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [0 if isinstance(value, str) else value] * count
