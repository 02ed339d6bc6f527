"""Find masks, indices and values whose sizes do not match the tensor that they select from or are assigned to."""

from __future__ import annotations

import ast
import math
import operator

import torch
from torch import Tensor

from .ghosts import Ghost, Operand, shape_of
from .meta import worked_out
from .sites import Expression
from .unlike import Clash, unlike

_SET = "are the target and the values of the assignment, which must have the same size there, or the values 1"


def _row_of(one: Operand, masked: int, count: int) -> Ghost | None:
    """Return a ghost of what a mask selects: a row for each of its places."""
    if one.dtype is None or one.device is None:
        return None
    return Ghost((count, *one.shape[masked:]), one.dtype, one.device)


def by_item(expression: Expression) -> Clash | None:
    """Find a mask that does not fit its tensor, or values that do not fit the places they are assigned to."""
    one, index = expression.operands["input"], expression.value("index")
    if not one.is_tensor:
        return None
    masks = list(index) if isinstance(index, tuple) else [index]
    shape = shape_of(masks[0])
    if len(masks) == 1 and shape is not None and masks[0].dtype == torch.bool:
        for place, (a, b) in enumerate(zip(one.shape, shape)):
            if a != b:
                selects = expression.operands["index"]
                return Clash("sizes", one, place, selects, place, "must have the same size there for a mask")
    if expression.name != "setitem":
        return None
    values, target = expression.operands["value"], worked_out(operator.getitem, [one.value, index])
    if target is not None and values.is_tensor:
        places = Operand(ast.unparse(expression.node) if expression.node else "", target, one)
        return unlike(places, values, _SET)
    mask = masks[0]
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not values.shape:
        return None
    count = int(mask.sum())  # the mask selects places, each of which takes a row of values
    row = Operand(ast.unparse(expression.node) if expression.node else "", _row_of(one, mask.dim(), count), one)
    clash = unlike(row, values, _SET)
    if clash is not None and clash.place != 0:
        return clash
    if len(values.shape) == len(one.shape) - mask.dim() + 1 and values.shape[0] not in (1, count):
        return Clash("select", values, values.shape[0], Operand(expression.operands["index"].text, mask), count, "rows")
    return None


def by_mask(expression: Expression) -> Clash | None:
    """Find a mask that selects more places than the source has elements."""
    one, mask, source = (expression.operands.get(name) for name in ("input", "mask", "source"))
    if one is None or mask is None or source is None or not isinstance(mask.value, Tensor) or not source.is_tensor:
        return None
    clash = unlike(one, mask)
    if clash is not None:
        return clash
    count, numbers = int(mask.value.expand(one.shape).sum()), math.prod(source.shape)
    return Clash("select", source, numbers, mask, count, "elements") if numbers < count else None


def by_index(expression: Expression) -> Clash | None:
    """Find an index that is larger than its tensor or source, or that lacks one place per row of the source."""
    table, index, dim = (expression.operands.get(name) for name in ("input", "index", "dim"))
    source = expression.operands.get("src") or expression.operands.get("source")
    if table is None or index is None or dim is None or not isinstance(dim.value, int) or not table.shape:
        return None
    along = dim.value % len(table.shape)
    if expression.name.startswith("index_"):
        of_source = source is not None and len(index.shape) == 1 and len(source.shape) == len(table.shape)
        if not of_source or source is None or source.shape[along] == index.shape[0]:
            return None
        return Clash("sizes", index, 0, source, along, "must have the same size there: one place for each row")
    if expression.name == "take_along_dim":  # the only one that broadcasts
        return None
    sides = [(table, along)] + ([] if source is None or not source.is_tensor else [(source, None)])
    for other, free in sides:
        for place, (size, most) in enumerate(zip(index.shape, other.shape)):
            if size > most and place != free and len(index.shape) == len(other.shape):
                return Clash("sizes", index, place, other, place, _AT_MOST)
    return None


_AT_MOST = "do not match: an index must not be larger there than the tensor that it is used with"
