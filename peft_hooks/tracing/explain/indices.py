"""Explain indices out of range: their values, the number of rows, the first bad one, and where they come from."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from torch import Tensor, nn

from .failure import Bound, Finding
from .ghosts import Operand, first, many, shape_of
from .scene import Scene
from .sites import Expression, Site, expressions
from .table import BY_INDEX
from .texts import is_optional, is_vocabulary, room, vocabulary
from .whole import numbers_of

_OF_ROWS = ("index_select", "index_add", "index_add_", "index_copy", "index_copy_")  # their index is a vector
IGNORED = -100  # the label that PyTorch's losses ignore by default


class Range(NamedTuple):
    """The range of the indices in a tensor.

    Attributes:
        low: The smallest.
        high: The largest.
        bad: The first that is out of range.
        at: The position of ``bad``.
        start: The smallest, if each row counts up by one; otherwise None.
    """

    low: int
    high: int
    bad: int
    at: tuple[int, ...]
    start: int | None

    def bad_at(self, operand: Operand) -> str:
        """Say which index is the first that is out of range, and where it is."""
        name = operand.text if operand.text.isidentifier() else "it"
        return f"{self.bad} (the first, at {name}[{', '.join(map(str, self.at))}])"

    def counts(self, operand: Operand) -> bool:
        """Tell whether the indices are positions: each row counts up from the same number."""
        return self.start is not None and self.high - self.start + 1 == operand.shape[-1]


def _read(indices: Any, rows: int, lowest: int = 0, spared: Any = None) -> Range | None:
    """Return the range of indices if one of them, other than ``spared``, is not from ``lowest`` to ``rows - 1``."""
    if not isinstance(indices, Tensor) or indices.is_floating_point() or not shape_of(indices):
        return None
    try:
        values = indices.detach().cpu()
        bad = (values < lowest) | (values >= rows)
        if spared is not None:
            bad &= values != spared
        if not bool(bad.any()):
            return None
        at = tuple(bad.nonzero()[0].tolist())
        steps = values.diff(dim=-1)
        start = int(values.min()) if steps.numel() and bool((steps == 1).all()) else None
        return Range(int(values.min()), int(values.max()), int(values[at]), at, start)
    except Exception:  # after an assert on a GPU, nothing on it can be read
        return None


def out_of_range(site: Site) -> Finding | None:
    """Find indices beyond what a layer or function has."""
    for parameter, counted in site.takes.indices.items():
        operand = site.operands.get(parameter)
        rows = _rows(site, counted)
        if operand is None or rows is None:
            continue
        ignored = site.operands.get("ignore_index") if site.module is None else None
        found = _read(operand.value, rows, spared=None if ignored is None else ignored.value)
        if found is not None:
            of_loss = site.name in ("cross_entropy", "nll_loss", "multi_margin_loss", "ctc_loss")
            return (_labels if of_loss else _lookup)(site, operand, found, rows)
    return None


def _rows(site: Site, counted: str) -> int | None:
    for parameter, pattern in site.takes.patterns.items():
        words = pattern.partition("|")[0].split()
        shape = site.shapes.get(parameter)
        if counted in words and shape is not None and len(shape) == len(words):
            return shape[words.index(counted)]
    rows = site.number(counted)
    return rows if isinstance(rows, int) and rows > 0 else None


def _labels(site: Site, operand: Operand, found: Range, classes: int) -> Finding:
    """Explain labels beyond the classes of a loss."""
    name, logits = operand.text, site.operands.get("input") or site.operands.get("log_probs")
    bounds = () if logits is None or not logits.shape else (site.scene.bound(logits, int(len(logits.shape) > 1)),)
    cause = (
        f"the labels ({name}) range from {found.low} to {found.high}; there are {classes} classes, 0 to {classes - 1}:"
        f" {found.bad_at(operand)} is out of range"
    )
    if found.bad < 0:
        return Finding("index", cause, f"use labels from 0 to {classes - 1}, or set ignore_index={found.bad}", bounds)
    known = logits is None or site.scene.origin(logits) is not None or site.scene.maker(logits) is not None
    more = "give the model" if known or logits is None else f"give {logits.name}"
    return Finding("index", cause, f"correct the labels ({name}), or {more} {found.high + 1} classes", bounds)


def _lookup(site: Site, operand: Operand, found: Range, rows: int) -> Finding:
    """Explain indices beyond the rows of a table."""
    scene, name, bad = site.scene, operand.text, found.bad_at(operand)
    weight = site.operands.get("weight") if site.module is None else None
    owner = None if weight is None else scene.owner(weight)
    table = site.module if owner is None else owner.module
    where = site.where if table is None else scene.where(table)
    counted, noun = ("num_classes", "classes") if site.name == "one_hot" else ("num_embeddings", "rows")
    noun = {"classes": "class", "rows": "row"}[noun] if rows == 1 else noun
    bounds = (Bound(rows, f"{counted} of {where}", (), 0, "", site.path),)
    cause = f"{name} {list(operand.shape)} ranges from {found.low} to {found.high}, but {where} has {rows} {noun}"
    if found.bad == IGNORED:
        fix = f"replace {IGNORED} in {name} with the pad token's id"
        makes = hasattr(scene.model, "prepare_decoder_input_ids_from_labels") and _is_given(scene, "labels")
        if makes and is_optional(scene, operand):
            kind = type(scene.model).__name__
            fix = f"leave {name} out: {kind} makes it from labels; or use the pad token's id instead"
        return Finding("index", f"{cause}: {bad} is what losses ignore in labels, not an index", fix, bounds)
    if found.bad < 0:
        return Finding("index", f"{cause}: {bad} is negative", f"use no negative numbers in {name}", bounds)
    if found.counts(operand):
        return _positions(scene, operand, found, rows, where)
    cause += f", 0 to {rows - 1}: {bad} is out of range"
    fix = f"give {name} values from 0 to {rows - 1}, or set {counted}={found.high + 1} in {site.where}"
    return Finding("index", cause, _of_tokens(scene, operand, found, rows, table) or fix, bounds)


def _of_tokens(scene: Scene, operand: Operand, found: Range, rows: int, table: nn.Module | None) -> str | None:
    """Say how to fix ids beyond a model's vocabulary or beyond another of its tables; None if that is unknown."""
    name, known = operand.text, vocabulary(scene)
    if is_vocabulary(scene, table) and known is not None and rows < known > found.high:
        resize = f"call model[0].auto_model.resize_token_embeddings({known})"
        return f"{resize}: the tokenizer has {known} tokens, but only {rows} have a row"
    optional = is_optional(scene, operand)
    if rows == 1 and optional:
        return f"leave {name} out, or give only zeros"
    if is_vocabulary(scene, table):
        more = "if tokens were added, call resize_token_embeddings(len(tokenizer))"
        return f"{more}; otherwise use a tokenizer of at most {rows} tokens"
    return f"give {name} values from 0 to {rows - 1}, or leave it out" if optional else None


def _is_given(scene: Scene, name: str) -> bool:
    return name in {leaf.key for leaf in scene.history.given}


def _positions(scene: Scene, operand: Operand, found: Range, rows: int, where: str) -> Finding:
    """Explain positions beyond the end of their table."""
    start = found.start or 0
    virtual, offset, fix = room(scene, rows, start)
    cause = f"{found.high - start + 1} positions{virtual}, but {where} has {rows}{offset}"
    if is_optional(scene, operand) and _is_given(scene, operand.text):
        fix = f"give {operand.text} values from 0 to {rows - 1}, or leave it out"  # the caller chose them
    bounds = (scene.bound(operand, len(operand.shape) - 1), Bound(rows, f"the capacity of {where}", (), 0, "", None))
    return Finding("length", cause, fix, bounds)


def bad_index(scene: Scene) -> Finding | None:
    """Find an index out of range in the expression that raised: ``gather``, ``x[:, ids]``, ``x[7]`` and others."""
    rules = {**dict.fromkeys(BY_INDEX, _by_index), "getitem": _item, "setitem": _item}
    return first(rules[one.name](scene, one) for one in expressions(scene) if one.name in rules)


def _by_index(scene: Scene, expression: Expression) -> Finding | None:
    table, index, dim = (expression.operands.get(name) for name in ("input", "index", "dim"))
    if table is None or index is None or dim is None or not isinstance(dim.value, int) or not table.shape:
        return None
    rank = len(table.shape)
    if len(index.shape) > 1 and expression.name in _OF_ROWS:
        cause = f"{index} has {many(len(index.shape))}, but {expression.name}() takes 1: the same positions in each row"
        fix = f"use {index.name}.flatten() for that; for other positions in each row use gather() and an index"
        return Finding("rank", cause, f"{fix} with {many(rank)}", scene.bounds(index))
    if len(index.shape) != rank and expression.name not in _OF_ROWS:
        cause = f"{index} has {many(len(index.shape))}, but {table} has {rank}: {expression.name}() needs as many"
        fix = f"unsqueeze and expand {index.name} to {many(rank)}"
        return Finding("rank", cause, fix, scene.bounds(index))
    found = _read(numbers_of(expression.step.values, index.node, index.value), table.shape[dim.value % rank])
    return None if found is None else _along(scene, table, index, dim.value % rank, found)


def _along(scene: Scene, table: Operand, index: Operand, along: int, found: Range) -> Finding:
    rows = table.shape[along]
    owner = scene.owner(table) or scene.owner(table.root)
    if found.counts(index):
        where = f"{table}" if owner is None else f"the {owner.kind} {owner.name!r} of {scene.where(owner.module)}"
        return _positions(scene, index, found, rows, where)
    cause = (
        f"{index.name} {list(index.shape)} ranges from {found.low} to {found.high}, but {table} has {rows} in dimension"
        f" {along}, 0 to {rows - 1}: {found.bad_at(index)} is out of range"
    )
    return Finding("index", cause, f"give {index.name} values from 0 to {rows - 1}", (scene.bound(table, along),))


def _item(scene: Scene, expression: Expression) -> Finding | None:
    table, index = expression.operands["input"], expression.value("index")
    if isinstance(table.value, (list, tuple, nn.ModuleList, nn.Sequential)) and isinstance(index, int):
        length = len(table.value)
        cause = f"{table.name} has {length} {'entry' if length == 1 else 'entries'}, but {index} is asked for"
        return None if -length <= index < length else Finding("index", cause)
    slices = expression.node.slice if isinstance(expression.node, ast.Subscript) else None
    nodes = slices.elts if isinstance(slices, ast.Tuple) else [slices]
    parts = [*index] if isinstance(index, tuple) else [index]
    if len(nodes) == len(parts):
        parts = [numbers_of(expression.step.values, node, part) for node, part in zip(nodes, parts)]
    if not table.is_tensor or any(part is ... or part is None for part in parts):
        return None
    if len(parts) > len(table.shape):
        cause = f"{table} has {many(len(table.shape))}, but {len(parts)} are indexed"
        return Finding("rank", cause, f"give {table.name} {many(len(parts))}", scene.bounds(table))
    for place, (part, size) in enumerate(zip(parts, table.shape)):
        if isinstance(part, int) and not isinstance(part, bool) and not -size <= part < size:
            cause = f"{table} has {size} in dimension {place}, 0 to {size - 1}: {part} is out of range"
            return Finding("index", cause, f"use an index from 0 to {size - 1}", scene.bounds(table))
        found = _read(part, size, -size) if isinstance(part, Tensor) and str(part.dtype) != "torch.bool" else None
        if found is not None:
            return _along(scene, table, Operand(expression.operands["index"].text, part), place, found)
    return None
