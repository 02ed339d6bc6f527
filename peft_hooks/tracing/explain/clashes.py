"""Explain operands whose sizes do not match: which sizes, where each comes from, and which one is wrong."""

from __future__ import annotations

import ast
import itertools
import os

from torch import nn

from ..leaves import Leaf
from .failure import Bound, Finding
from .fixes import fix_of, inserted, joined, turned
from .ghosts import Operand, first, kind_of_dimension, many
from .losses import of_loss
from .operations import clash_of, clash_of_loss
from .origins import is_float, is_wide
from .promises import blame, changed, is_odd, kind_of, owner_of, trail
from .scene import Owned, Scene
from .sites import expressions, has_channels_first
from .table import BROADCAST, EQUAL
from .texts import room, virtual_tokens
from .tracebacks import TORCH
from .unlike import Clash
from .views import of_view

_DATA = os.path.join(TORCH, "utils", "data") + os.sep


def broken_loss(scene: Scene) -> Finding | None:
    """Find a loss whose tensors must have the same shape, or broadcast, and do not."""
    for place, step in enumerate(scene.steps):
        names = BROADCAST.get(step.name) or EQUAL.get(step.name) or ()
        if names and step.in_torch and step.module is None:
            given = [scene.names.of_parameter(place, one, step.locals[one]) for one in names if one in step.locals]
            clash = clash_of_loss(step.name, [one for one in given if one.is_tensor])
            if clash is not None:
                return of_loss(scene, clash, step.name) or _of_clash(scene, clash)
    return None


def broken_expression(scene: Scene) -> Finding | None:
    """Find operands that do not match in the expressions that were running, innermost first."""
    clash = first(map(clash_of, expressions(scene)))
    return None if clash is None else _of_clash(scene, clash)


def _of_clash(scene: Scene, clash: Clash) -> Finding:
    """Explain a clash."""
    if clash.kind != "sizes":
        return {"view": of_view, "select": _select, "rank": _rank, "equal": _unequal}[clash.kind](scene, clash)
    left, right = clash.left, clash.right
    sides = [(left, clash.place)] + ([] if right is None else [(right, clash.other)])
    bounds = tuple(scene.bound(*side) for side in sides)
    pair = (left.shape[clash.place], clash.other if right is None else right.shape[clash.other])
    special = virtual_tokens(scene, [one for one, _ in sides], pair, bounds)
    special = special or inputs_disagree(scene, pair)
    special = special or (None if turned(clash) else _too_short(scene, clash, bounds))
    if special is not None:
        return special
    found = blame(scene, sides, pair)
    padded = _collated(scene)
    cause = _both(clash) + (f"; {found.words}" if found.words else "")
    fix = (
        f"look at what {found.where} returns"
        if is_odd(scene, found)
        else padded or fix_of(clash, _is_image(scene, clash))
    )
    return Finding(found.kind or kind_of(left, clash.place), cause + scene.on(found.path), fix, bounds, found.path)


def _is_image(scene: Scene, clash: Clash) -> bool:
    """Tell whether the operand with more dimensions is the output of a layer that puts the channels first."""
    sides = [one for one in (clash.left, clash.right) if one is not None]
    return has_channels_first(scene, max(sides, key=lambda one: len(one.shape)))


def _collated(scene: Scene) -> str | None:
    """Say how to join examples of different sizes; None unless a ``DataLoader`` was joining them."""
    joins = any(step.file.startswith(_DATA) for step in scene.steps)
    pads = "for instance with torch.nn.utils.rnn.pad_sequence"
    fix = f"pad or resize the examples to the same size in the DataLoader's collate_fn, {pads}, or in the dataset"
    return fix if joins else None


def _both(clash: Clash) -> str:
    """Say what has the two sizes: ``"x [2, 27, 16] has 27 in dimension 1, pe [1, 20, 16] has 20"``."""
    left, right = clash.left, clash.right
    first = f"{left} has {left.shape[clash.place]} in dimension {clash.place}"
    if right is None:
        return f"{first} and {clash.rule}"
    same = "" if clash.other == clash.place else f" in dimension {clash.other}"
    return f"{first}, {right} has {right.shape[clash.other]}{same}; they {clash.rule}"


_TOGETHER = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "token_embeddings")


def inputs_disagree(scene: Scene, pair: tuple[int, int]) -> Finding | None:
    """Find two features, given to the model or to this call, that must agree in batch and length and do not."""
    for row in scene.ends:
        known = [leaf for leaf in row.came if leaf.key in _TOGETHER and len(leaf.shape or ()) > 1]
        for one, other in itertools.combinations(known, 2):
            for place, (a, b) in enumerate(zip((one.shape or ())[:2], (other.shape or ())[:2])):
                if {a, b} == set(pair) and a != b:
                    return _not_of_one(scene, row.where, (one, other), place)
    return None


def _not_of_one(scene: Scene, where: str, pair: tuple[Leaf, Leaf], place: int) -> Finding:
    kind = kind_of_dimension(place, 3)
    words = " and ".join(f"{leaf.name} {list(leaf.shape or ())}" for leaf in pair)
    bounds = []
    for leaf in pair:
        shape, origin = leaf.shape or (), scene.history.origin(leaf)
        source, path = ("", None) if origin is None else (origin.source, origin.maker)
        bounds.append(Bound(shape[place], leaf.name, shape, place, source, path))
    births = [scene.history.birth(leaf.shape or (), place, is_float(leaf), is_wide(leaf)) for leaf in pair]
    odd = max((birth for birth in births if birth), key=lambda birth: birth.when, default=None)
    made = None if odd is None else odd.maker
    fix = f"give tensors that agree in the {kind} dimension" if made is None else f"look at what {made!r} returns"
    cause = f"{where} was given {words}, which disagree in the {kind} dimension"
    return Finding(kind, cause + scene.on(made), fix, tuple(bounds), made)


def _too_short(scene: Scene, clash: Clash, bounds: tuple[Bound, ...]) -> Finding | None:
    """Find a parameter or buffer that is too small for the other operand."""
    sides = [(clash.left, clash.place, clash.right, clash.other)]
    if clash.right is not None:
        sides.append((clash.right, clash.other, clash.left, clash.place))
    for one, place, other, elsewhere in sides:
        owner = owner_of(scene, one, one.shape[place])
        if owner is None or (other is not None and (scene.owner(other) or scene.owner(other.root))):
            continue
        size, wanted = one.shape[place], elsewhere if other is None else other.shape[elsewhere]
        whole = tuple(owner.tensor.shape)
        cut = isinstance(one.node, ast.Subscript) and scene.owner(one.root) is not None
        if other is not None and cut and len(whole) == len(one.shape) and whole[place] >= wanted > size:
            return _of_slice(scene, owner, one, place, (other, elsewhere), bounds)
        length = sum(scene.history.batch_and_length[1:])
        long = length > 0 and wanted - length in {0, *(adapter.virtual_tokens for adapter in scene.adapters)}
        if long and wanted > size:
            return _too_long(scene, owner, one, size, wanted, bounds)
        return _of_owner(scene, owner, one, place, wanted, bounds, other)
    return None


def _of_slice(
    scene: Scene, owner: Owned, one: Operand, place: int, other: tuple[Operand, int], bounds: tuple[Bound, ...]
) -> Finding:
    """Explain a parameter or buffer that is long enough but was cut too short."""
    rest, at = other
    size, wanted, whole = one.shape[place], rest.shape[at], owner.tensor.shape[place]
    cause = f"{_owned(scene, owner, one)} is cut to {size} of its {whole} in dimension {place}, but {rest} has {wanted}"
    also = [number for number, given in enumerate(rest.shape) if given == size and number != at]
    if also:
        cause += f"; the {size} is dimension {also[0]} of {rest.name}"
    fix = f"take {wanted} of {owner.name!r} there, that is {rest.name}.size({at})"
    return Finding("length", cause, fix, bounds, scene.path(owner.module))


def _owned(scene: Scene, owner: Owned, one: Operand) -> str:
    """Name a parameter or buffer, and the operand made from it."""
    shape = list(owner.tensor.shape)
    where = f"the {owner.kind} {owner.name!r} {shape} of {scene.where(owner.module)}"
    same = one.text.rpartition(".")[2] == owner.name and list(one.shape) == shape
    named = same or one.text == f"self.{owner.name}"
    return where if named else f"{where}, from which {one.name} {list(one.shape)} is made,"


def _too_long(scene: Scene, owner: Owned, one: Operand, size: int, length: int, bounds: tuple[Bound, ...]) -> Finding:
    virtual, offset, cut = room(scene, size, _offset(owner, size))
    given = next((leaf for leaf in scene.history.given if (leaf.shape or ())[1:2] == (length,)), None)
    what = "text" if given is None or not is_float(given) else "input"
    cause = f"{_owned(scene, owner, one)} has {size} positions, but the {what} has {length}{virtual}: too long{offset}"
    fix = cut if what == "text" else f"give an input of at most {size} there"
    return Finding("length", cause, f"{fix}, or make {owner.name!r} longer", bounds)


def _of_owner(
    scene: Scene, owner: Owned, one: Operand, place: int, wanted: int, bounds: tuple[Bound, ...], other: Operand | None
) -> Finding:
    size = one.shape[place]
    asked = f"where {other.name} {list(other.shape)} has {wanted}" if other else f"but {wanted} is asked for"
    cause = f"{_owned(scene, owner, one)} has {size} in dimension {place}, {asked}"
    fix = f"expand {one.name} to {wanted} there" if size == 1 else f"create {owner.name!r} with {wanted} there"
    fix = (None if other is None else inserted((one, other), has_channels_first(scene, other))) or fix
    culprit = scene.path(owner.module)
    if other is not None:
        if _is_product(scene):
            layer = f"for instance with a Linear({wanted}, {size})"
            fix = f"project {other.name} from {wanted} to {size} first, {layer}, or {fix}"
        origin, where = scene.origin(other), [*other.shape].index(wanted)
        culprit = origin.row.path if origin is not None and origin.made else culprit
        birth = trail(scene, other, where, size) or scene.birth(other, where)
        if birth is not None and birth.made:
            culprit, words = birth.row.path, changed(scene, birth, other)
            cause += f"; {words}" if words else ""
        elif birth is not None and birth.leaf in scene.history.given and not _is_product(scene):
            cause += f"; the {wanted} comes from the input {birth.leaf.name} {list(birth.leaf.shape or ())}"
            fix = f"give {birth.leaf.name} a size of {size} there, or {fix}"
    return Finding(kind_of_dimension(place, len(one.shape), True), cause + scene.on(culprit), fix, bounds, culprit)


def _offset(owner: Owned, size: int) -> int:
    """Return where positions begin: after the padding row, if there is an Embedding of this many rows that has one."""
    for module in owner.module.children():
        if isinstance(module, nn.Embedding) and module.num_embeddings == size and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _is_product(scene: Scene) -> bool:
    names = [expression.name for expression in expressions(scene)]
    return names[-1] in ("matmul", "mm", "addmm", "bmm", "linear", "einsum")


def _select(scene: Scene, clash: Clash) -> Finding:
    """Explain a mask that does not select as many places as there are values."""
    values, mask = clash.left, clash.right
    assert mask is not None
    cause = f"{mask} selects {clash.other} places, but {values} has {clash.place} {clash.rule} for them"
    fix = f"select as many places in {mask.name} as {values.name} has {clash.rule}: now {clash.other} and {clash.place}"
    return Finding("index", cause, fix, scene.bounds(values))


def _rank(scene: Scene, clash: Clash) -> Finding:
    rest = f": {clash.rule} {clash.other}"
    if clash.right is not None:
        rest = f", {clash.right} has {clash.other}: they {clash.rule}"
    fix = joined(scene, clash) or f"give {clash.left.name} {many(clash.other)}"
    return Finding("rank", f"{clash.left} has {many(clash.place)}{rest}", fix, scene.bounds(clash.left))


def _unequal(scene: Scene, clash: Clash) -> Finding:
    left, right = clash.left, clash.right
    assert right is not None
    longer, shorter = (left, right) if len(left.shape) > len(right.shape) else (right, left)
    fix = f"give them the same shape, {list(left.shape)} or {list(right.shape)}"
    for place, size in enumerate(longer.shape):
        if size == 1 and longer.shape[:place] + longer.shape[place + 1 :] == shorter.shape:
            fix = (
                f"use {longer.name}.squeeze({place}), or {shorter.name}.unsqueeze({place}): then their shapes are equal"
            )
            break
    kind = "length" if len(left.shape) == len(right.shape) else "rank"
    return Finding(kind, f"{clash.rule}: {left}, {right}", fix, scene.bounds(left) + scene.bounds(right))
