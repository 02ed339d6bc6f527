"""Represent the tensors of an explanation, including those that no longer exist, and compare their shapes."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..._format import dtype_of

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Ghost:
    """A tensor that no longer exists, or never did."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device


def shape_of(value: Any) -> Shape | None:
    """Return the shape of a tensor or a ``Ghost``; None for anything else and for nested tensors."""
    if isinstance(value, Ghost):
        return value.shape
    if not isinstance(value, Tensor) or value.is_nested:
        return None
    return tuple(int(size) for size in value.shape)


def is_tensor(value: Any) -> bool:
    """Tell whether something is a tensor or a ``Ghost``."""
    return isinstance(value, (Tensor, Ghost))


@dataclass(frozen=True)
class Operand:
    """One of the things that an expression works on.

    Attributes:
        text: What it is called in the source.
        value: The tensor, a ``Ghost`` if it no longer exists, or another object.
        base: The tensor from which the expression made it, if it did.
        place: The index of the step whose source has the text.
        node: The expression.
    """

    text: str
    value: Any
    base: Operand | None = None
    place: int = 0
    node: ast.AST | None = None

    @property
    def shape(self) -> Shape:
        """Its shape; empty if it has none."""
        return shape_of(self.value) or ()

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor with a shape."""
        return shape_of(self.value) is not None

    @property
    def dtype(self) -> torch.dtype | None:
        """Its dtype."""
        return self.value.dtype if isinstance(self.value, (Tensor, Ghost)) else None

    @property
    def is_float(self) -> bool:
        """Whether it has a floating-point dtype."""
        return self.dtype is not None and self.dtype.is_floating_point

    @property
    def device(self) -> torch.device | None:
        """Its device."""
        return self.value.device if isinstance(self.value, (Tensor, Ghost)) else None

    @property
    def short(self) -> str:
        """Its dtype in short, such as ``"f32"``."""
        return "" if self.dtype is None else dtype_of(self.dtype)

    @property
    def root(self) -> Operand:
        """The tensor from which it was ultimately made, or itself."""
        return self if self.base is None else self.base.root

    def __str__(self) -> str:
        root = self.root
        made = f" (made from {root.name} {list(root.shape)})" if root.shape != self.shape else ""
        return f"{self.name} {list(self.shape)}{made}"

    @property
    def name(self) -> str:
        """Its text, in backquotes if it is more than a name."""
        plain = all(part.isidentifier() for part in self.text.split("."))
        return self.text if plain else f"`{self.text}`"


def many(count: int, noun: str = "dimension") -> str:
    """Return a count with its noun: ``"1 dimension"``, ``"2 dimensions"``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first(found: Iterable[T | None]) -> T | None:
    """Return the first item that is not None."""
    return next((one for one in found if one is not None), None)


def flat_of(args: Sequence[Any]) -> list[Any]:
    """Return sizes or dimensions as a list, whether given one by one or as one sequence."""
    return list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)


def kind_of_dimension(dimension: int, rank: int, wide: bool = False) -> str:
    """Name a dimension of a tensor ``[batch, length, width]``; a tensor with four dimensions ends in two lengths.

    Args:
        dimension: Which dimension.
        rank: How many dimensions the tensor has.
        wide: Whether a tensor with two dimensions ends in its width, as embeddings do and masks do not.
    """
    if dimension == 0 and rank > 1:
        return "batch"
    return "width" if dimension == rank - 1 and (rank in (1, 3) or (rank == 2 and wide)) else "length"


def what_changed(known: Shape, shape: Shape, wide: bool = True) -> tuple[str, str] | None:
    """Say how a shape differs from a known one; None if they are equal or have little in common.

    It may have another rank, be transposed, or differ in one dimension. Returns the kind and the difference as text.
    """
    if len(known) != len(shape):
        if set(known) - {1} and len(known) and len(shape):
            return "rank", f"{many(len(shape))} instead of {len(known)}"
        return None
    if known == shape:
        return None
    if sorted(known) == sorted(shape):
        return "transposed", "its dimensions are transposed"
    places = [place for place, (a, b) in enumerate(zip(known, shape)) if a != b]
    if len(places) != 1:
        return None
    place = places[0]
    kind = kind_of_dimension(place, len(shape), wide)
    noun = {"batch": "row", "length": "position", "width": "column"}[kind]
    before, after = known[place], shape[place]
    if after == 2 * before:
        return kind, f"its {noun}s are doubled"
    count = abs(after - before)
    return kind, f"{many(count, noun)} {'more' if after > before else 'fewer'}"


def storage_of(tensor: Tensor) -> tuple[Any, int] | None:
    """Return where a tensor's values are stored; None if that is unknown or it has none."""
    try:
        place = tensor.untyped_storage().data_ptr()
    except Exception:  # some tensors have no storage
        return None
    return (tensor.device, place) if place else None
