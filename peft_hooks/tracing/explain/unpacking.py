"""Explain a shape, tuple or tensor that was unpacked into more or fewer names than it has parts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .failure import Finding
from .ghosts import Operand, is_tensor, many, shape_of
from .objects import is_none
from .operands import assigned, text_of
from .scene import Scene
from .tracebacks import Step


class _Unpacking(NamedTuple):
    """What was unpacked, and into what."""

    target: ast.expr
    made: ast.expr
    value: Any

    @property
    def names(self) -> list[ast.expr]:
        """The names on the left; empty if they take any number of parts."""
        names = self.target.elts if isinstance(self.target, (ast.Tuple, ast.List)) else []
        return [] if any(isinstance(one, ast.Starred) for one in names) else names

    @property
    def size(self) -> int | None:
        """The number of parts; None if that is not known."""
        if is_tensor(self.value):
            return next(iter(shape_of(self.value) or ()), None)
        return len(self.value) if isinstance(self.value, (tuple, list)) else None


def unpacked(scene: Scene) -> Finding | None:
    """Find a shape, tuple or tensor that was unpacked into more or fewer names than it has parts."""
    step, place = scene.steps[-1], len(scene.steps) - 1
    statement = step.running[1]
    if not isinstance(scene.error, (ValueError, TypeError)) or not isinstance(statement, ast.Assign) or step.node:
        return None
    whole = _Unpacking(statement.targets[0], statement.value, step.values(statement.value))
    for one in _each(whole):
        operand = scene.names.of_expression(place, one.made)
        if one.value is None:
            return is_none(scene, operand, ast.unparse(statement))
        if one.size is not None and one.size != len(one.names):
            return _of_shape(scene, place, one) or _of_tensor(scene, operand, one) or _of_parts(scene, operand, one)
    return None


def _each(one: _Unpacking) -> Iterator[_Unpacking]:
    """Yield the unpacking, and the unpackings nested in it."""
    if not one.names:
        return
    yield one
    if one.size == len(one.names) and isinstance(one.value, (tuple, list)):
        for number, (name, value) in enumerate(zip(one.names, one.value)):
            yield from _each(_Unpacking(name, ast.Subscript(one.made, ast.Constant(number), ast.Load()), value))


def _of_shape(scene: Scene, place: int, one: _Unpacking) -> Finding | None:
    made = assigned(scene.steps[place], one.made.id) if isinstance(one.made, ast.Name) else one.made
    of_size = made.func if isinstance(made, ast.Call) else made
    if isinstance(of_size, ast.Attribute) and of_size.attr in ("shape", "size"):
        owner = scene.names.of_expression(place, of_size.value)
    else:  # a shape belongs to the one argument of the function that has it
        step, given = scene.steps[place], scene.steps[place].given
        same = [name for name, value in given.items() if shape_of(value) == one.value]
        if not isinstance(one.value, torch.Size) or len(same) != 1:
            return None
        owner = scene.names.outward(place, same[0], step.locals[same[0]])
    origin = scene.origin(owner)
    culprit = None if origin is None else origin.maker
    has, wanted = many(one.size or 0), len(one.names)
    cause = f"{owner} has {has}, but the code unpacks {wanted}{scene.on(culprit)}"
    ones = [at for at, size in enumerate(owner.shape) if size == 1]
    fix = f"give {owner.name} {many(wanted)}"
    if len(owner.shape) == wanted + 1 and ones:
        fix += f", for instance with {owner.name}.squeeze({ones[-1]})"
    return Finding("rank", cause, fix, scene.bounds(owner), culprit)


def _of_tensor(scene: Scene, operand: Operand, one: _Unpacking) -> Finding | None:
    if not is_tensor(one.value):
        return None
    maker, names = scene.maker(operand), ", ".join(map(ast.unparse, one.names))
    made = "" if maker is None else f", which {scene.where(maker)} returned,"
    along = f"it has {one.size} in dimension 0, but the code unpacks {len(one.names)}, `{names}`"
    cause = f"{operand}{made} is one tensor, not a tuple: {along}"
    fix = f"use one name for it instead of `{names}`"
    return Finding("object", cause, fix, scene.bounds(operand), scene.path(maker))


def _of_parts(scene: Scene, operand: Operand, one: _Unpacking) -> Finding:
    maker, wanted, count = scene.maker(operand), len(one.names), one.size or 0
    by = "" if maker is None or operand.base is not None else f", which {scene.where(maker)} returned,"
    shapes = [list(shape_of(part) or ()) for part in one.value if is_tensor(part)]
    sizes = f", {shapes[0]}" + (" each" if count > 1 else "") if shapes and shapes == [shapes[0]] * count else ""
    cause = f"{operand.name}{by} has {many(count, 'part')}{sizes}, but {wanted} are unpacked"
    root = () if operand.base is None else scene.bounds(operand.base)
    source = _entries(scene, operand, count)
    cause += f": {operand.name} has one for each entry of `{source}`" if source else ""
    call = None if source else _asked_for(scene.steps[operand.place], one)
    fix = f"use `{call}`, which has {wanted}" if call else "take the parts by index"
    fix = f"give `{source}` {wanted} entries" if source else fix
    return Finding(
        "object",
        cause,
        f"{fix}, or unpack into {many(count, 'name')}",
        root,
        None if maker is None else scene.path(maker),
    )


def _entries(scene: Scene, operand: Operand, count: int) -> str | None:
    """Return the sequence whose entries an unpacked list has one part for: as the source says, or by its length."""
    step, node = scene.steps[operand.place], operand.node
    made = assigned(step, node.id) if isinstance(node, ast.Name) else node
    plain = isinstance(made, ast.ListComp) and len(made.generators) == 1 and not made.generators[0].ifs
    if plain and isinstance(made, ast.ListComp):
        return text_of(made.generators[0].iter)
    given = scene.calls[-1].given if scene.calls and not operand.root.is_tensor else {}
    same = [name for name, one in given.items() if isinstance(one, (list, tuple)) and len(one) == count]
    return same[0] if len(same) == 1 and isinstance(operand.value, (list, tuple)) else None


def _asked_for(step: Step, one: _Unpacking) -> str | None:
    """Return the call with another number that would return as many parts as there are names, by asking PyTorch."""
    if not isinstance(one.made, ast.Call) or not one.value or not is_tensor(one.value[0]):
        return None
    wanted = len(one.names)
    sizes = {size for part in one.value for size in shape_of(part) or ()}
    totals = {sum((shape_of(part) or ())[at] for part in one.value) for at in range(len(shape_of(one.value[0]) or ()))}
    numbers = [wanted, *sorted(total // wanted for total in totals if total % wanted == 0)]
    given = [number for number, arg in enumerate(one.made.args) if type(step.values(arg)) is int]
    for place in given[:1] if sizes else ():
        for number in numbers:
            args = [*one.made.args[:place], ast.Constant(number), *one.made.args[place + 1 :]]
            call = ast.Call(one.made.func, args, one.made.keywords)
            made = step.values(call)
            if isinstance(made, tuple) and len(made) == wanted:
                return ast.unparse(call)
    return None
