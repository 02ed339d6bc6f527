"""Explain labels and logits whose rows differ: one per token, a number per class, or rows that the model changed."""

from __future__ import annotations

import itertools
import math

from ..leaves import Leaf
from .failure import Bound, Finding
from .ghosts import Operand, Shape, many
from .origins import Origin
from .patterns import Mismatch
from .scene import Scene
from .sites import Site
from .table import CLASSIFY


def labels_of_other_rows(site: Site, found: Mismatch) -> Finding | None:
    """Find out why a loss over classes is given different numbers of rows and labels."""
    target, logits = site.operands.get("target"), site.operands.get("input")
    if site.name not in CLASSIFY or found.parameter != "target" or target is None or logits is None:
        return None
    if found.dimension is None:
        return _rows_too_many(site.scene, target, logits)
    if found.dimension != 0 or found.meaning != "batch":
        return None
    bounds = (site.scene.bound(target, 0), site.scene.bound(logits, 0))
    return (
        _a_number_for_each_class(target, logits, bounds)
        or _one_for_each_token(site.scene, target, logits, bounds)
        or _of_other_length(site.scene, target, logits, bounds)
        or changed_rows(site.scene, (logits, target), bounds)
    )


def _rows_too_many(scene: Scene, target: Operand, logits: Operand) -> Finding | None:
    """Explain logits for each position, or for each layer, where there is one label for all of them."""
    shape = logits.shape
    if len(shape) > 3 and len(target.shape) == 1 and shape[0] == target.shape[0]:
        rest = list(range(2, len(shape)))
        flat = f"{logits.name}.flatten(1)" if set(shape[2:]) == {1} else f"{logits.name}.mean({tuple(rest)})"
        cause = f"{target} has {many(shape[0], 'label')}, but {logits} has a row of classes for each position of"
        fix = f"give one row for each label: {flat}"
        return Finding(
            "rank", f"{cause} {list(shape[2:])}", fix, (scene.bound(logits, 2),), scene.culprit(scene.origin(logits))
        )
    if len(shape) != 3 or len(target.shape) != 1:
        return None
    fitting = [place for place in (1, 0) if shape[1 - place] == target.shape[0]]
    if not fitting:
        return None
    place = min(fitting, key=lambda one: (shape[one] != 1, one != 1))
    cause = f"{target} has {many(shape[1 - place], 'label')}, but {logits} has {many(shape[place], 'row')} for each"
    one = "[:, -1], [:, 0] or a mean" if place == 1 else "[-1]"
    fix = (
        f"use {logits.name}.squeeze({place})"
        if shape[place] == 1
        else f"use one row of {logits.name} for each label: {one}"
    )
    culprit = scene.culprit(scene.origin(logits))
    return Finding("rank", cause + f", in dimension {place}", fix, (scene.bound(logits, place),), culprit)


def _a_number_for_each_class(target: Operand, logits: Operand, bounds: tuple[Bound, ...]) -> Finding | None:
    root = target.root
    if root is target or root.shape != logits.shape:
        return None
    cause = (
        f"{target} is flattened: {root.name} has a number for each of the {logits.shape[-1]} classes, as do the logits"
    )
    fix = f"give class numbers, {root.name}.argmax(1), or {root.name}.float() without flattening it"
    return Finding("batch", f"{cause}, {logits}", fix, bounds)


def _one_for_each_token(scene: Scene, target: Operand, logits: Operand, bounds: tuple[Bound, ...]) -> Finding | None:
    """Find labels for each token of a text where there is one row of logits for each text."""
    root, rows, size = target.root, logits.shape[0], target.shape[0]
    if root.shape[:1] != (rows,) or math.prod(root.shape) != size:
        return None
    cause = (
        f"the labels, {target}, are {size} = {' * '.join(map(str, root.shape))}, one for each token; the logits,"
        f" {logits}, have {rows} rows, one for each text"
    )
    kind = type(scene.model).__name__
    token = f", or use a {kind.replace('Sequence', 'Token')}" if "ForSequenceClassification" in kind else ""
    return Finding("batch", cause, f"give one label for each text, {root.text} of shape [{rows}]{token}", bounds)


def _of_other_length(scene: Scene, target: Operand, logits: Operand, bounds: tuple[Bound, ...]) -> Finding | None:
    """Find labels for each token of texts that are longer or shorter than those that the model was given."""
    for row in reversed(scene.ends):
        for labels, given in itertools.permutations(row.came, 2):
            one, other = labels.shape or (), (given.shape or ())[:2]
            same = len(one) == len(other) == 2 and one[0] == other[0] and one[1] != other[1]
            cuts = (0, 1) if same else ()  # the last logits and the first labels may be cut off
            sizes = [((one[1] - cut) * one[0], (other[1] - cut) * one[0]) for cut in cuts]
            if (target.shape[0], logits.shape[0]) in sizes:
                cause = (
                    f"{row.where} was given {_text(labels)} and {_text(given)}, which disagree in the length dimension"
                )
                fix = f"give a label for each of the {other[1]} tokens, and -100 for those that do not count"
                return Finding("length", cause, fix, (bound_of(labels, 1), bound_of(given, 1), *bounds))
    return None


def changed_rows(scene: Scene, pair: tuple[Operand, Operand], bounds: tuple[Bound, ...]) -> Finding | None:
    """Find a model that returned more or fewer rows than it was given, where the other tensor has as many as given."""
    made, other = pair
    given = [leaf for leaf in scene.history.given if leaf.shape and leaf.shape[0] == other.shape[0]]
    if not given or any((leaf.shape or ())[:1] == made.shape[:1] for leaf in scene.history.given):
        return None
    origin = scene.history.birth(made.shape, 0, True, False)
    before = None if origin is None else _before(scene, origin, other.shape[0])
    if origin is None or before is None:
        return None
    after = origin.leaf.shape or ()
    cause = (
        f"the model was given {other.shape[0]} rows, {_text(given[0])}, but {made} has {made.shape[0]}: {_text(before)}"
    )
    cause += f" became {list(after)} before {origin.row.where}"
    fix = None
    if math.prod(before.shape or ()) == math.prod(after) and len(after) == 2:
        width = math.prod(after) // other.shape[0]
        cause += ", the same elements in other rows"
        fix = f"use flatten(1) or view({other.shape[0]}, -1), not a view that changes the rows: each row is then"
        fix += (
            f" {width} wide, so make {origin.row.where} take {width}; or give inputs of the size that it was made for"
        )
    return Finding("batch", cause, fix, bounds, scene.culprit(origin))


def _before(scene: Scene, origin: Origin, rows: int) -> Leaf | None:
    """Return the last tensor that had so many rows before the number changed."""
    for event in reversed(scene.history.events[: origin.when]):
        for leaf in event.leaves:
            if (leaf.shape or ())[:1] == (rows,) and len(leaf.shape or ()) > 1:
                return leaf
    return None


def _text(leaf: Leaf) -> str:
    return f"{leaf.name} {list(leaf.shape or ())}"


def bound_of(leaf: Leaf, place: int) -> Bound:
    """Return a size of a tensor that the model was given."""
    shape: Shape = leaf.shape or ()
    return Bound(shape[place], leaf.name, shape, place, "", None)
