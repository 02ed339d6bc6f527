"""Explain a loss whose tensors must have the same shape: work out from their shapes what was meant."""

from __future__ import annotations

import math

from .failure import Bound, Finding
from .ghosts import Operand
from .labels import changed_rows
from .scene import Scene
from .unlike import Clash


def of_loss(scene: Scene, clash: Clash, name: str) -> Finding | None:
    """Find out what was meant with two shapes; None if they do not tell."""
    left, right = clash.left, clash.right
    if right is None or clash.kind not in ("sizes", "equal"):
        return None
    sizes = clash.kind == "sizes"
    bounds = scene.bounds(left) + scene.bounds(right)
    if sizes:
        bounds = (scene.bound(left, clash.place), scene.bound(right, clash.other))
    both = f"{name}() takes {left} and {right}, which must have the same shape"
    unlike_ones = [size for size in left.shape if size != 1] != [size for size in right.shape if size != 1]
    if unlike_ones and math.prod(left.shape) == math.prod(right.shape):
        fix = f"use {right.name}.reshape({left.text}.shape)"
        return Finding("rank", f"{both}: they have the same number of elements, {math.prod(left.shape)}", fix, bounds)
    if sizes and left.shape[:-1] == right.shape and left.shape[-1] > 1:
        width = left.shape[-1]
        cause = f"{both}: {right.name} has one number for each of {left.shape[0]} rows, but {left.name} has {width}"
        call = f"cross_entropy({left.text}, {right.text}.long())"
        fix = f"use {call} if these are the numbers of {width} classes; or"
        return Finding("width", cause, f"{fix} make the last layer 1 wide instead of {width}, and squeeze(-1)", bounds)
    if sizes and clash.place == clash.other == 0:
        rows = changed_rows(scene, (left, right), bounds) or changed_rows(scene, (right, left), bounds)
        return rows or _of_batch(scene, (left, right), both, bounds) or _of_batch(scene, (right, left), both, bounds)
    return None


def _of_batch(scene: Scene, pair: tuple[Operand, Operand], both: str, bounds: tuple[Bound, ...]) -> Finding | None:
    """Find a tensor that has as many rows as the model was given, where the other is not the model's and does not."""
    one, other = pair
    batch = scene.history.batch_and_length[:1]
    if one.shape[:1] != batch or scene.origin(one) is None or scene.origin(other) or scene.maker(other):
        return None
    cause = (
        f"{both}: {one.name} has {batch[0]} rows, as many as the model was given, but {other.name} has {other.shape[0]}"
    )
    return Finding(
        "batch", cause, f"create {other.name} with {batch[0]} rows, for instance with {one.name}.size(0)", bounds
    )
