"""Explain a layer's input that lacks its batch dimension, or that was made from inputs of two batch sizes."""

from __future__ import annotations

import itertools
import math

from .failure import Bound, Finding
from .ghosts import Operand
from .labels import bound_of
from .patterns import Mismatch
from .sites import Site


def without_batch(
    site: Site, found: Mismatch, operand: Operand, cause: str, bounds: tuple[Bound, ...]
) -> Finding | None:
    """Find an operand whose elements together make one row, because the batch dimension is missing."""
    shape, wanted = operand.shape, found.wanted[0]
    of_width = found.fixed.dimension is None and found.dimension == len(shape) - 1
    if not of_width or len(shape) < 2 or 1 in shape or math.prod(shape) != wanted:
        return None
    known = [leaf for leaf in site.scene.history.given if leaf.shape]
    if not known or any((leaf.shape or ())[0] == shape[0] for leaf in known):
        return None  # it has the forward's rows
    product = " * ".join(map(str, shape))
    one = f"{known[0].name} {list(known[0].shape or ())}"
    words = f"{product} = {wanted}: all of it is a single row, so the batch dimension is missing"
    return Finding("batch", f"{cause}; {words}", f"call unsqueeze(0) on {one}, which makes it a batch of one", bounds)


def of_two_batches(
    site: Site, found: Mismatch, operand: Operand, cause: str, bounds: tuple[Bound, ...]
) -> Finding | None:
    """Find two model inputs of different batch sizes whose surplus rows ended up in another dimension."""
    wanted = found.wanted[0]
    if found.fixed.dimension is not None:
        return None
    for one, other in itertools.combinations(site.scene.history.given, 2):
        a, b = one.shape or (), other.shape or ()
        rows = sorted([a[0], b[0]]) if len(a) == len(b) > 1 and 0 < a[0] != b[0] > 0 else [0, 0]
        if rows[0] and operand.shape[0] == rows[0] and found.size * rows[0] == wanted * rows[1]:
            words = f"{one.name} {list(a)} and {other.name} {list(b)}, which disagree in the batch dimension"
            ratio = f"{found.size} is {wanted} * {rows[1]} / {rows[0]}"
            given = (bound_of(one, 0), bound_of(other, 0))
            where = site.scene.history.events[0].row.where
            said = f"{where} was given {words}; so {cause}: {ratio}"
            return Finding("batch", said, "give tensors that agree in the batch dimension", (*given, *bounds))
    return None
