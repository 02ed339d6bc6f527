"""What PyTorch says of sizes that disagree, and what two shapes have in common. Pure functions on text and tuples."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn


class Clash(NamedTuple):
    """Two sizes that a message says disagree, the dimension, and whole shapes if it tells them."""

    sizes: tuple[int, int]
    dimension: int | None = None
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)


_PAIRS = (
    r"tensor a \((?P<a>\d+)\) must match the size of tensor b \((?P<b>\d+)\) at non-singleton dimension (?P<d>\d+)",
    r"expanded size of the tensor \((?P<a>\d+)\) must match the existing size \((?P<b>\d+)\)"
    r" at non-singleton dimension (?P<d>\d+)",
    r"shapes cannot be multiplied \(\d+x(?P<a>\d+) and (?P<b>\d+)x\d+\)",
    r"[Ee]xpected size (?P<b>\d+) but got size (?P<a>\d+)",
    r"to have (?P<b>\d+) channels, but got (?P<a>\d+) channels",
    r"size mismatch, got .*?(?P<a>\d+), .*?x(?P<b>\d+)",
)
_KEEPING = ("Dropout", "LayerNorm", "RMSNorm", "Identity", "Activation", "GELU", "ReLU", "SiLU", "Tanh", "Sigmoid")
_SHAPE = r"\[((?:\d+(?:, ?)?)*)\]"


def read_clash(message: str) -> Clash | None:
    """Read which sizes disagree from what PyTorch says, or None."""
    for pattern in _PAIRS:
        match = re.search(pattern, message)
        if match is not None:
            dimension = int(match["d"]) if "d" in match.groupdict() else None
            return Clash((int(match["a"]), int(match["b"])), dimension)
    shapes = [tuple(int(size) for size in re.findall(r"\d+", text)) for text in re.findall(_SHAPE, message)]
    shapes = [shape for shape in shapes if shape]
    if len(shapes) >= 2 and "is invalid for input of size" not in message and "Target sizes" not in message:
        return _first_difference(shapes[0], shapes[1])
    return None


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> Clash | None:
    for dimension, (a, b) in enumerate(zip(one, other)):
        if a != b and 1 not in (a, b):
            return Clash((a, b), dimension, (one, other))
    return None


def kind_of_dimension(dimension: int, rank: int, wide: bool = False) -> str:
    """Name a dimension of a tensor ``[batch, length, width]``; what has four dimensions ends in two lengths.

    Args:
        dimension: Which dimension.
        rank: How many the tensor has.
        wide: Whether a tensor of two dimensions ends in its width, as embeddings do and masks do not.
    """
    if dimension == 0 and rank > 1:
        return "batch"
    return "width" if dimension == rank - 1 and (rank in (1, 3) or (rank == 2 and wide)) else "length"


def what_changed(known: tuple[int, ...], shape: tuple[int, ...], wide: bool = True) -> tuple[str, str] | None:
    """Compare two shapes: transposed, or one dimension changed; None if they are the same or have little in common."""
    if len(known) != len(shape):
        if set(known) - {1} and len(known) and len(shape):
            return "rank", f"{len(shape)} dimensions in place of {len(known)}"
        return None
    if known == shape:
        return None
    if sorted(known) == sorted(shape):
        return "transposed", "its dimensions are transposed"
    changed = [place for place, (a, b) in enumerate(zip(known, shape)) if a != b]
    if len(changed) != 1:
        return None
    place = changed[0]
    kind = kind_of_dimension(place, len(shape), wide)
    noun = {"batch": "row", "length": "position", "width": "column"}[kind]
    before, after = known[place], shape[place]
    if after == 2 * before:
        return kind, f"its {noun}s are doubled"
    count = abs(after - before)
    return kind, f"{count} {noun}{'' if count == 1 else 's'} {'more' if after > before else 'fewer'}"


def due(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that a module must return for an input of ``shape``, or None if its class does not tell."""
    if type(module) is nn.Linear:
        return (*shape[:-1], module.out_features)
    if type(module) is nn.Embedding:
        return (*shape, module.embedding_dim)
    return shape if type(module).__name__.endswith(_KEEPING) else None
