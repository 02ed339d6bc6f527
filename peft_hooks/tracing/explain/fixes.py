"""Say how to fix two sizes that do not match; only what was tried on the actual shapes is proposed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from .ghosts import Ghost, Operand
from .meta import method, worked_out
from .operations import parts
from .scene import Scene
from .sites import expressions
from .unlike import RULE, Clash


def fix_of(clash: Clash, of_images: bool = False) -> str | None:
    """Say how to fix two sizes that do not match.

    Args:
        clash: The sizes.
        of_images: Whether the operand with more dimensions has its channels first.
    """
    if clash.right is None:
        return f"give {clash.left.name} a size of {clash.other} in dimension {clash.place}"
    left, right = clash.left, clash.right
    known = turned(clash)
    if known is None and clash.rule == RULE:
        known = inserted((left, right), of_images) or inserted((right, left), of_images)
    sizes = f"{left.shape[clash.place]} or {right.shape[clash.other]}"
    return known or f"give {left.name} and {right.name} the same size there, {sizes}"


def turned(clash: Clash) -> str | None:
    """Say which matrix to transpose so that two can be multiplied; None if that does not help."""
    left, right = clash.left, clash.right
    if right is None or not clash.rule.endswith("multiplied"):
        return None
    before = right.base
    for one in (right, before):
        last = 0 if one is None else len(one.shape) - 1
        if one is None or last < 1:
            continue
        turned = method(one.value, "transpose", (last - 1, last), {})
        if worked_out(torch.matmul, [left.value, turned]) is not None:
            instead = "" if one is right else f" instead of {right.name}"
            square = left.shape[-2:-1] == left.shape[-1:]  # such as an adjacency matrix: rows may be missing, too
            rows = f"; or give {right.name} {left.shape[-1]} rows, as {left.name} is square" if square else ""
            return f"use {one.name}.transpose({last - 1}, {last}){instead}: then they can be multiplied{rows}"
    return None


def inserted(pair: tuple[Operand, Operand], of_images: bool = False) -> str | None:
    """Say where to insert dimensions of size 1 into a tensor so that its own line up with the other's.

    If there are several ways, the batch stays in front. The rest goes as far back as possible, because what a mask has
    for each text is the length that is attended to; for images, as far forward, to the channels.
    """
    one, other = pair
    rank, more = len(one.shape), len(other.shape)
    if not 0 < rank < more or all(size == 1 for size in one.shape):
        return None
    places = itertools.combinations(range(more), rank)
    fitting = [at for at in places if all(size in (1, other.shape[to]) for size, to in zip(one.shape, at))]
    first = [at for at in fitting if at[0] == 0] or ([] if rank > 1 else fitting)
    if not first:
        return None
    kept = set(min(first) if of_images else max(first))
    if kept == {*range(rank)} and more == rank + 1:
        return f"use {one.name}.unsqueeze(-1): then they match"
    parts = [":" if place in kept else "None" for place in range(min(kept), more)]
    return f"use {one.name}[{', '.join(parts)}]: then they match"


def joined(scene: Scene, clash: Clash) -> str | None:
    """Say which of the joined tensors has one dimension too many or too few, by trying each on PyTorch."""
    expression = next((one for one in expressions(scene) if one.name in ("cat", "concat")), None)
    values = [] if expression is None else [one.value for one in parts(expression)]
    dim = None if expression is None else expression.value("dim")
    for one in [one for one in (clash.left, clash.right) if one is not None and isinstance(dim, int)]:
        for call, other in of_other_rank(one, 1):
            tried = [other if value is one.value else value for value in values]
            if worked_out(torch.cat, [tried, dim]) is not None:
                return f"use {call}: then they can be joined"
    return None


def of_other_rank(one: Operand, start: int = 0) -> Iterator[tuple[str, Ghost]]:
    """Yield the calls that take one dimension from an operand or insert one, with what they return.

    Args:
        one: The operand.
        start: The first place at which a dimension is inserted.
    """
    less = [("squeeze", place) for place, size in enumerate(one.shape) if size == 1]
    more = [("unsqueeze", place) for place in range(start, len(one.shape) + 1)]
    for call, place in less + more:
        other = method(one.value, call, (place,), {})
        if isinstance(other, Ghost):
            yield f"{one.name}.{call}({place})", other
