"""Find the module that a wrong size came out of: a layer that broke its promise, or the last module to change the size.

The class and the sizes of a PyTorch layer determine what it returns. If it returned something else before the forward
failed, a hook changed the output, or the layer's forward was replaced.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._format import dtype_of
from ..leaves import Leaf, identity_of, tensors_of
from ..records import Row
from .failure import Bound, Finding
from .ghosts import Ghost, Operand, Shape, first, is_tensor, kind_of_dimension, what_changed
from .layers import output_of
from .operands import assigned
from .origins import Origin
from .scene import Owned, Scene, is_autocast


def due(module: nn.Module, given: Leaf) -> Ghost | None:
    """Return what a PyTorch layer must return for a tensor, or None if its class does not determine that."""
    if given.dtype is None:
        return None
    return output_of(module, Ghost(given.shape or (), given.dtype, given.device or torch.device("cpu")))


def kind_of(operand: Operand, place: int) -> str:
    """Name a dimension of an operand."""
    return kind_of_dimension(place, len(operand.shape), operand.is_float and not operand.text.endswith("mask"))


def changed(scene: Scene, birth: Origin, operand: Operand) -> str:
    """Say how a call changed one size of its input; empty if it did not."""
    module = scene.modules.get(birth.row.path)
    if not birth.made or module is None:
        return ""
    made = birth.leaf.shape or ()
    for other in birth.row.came:
        change = what_changed(other.shape or (), made, operand.is_float) if other.dtype == operand.dtype else None
        if change is not None and change[0] == "width" and any(one.dim() > 1 for one in module.parameters()):
            continue  # changing the width is what such a module is for
        must = due(module, other)
        if change is not None and change[0] != "rank" and (must is None or must.shape != made):
            return f"{birth.row.where} turned {other.name} {list(other.shape or ())} into {list(made)}: {change[1]}"
    return ""


def broken_promise(scene: Scene) -> Finding | None:
    """Find the first call in this forward whose output is not what its layer's class promises."""
    return first(_promise(scene, event.row) for event in scene.history.events if event.side == "out")


def _promise(scene: Scene, row: Row) -> Finding | None:
    module = scene.modules.get(row.path)
    tensors = tensors_of((*row.inputs, *row.outputs))
    if module is None or row.state != "done" or [len(row.inputs), len(row.outputs), len(tensors)] != [1, 1, 2]:
        return None
    came, went = tensors
    made = due(module, came)
    if made is None:
        return None
    own = next(iter(module.parameters(recurse=False)), None)
    device = came.device if own is None else own.device
    types = [None if one is None else one.type for one in (came.device, device, went.device)]
    if None not in types and types[0] == types[1] != types[2]:
        return _finding(scene, row, "device", f"is on {went.device}, but should be on {device}")
    if went.dtype is not None and went.dtype != made.dtype and not is_autocast():
        return _finding(scene, row, "dtype", f"is {dtype_of(went.dtype)}, but should be {dtype_of(made.dtype)}")
    if went.shape == made.shape:
        return None
    kind, words = what_changed(made.shape, went.shape or ()) or ("rank", "another shape")
    what = f"is {list(went.shape or ())}, but should be {list(made.shape)}: {words}"
    return _finding(scene, row, kind, what, _difference(row, went.shape or (), made.shape))


def _finding(scene: Scene, row: Row, kind: str, what: str, bounds: tuple[Bound, ...] = ()) -> Finding:
    cause = f"the output of {row.where} {what}{scene.on(row.path)}"
    return Finding(kind, cause, f"look at what {row.where} returns", bounds, row.path)


def _difference(row: Row, shape: Shape, wanted: Shape) -> tuple[Bound, ...]:
    """Return the first size that is wrong, and the size that it should be."""
    for place, (size, other) in enumerate(zip(shape, wanted)):
        if size != other:
            given = Bound(size, f"the output of {row.where}", shape, place, "", row.path)
            return given, Bound(other, "the expected output", wanted, place, "", None)
    return ()


class Blame(NamedTuple):
    """Which module a wrong size first came out of, and what it did."""

    words: str = ""
    path: str | None = None
    where: str = ""
    kind: str = ""


def blame(scene: Scene, sides: Sequence[tuple[Operand, int]], pair: Sequence[int]) -> Blame:
    """Find what happened to the side that is wrong: its size is not expected, or was seen later than the other."""
    if scene.row is None:
        return Blame()
    turned = scene.history.turned()
    if turned is not None and set(pair) == set(scene.history.batch_and_length):
        words = f"{turned.row.where} returned {list(turned.leaf.shape or ())}: batch and length are transposed"
        return Blame(words, turned.row.path, turned.row.where, "transposed")
    known = _by_trail(scene, sides, pair) or _by_change(scene, sides)
    if known is not None:
        return known
    births = [(birth, *side) for side in sides if (birth := scene.birth(*side)) is not None]
    if not births:
        return Blame()
    birth, operand, place = max(births, key=lambda one: (not _is_due(scene, one[1], one[2]), one[0].when))
    return _of_origin(scene, birth, operand, place, scene.culprit(birth))


def _of_origin(scene: Scene, origin: Origin, operand: Operand, place: int, path: str | None) -> Blame:
    return Blame(changed(scene, origin, operand), path, origin.row.where, kind_of(operand, place))


def is_odd(scene: Scene, found: Blame) -> bool:
    """Tell whether a module's output is suspect: it returned, and is not a PyTorch layer without hooks."""
    ended = scene.row is None or found.path != scene.row.path
    return bool(found.words and ended and (scene.on(found.path) or not scene.is_torch(found.path)))


def _by_trail(scene: Scene, sides: Sequence[tuple[Operand, int]], pair: Sequence[int]) -> Blame | None:
    for number, (operand, place) in enumerate(sides):
        wanted = next((size for size in pair if size != operand.shape[place]), None)
        source = None if wanted is None else trail(scene, operand, place, wanted)
        if source is not None and not (number == 0 and len(sides) > 1 and _is_due(scene, operand, place)):
            return _of_origin(scene, source, operand, place, source.row.path)
    return None


def _by_change(scene: Scene, sides: Sequence[tuple[Operand, int]]) -> Blame | None:
    for operand, place in sides:
        seen = scene.origin(operand) or scene.birth(operand, place) or owner_of(scene, operand, operand.shape[place])
        if seen is None:
            made = None if _is_new(scene, operand) else _made_inside(scene, operand, place)
            if made is not None:
                return made
    return None


def owner_of(scene: Scene, operand: Operand, size: int) -> Owned | None:
    """Return the parameter or buffer that an operand is, or that it got a size from."""
    root = operand.root
    owner = scene.owner(operand) or scene.owner(root)
    step = scene.steps[root.place]
    made = assigned(step, root.node.id) if owner is None and isinstance(root.node, ast.Name) else None
    for node in () if made is None else ast.walk(made):
        value = step.values(node) if isinstance(node, (ast.Name, ast.Attribute)) else root.value
        other = None if value is root.value else scene.owner(Operand("", value))
        if other is not None and size in other.tensor.shape:
            return other
    return owner


def _is_new(scene: Scene, operand: Operand) -> bool:
    """Tell whether the source creates a tensor from no other tensor, as ``torch.zeros(2, 5)`` does."""
    step, node = scene.steps[operand.root.place], operand.root.node
    made = assigned(step, node.id) if isinstance(node, ast.Name) else node
    if not isinstance(made, ast.Call):
        return False
    return not any(is_tensor(step.values(one)) for one in ast.walk(made) if one is not made)


def trail(scene: Scene, operand: Operand, place: int, wanted: int) -> Origin | None:
    """Follow tensors back from call to call, to the call that turned another size into this one.

    Args:
        scene: What is known.
        operand: The tensor with the size.
        place: In which dimension.
        wanted: The size that it had, or should have had, before.
    """
    size = operand.shape[place]
    origin = scene.origin(operand)
    if origin is None or not origin.made:
        origin = scene.made(operand, size)
    while origin is not None and origin.made:
        shape = origin.leaf.shape or ()
        at = place if len(shape) == len(operand.shape) else [*shape, size].index(size)
        if shape[at : at + 1] != (size,):
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
    """Find an input that the failing code itself turned into a tensor of a size that the trace never saw."""
    assert scene.row is not None
    for leaf in scene.row.came:
        shape = leaf.shape or ()
        others = shape[:place] + shape[place + 1 :] == operand.shape[:place] + operand.shape[place + 1 :]
        if len(shape) == len(operand.shape) and others and shape != operand.shape and _may_be_of(scene, operand, leaf):
            words = f"{scene.row.where} was given {leaf.name} {list(shape)} and turned it into {list(operand.shape)}"
            return Blame(words, scene.row.path, scene.row.where, kind_of(operand, place))
    return None


def _may_be_of(scene: Scene, operand: Operand, leaf: Leaf, left: int = 6) -> bool:
    """Tell whether an operand may be made from an input: not if, by the source, only outputs of modules are in it."""
    made = scene.names.made_of(operand) if left else []
    if not made or (isinstance(operand.root.value, Tensor) and identity_of(operand.root.value) == leaf.identity):
        return True
    named = [one for one in made if scene.maker(one) is None]
    return any(_may_be_of(scene, one, leaf, left - 1) for one in named)


def _is_due(scene: Scene, operand: Operand, place: int) -> bool:
    """Tell whether a size is expected: the length of the texts, or the width of the layer that returned the tensor."""
    if kind_of(operand, place) == "length" and scene.history.batch_and_length[1:] == (operand.shape[place],):
        return True
    origin = scene.origin(operand)
    module = None if origin is None or not origin.made else scene.modules.get(origin.row.path)
    weight = getattr(module, "weight", None)
    last = place == len(operand.shape) - 1
    return last and weight is not None and operand.shape[-1] in tuple(weight.shape)[:1]
