"""Which module a wrong size first came out of, as the trace tells."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .ghosts import Ghost, Shape
from .operands import Operand
from .origins import Origin
from .promises import due, kind_of_dimension, what_changed
from .scene import Scene


class Blame(NamedTuple):
    """Which module a wrong size first came out of, and what it did."""

    words: str = ""
    path: str | None = None
    where: str = ""
    kind: str = ""


def blame(scene: Scene, sides: Sequence[tuple[Operand, int]], pair: Sequence[int]) -> Blame:
    """Find what happened to the side whose size was seen later, and that nothing asks for."""
    if scene.row is None:
        return Blame()
    turned = scene.history.turned()
    if turned is not None and set(pair) == set(scene.history.batch_and_length):
        words = f"{turned.row.where} returned {list(turned.leaf.shape or ())}: batch and length are transposed"
        return Blame(words, turned.row.path, turned.row.where, "transposed")
    known = _by_trail(scene, sides, pair) or _by_change(scene, sides)
    if known is not None:
        return known
    seen = []
    for operand, place in sides:
        birth = scene.birth(operand, place)
        if birth is not None:
            seen.append(((not _is_due(scene, operand, place), birth.when), birth, operand, place))
    if not seen:
        return Blame()
    _, birth, operand, place = max(seen, key=lambda one: one[0])
    path = birth.culprit(scene.history.rows, bool(scene.on(birth.row.path)))
    kind = kind_of(operand, place)
    return Blame(changed(scene, birth, operand), path, birth.row.where, kind)


def is_odd(scene: Scene, found: Blame) -> bool:
    """Tell whether what a module returned is to be looked at: it returned, and is no layer that does as it should."""
    ended = scene.row is None or found.path != scene.row.path
    return bool(found.words and ended and (scene.on(found.path) or not scene.is_torch(found.path)))


def _by_trail(scene: Scene, sides: Sequence[tuple[Operand, int]], pair: Sequence[int]) -> Blame | None:
    for number, (operand, place) in enumerate(sides):
        wanted = next((size for size in pair if size != operand.shape[place]), None)
        source = None if wanted is None else trail(scene, operand, place, wanted)
        if source is not None and not (number == 0 and len(sides) > 1 and _is_due(scene, operand, place)):
            words = changed(scene, source, operand)
            return Blame(words, source.row.path, source.row.where, kind_of(operand, place))
    return None


def _by_change(scene: Scene, sides: Sequence[tuple[Operand, int]]) -> Blame | None:
    for operand, place in sides:
        seen = scene.origin(operand) or scene.birth(operand, place) or scene.owner_of(operand, operand.shape[place])
        if seen is None:
            made = None if _is_new(scene, operand) else _made_inside(scene, operand, place)
            if made is not None:
                return made
    return None


def _is_new(scene: Scene, operand: Operand) -> bool:
    """Tell whether the source makes a tensor of no other, as ``torch.zeros(2, 5)`` does."""
    step, node = scene.steps[operand.root.place], operand.root.node
    made = step.assigned(node.id) if isinstance(node, ast.Name) else node
    if not isinstance(made, ast.Call):
        return False
    return not any(isinstance(step.values(one), (Tensor, Ghost)) for one in ast.walk(made) if one is not made)


def trail(scene: Scene, operand: Operand, place: int, wanted: int) -> Origin | None:
    """Go back from call to call, by the tensors themselves, to the one that made a size of another.

    Args:
        scene: What is known.
        operand: The tensor with the size.
        place: In which dimension.
        wanted: The size that it was, or should have been, before.
    """
    size = operand.shape[place]
    origin = scene.origin(operand)
    if origin is None or not origin.made:
        origin = scene.made(operand, size)
    while origin is not None and origin.made:
        shape = origin.leaf.shape or ()
        at = (
            place if len(shape) == len(operand.shape) else next((n for n, one in enumerate(shape) if one == size), None)
        )
        if at is None or shape[at] != size:
            return None
        given = [leaf for leaf in origin.row.came if len(leaf.shape or ()) == len(shape)]
        same = [leaf for leaf in given if (leaf.shape or ())[at] == size]
        if not same:
            return origin if any((leaf.shape or ())[at] == wanted for leaf in given) else None
        before = scene.history.origin(same[0])
        if before is None or before.when >= origin.when:
            return None
        origin = before
    return None


def _made_inside(scene: Scene, operand: Operand, place: int) -> Blame | None:
    """Find that a tensor has a size that the trace never saw: the code that failed made it of what it was given."""
    assert scene.row is not None
    for leaf in scene.row.came:
        shape = leaf.shape or ()
        others = shape[:place] + shape[place + 1 :] == operand.shape[:place] + operand.shape[place + 1 :]
        if len(shape) == len(operand.shape) and others and shape != operand.shape:
            words = f"{scene.row.where} was given {leaf.name} {list(shape)} and made it {list(operand.shape)}"
            return Blame(words, scene.row.path, scene.row.where, kind_of(operand, place))
    return None


def kind_of(operand: Operand, place: int) -> str:
    """Name a dimension of an operand."""
    real = operand.dtype is not None and operand.dtype.is_floating_point and not operand.text.endswith("mask")
    return kind_of_dimension(place, len(operand.shape), real)


def changed(scene: Scene, birth: Origin, operand: Operand) -> str:
    """Say what a call made of what it was given, if one size of it changed there."""
    module = scene.modules.get(birth.row.path)
    if not birth.made or module is None:
        return ""
    made: Shape = birth.leaf.shape or ()
    wide = operand.dtype is not None and operand.dtype.is_floating_point
    for other in birth.row.came:
        change = what_changed(other.shape or (), made, wide) if other.dtype == operand.dtype else None
        if change is not None and change[0] == "width" and any(one.dim() > 1 for one in module.parameters()):
            continue  # another width is what such a module is for
        if change is not None and change[0] != "rank" and due(module, other.shape or ()) != made:
            return f"{birth.row.where} turned {other.name} {list(other.shape or ())} into {list(made)}: {change[1]}"
    return ""


def _is_due(scene: Scene, operand: Operand, place: int) -> bool:
    """Tell whether a size is right: the length of the texts, or the width of the layer that the tensor came out of."""
    length = kind_of(operand, place) == "length"
    if length and scene.history.batch_and_length[1:] == (operand.shape[place],):
        return True
    origin = scene.origin(operand)
    module = None if origin is None or not origin.made else scene.modules.get(origin.row.path)
    weight = getattr(module, "weight", None)
    last = place == len(operand.shape) - 1
    return last and weight is not None and operand.shape[-1] in tuple(weight.shape)[:1]
