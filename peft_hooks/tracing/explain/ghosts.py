"""Shapes: of tensors that an expression makes on its way, which PyTorch's meta device tells; and two side by side."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..._format import dtype_of

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Ghost:
    """A tensor that is not at hand any more, or never was."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device


# Whatever else is handed to a function may do what it likes when it is asked.
_PLAIN = (int, float, str, slice, EllipsisType, torch.dtype, type(None))
_NUMBERS = ("size", "dim", "ndimension", "numel")  # methods whose results are right without strides and values
_MOVES = ("to", "type", "cpu", "cuda")


def shape_of(value: Any) -> Shape | None:
    """Return the shape of a tensor, at hand or not; None of anything else, and of nested tensors."""
    if isinstance(value, Ghost):
        return value.shape
    if not isinstance(value, Tensor) or value.is_nested:
        return None
    return tuple(int(size) for size in value.shape)


def is_tensor(value: Any) -> bool:
    """Tell whether something is a tensor, at hand or not."""
    return isinstance(value, (Tensor, Ghost))


@dataclass(frozen=True)
class Operand:
    """One thing that an expression worked on.

    Attributes:
        text: What it is called in the source.
        value: The tensor, a ``Ghost`` of one that is not at hand, or another object.
        base: The tensor that the expression made it of, if it made it.
        place: The step that the text is from.
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
        """Whether it is of floating-point numbers."""
        return self.dtype is not None and self.dtype.is_floating_point

    @property
    def device(self) -> torch.device | None:
        """Its device."""
        return self.value.device if isinstance(self.value, (Tensor, Ghost)) else None

    @property
    def short(self) -> str:
        """Its dtype, ``"f32"``."""
        return "" if self.dtype is None else dtype_of(self.dtype)

    @property
    def root(self) -> Operand:
        """The tensor that it is made of in the end, or itself."""
        return self if self.base is None else self.base.root

    def __str__(self) -> str:
        root = self.root
        made = f" (made of {root.name} {list(root.shape)})" if root.shape != self.shape else ""
        return f"{self.name} {list(self.shape)}{made}"

    @property
    def name(self) -> str:
        """Its text, set apart if it is more than a name."""
        plain = all(part.isidentifier() for part in self.text.split("."))
        return self.text if plain else f"`{self.text}`"


def many(count: int, noun: str = "dimension") -> str:
    """Say how many there are: ``"1 dimension"``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first(found: Iterable[T | None]) -> T | None:
    """Return the first of what was found that is not None."""
    return next((one for one in found if one is not None), None)


def flat_of(args: Sequence[Any]) -> list[Any]:
    """Return sizes or dimensions that were given one by one or as one sequence."""
    return list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)


def worked_out(work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return what a function of PyTorch's makes of tensors, on the device of the first; None if that is not known.

    Args:
        work: The function.
        args: Tensors, at hand or not, in lists, too, and numbers. Nothing is done to them: it runs on others.
        kwargs: The same by name.
    """
    given = [*args, *(kwargs or {}).values()]
    like = next((one for one in (*given, *flat_of(args[:1])) if is_tensor(one)), None)
    if like is None:
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = work(*map(on_meta, args), **{name: on_meta(value) for name, value in (kwargs or {}).items()})
    except Exception:  # what does not go together has no shape
        return None
    return _as_ghost(made, like.device)


def method(tensor: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what a method of a tensor gives, as far as shape and dtype go; None if that is not known."""
    if name in _MOVES:
        return _moved(tensor, name, [*args, *kwargs.values()])
    work = getattr(Tensor, name, None)
    made = None if work is None else worked_out(work, [tensor, *args], kwargs)
    return made if name in _NUMBERS or is_tensor(made) or isinstance(made, tuple) else None


def created(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ghost | None:
    """Return what ``torch.zeros`` and its like make of numbers; None if that is not known, or it is none of them."""
    device = torch.device(kwargs.get("device") or "cpu")
    if name not in ("zeros", "ones", "rand", "randn", "empty", "full", "arange"):
        return None
    options = {key: on_meta(value) for key, value in kwargs.items() if key != "device"}
    made: Tensor = getattr(torch, name)(*map(on_meta, args), **options, device="meta")
    return Ghost(tuple(made.shape), made.dtype, device)


def _moved(tensor: Any, name: str, given: Sequence[Any]) -> Ghost | None:
    """Return a tensor with another dtype or on another device."""
    shape, dtype, device = shape_of(tensor), tensor.dtype, tensor.device
    if shape is None:
        return None
    for one in [*given, *([name] if name in ("cpu", "cuda") else [])]:
        if is_tensor(one):
            dtype, device = one.dtype, one.device
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, (str, torch.device)):
            device = torch.empty(0, device=one).device  # with its number
    return Ghost(shape, dtype, device)


def on_meta(value: Any) -> Any:
    """Return a tensor without values for each tensor, and numbers as they are; raise at whatever else there is."""
    shape = shape_of(value)
    if shape is not None:
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return [*map(on_meta, value)] if isinstance(value, list) else tuple(map(on_meta, value))
    if not isinstance(value, _PLAIN):
        raise TypeError(type(value).__name__)
    return value


def _as_ghost(made: Any, device: torch.device) -> Any:
    if isinstance(made, Tensor):
        return Ghost(tuple(made.shape), made.dtype, device)
    if isinstance(made, (tuple, list)) and not isinstance(made, torch.Size):
        return tuple(_as_ghost(one, device) for one in made)
    return made


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


def what_changed(known: Shape, shape: Shape, wide: bool = True) -> tuple[str, str] | None:
    """Compare two shapes: transposed, or one dimension changed; None if they are the same or have little in common."""
    if len(known) != len(shape):
        if set(known) - {1} and len(known) and len(shape):
            return "rank", f"{many(len(shape))} in place of {len(known)}"
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
