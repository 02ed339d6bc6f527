"""The operands of what raised, by the names that a reader knows: those of the source, as far out as they go."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..._format import dtype_of
from .ghosts import Ghost, Shape, shape_of
from .steps import CALLS, Step
from .values import UNKNOWN

_LONGEST = 60


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


class Names:
    """Finds out what tensors are called.

    Args:
        steps: The steps of the traceback.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def caller(self, place: int) -> int | None:
        """Return the step that called the function of a step, past PyTorch's own calling of modules."""
        for before in range(place - 1, -1, -1):
            if self.steps[before].file != CALLS:
                return before
        return None

    def of_expression(self, place: int, node: ast.AST) -> Operand:
        """Return the operand that an expression of a step is."""
        value = self.steps[place].values(node)
        if isinstance(node, ast.Name):
            return self.outward(place, node.id, value, node)
        inner = _made_of(node, self.steps[place])
        base = None if inner is None else self.of_expression(place, inner)
        return Operand(text_of(node), value, base if base is not None and base.is_tensor else None, place, node)

    def of_parameter(self, place: int, parameter: str, value: Any) -> Operand:
        """Return what was given for a parameter of the function of a step, by its name where the call is."""
        found = self.argument(place, parameter)
        if found is None:
            return Operand(parameter, value, None, place)
        before, node = found
        if isinstance(node, ast.Name):
            known = self.steps[before].values(node)
            if known is value:
                return self.outward(before, node.id, value, node)
            return Operand(parameter, value, None, place)
        made = self.of_expression(before, node)
        if len(made.text) > _LONGEST or self.steps[before].in_torch:
            return Operand(parameter, value, made.base, place)
        return Operand(made.text, value, made.base, before, node)

    def outward(self, place: int, name: str, value: Any, node: ast.AST | None = None) -> Operand:
        """Follow a name to the functions further out, as long as it is a parameter that was only handed on."""
        step = self.steps[place]
        found = self.argument(place, name) if name in step.parameters else None
        if found is None or value is UNKNOWN or value is None:
            return Operand(name, value, None, place, node)
        before, outer = found
        if self.steps[before].in_torch and not step.in_torch:
            return Operand(name, value, None, place, node)  # PyTorch's own names tell no more
        if isinstance(outer, ast.Name):
            known = self.steps[before].values(outer)
            if known is value or _same_numbers(known, value):
                further = self.outward(before, outer.id, known, outer)
                base = further.base if further.shape == shape_of(value) else further
                return replace(further, value=value, base=base)
            return Operand(name, value, None, place, node)
        made = self.of_expression(before, outer)
        same = made.value is value or (made.is_tensor and made.shape == shape_of(value))
        if step.in_torch and same and len(made.text) <= _LONGEST:
            return Operand(made.text, value, made.base, before, outer)
        return Operand(name, value, None, place, node)

    def argument(self, place: int, parameter: str) -> tuple[int, ast.expr] | None:
        """Return the expression that was given for a parameter of the function of a step, and where it stands."""
        own = self.steps[place].positional
        before = self.caller(place)
        while before is not None:
            node = self.steps[before].node
            if not isinstance(node, ast.Call):
                return None
            found = _argument_of(node, own, parameter)
            if found is not None:
                return before, found
            handed_on = self.steps[before].locals  # a wrapper: def wrapped(self, *args, **kwargs)
            if "kwargs" not in handed_on and "args" not in handed_on:
                return None
            before = self.caller(before)
        return None


def _same_numbers(one: Any, other: Any) -> bool:
    """Tell whether a tensor is another in another shape, as ``ids.view(-1, ids.size(-1))`` is."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.is_nested or other.is_nested:
        return False
    same = one.dtype == other.dtype and one.device == other.device and one.numel() == other.numel()
    return same and one.is_contiguous() and other.is_contiguous() and 0 != one.data_ptr() == other.data_ptr()


def _argument_of(call: ast.Call, own: list[str], parameter: str) -> ast.expr | None:
    for word in call.keywords:
        if word.arg == parameter:
            return word.value
    given = call.args
    if given and isinstance(given[0], ast.Name) and given[0].id == "self":
        given = given[1:]  # a forward that was called as a plain function
    place = own.index(parameter) if parameter in own else len(given)
    if place < len(given) and not any(isinstance(one, ast.Starred) for one in given[: place + 1]):
        return given[place]
    return None


def _made_of(node: ast.AST, step: Step) -> ast.expr | None:
    """Return the expression that a chain of methods and indices begins with."""
    inner: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if isinstance(step.values(node.func), nn.Module):
            return None
        owner = step.values(node.func.value)
        inner = node.func.value if isinstance(owner, (Tensor, Ghost)) else next(iter(node.args), None)
        if inner is not node.func.value and not isinstance(step.values(inner), (Tensor, Ghost)):
            return None
    elif isinstance(node, (ast.Subscript, ast.Attribute)):
        owner = step.values(node.value)
        inner = node.value if isinstance(owner, (Tensor, Ghost)) else None
    return inner


def text_of(node: ast.AST) -> str:
    """Return the source of an expression."""
    return ast.unparse(node).replace("'", '"')
