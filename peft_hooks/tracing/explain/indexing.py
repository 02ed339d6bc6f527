"""Indices out of range in the expression that raised."""

from __future__ import annotations

from torch import Tensor, nn

from .expressions import BY_INDEX, Expression
from .failure import Bound, Finding
from .operands import Operand
from .ranges import Range, at, positions, read
from .scene import Scene


def bad_index(scene: Scene) -> Finding | None:
    """Find an index out of range in what raised: ``gather``, ``index_select``, ``x[:, ids]``, ``x[7]``."""
    for place in scene.last_places():
        expression = Expression(scene.names, place)
        found = _item(scene, expression) if expression.name in ("getitem", "setitem") else None
        found = found or (_by_index(scene, expression) if expression.name in BY_INDEX else None)
        if found is not None:
            return found
    return None


def _by_index(scene: Scene, expression: Expression) -> Finding | None:
    table, index, dim = (expression.operands.get(name) for name in ("input", "index", "dim"))
    if table is None or index is None or dim is None or not isinstance(dim.value, int) or not table.shape:
        return None
    if len(index.shape) != len(table.shape) and expression.name not in ("index_select", "index_add", "index_copy"):
        cause = f"{index} has {len(index.shape)} dimensions, {table} has {len(table.shape)}"
        cause += f": {expression.name}() takes as many"
        return Finding(
            "rank", cause, f"unsqueeze and expand {index.name} to {len(table.shape)} dimensions", _bounds(scene, index)
        )
    along = dim.value % len(table.shape)
    found = read(index.value, table.shape[along], 0)
    return None if found is None else _along(scene, table, index, along, found)


def _along(scene: Scene, table: Operand, index: Operand, along: int, found: Range) -> Finding:
    rows = table.shape[along]
    owner = scene.owner(table.value) or scene.owner(table.root.value)
    if found.start is not None and found.high - found.start + 1 == index.shape[-1]:
        where = f"{table}" if owner is None else f"the {owner.kind} {owner.name!r} of {scene.where(owner.module)}"
        return positions(scene, index, found, rows, where)
    cause = (
        f"{index.name} {list(index.shape)} goes from {found.low} to {found.high}, {table} has {rows} in dimension"
        f" {along}, 0 to {rows - 1}: {at(index, found)} is out of range"
    )
    return Finding("index", cause, f"{index.name} from 0 to {rows - 1}", (scene.bound(table, along),))


def _item(scene: Scene, expression: Expression) -> Finding | None:
    table, index = expression.operands["input"], expression.value("index")
    if isinstance(table.value, (list, tuple, nn.ModuleList, nn.Sequential)) and isinstance(index, int):
        many = len(table.value)
        if not -many <= index < many:
            what = "entry" if many == 1 else "entries"
            return Finding("index", f"{table.name} has {many} {what}, {index} is asked for", None)
        return None
    parts = list(index) if isinstance(index, tuple) else [index]
    if not table.is_tensor or any(part is ... or part is None for part in parts):
        return None
    if len(parts) > len(table.shape):
        cause = f"{table} has {len(table.shape)} dimensions, {len(parts)} are indexed"
        return Finding("rank", cause, f"give {table.name} {len(parts)} dimensions", _bounds(scene, table))
    for place, part in enumerate(parts):
        size = table.shape[place]
        if isinstance(part, int) and not isinstance(part, bool) and not -size <= part < size:
            cause = f"{table} has {size} in dimension {place}, 0 to {size - 1}; {part} is asked for, out of range"
            return Finding("index", cause, f"an index from 0 to {size - 1}", _bounds(scene, table))
        found = read(part, size, -size) if isinstance(part, Tensor) and str(part.dtype) != "torch.bool" else None
        if found is not None:
            return _along(scene, table, Operand(expression.operands["index"].text, part), place, found)
    return None


def _bounds(scene: Scene, table: Operand) -> tuple[Bound, ...]:
    return (scene.bound(table, 0),) if table.shape else ()
