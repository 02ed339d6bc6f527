"""Folds layers into one, for text and pages alike: ``layer.1`` to ``layer.5`` did what ``layer.0`` did."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..records import Row


class Folded(NamedTuple):
    """Calls that are shown once.

    Attributes:
        rows: The calls of the first layer, or a single call.
        paths: The paths of the layers that did the same, the first included; empty for a single call.
        last: The last of them.
    """

    rows: tuple[Row, ...]
    paths: tuple[str, ...] = ()

    @property
    def repeats(self) -> str:
        """What is folded away, as text: ``"layer.1 to layer.5 are the same"``; empty if nothing is."""
        if len(self.paths) < 2:
            return ""
        same = self.paths[1:]
        return f"{same[0]} is the same" if len(same) == 1 else f"{same[0]} to {same[-1]} are the same"


def fold(rows: Sequence[Row]) -> list[Folded]:
    """Return the rows with runs of numbered sibling layers that did the same folded into the first."""
    layers = list(_layers(rows))
    found: list[Folded] = []
    at = 0
    while at < len(layers):
        stem, first = layers[at]
        end = at + 1
        while stem and end < len(layers) and layers[end][0] == stem and _same(first, layers[end][1]):
            end += 1
        if end - at > 1:
            found.append(Folded(tuple(first), tuple(_layer_of(layer[0]) for _, layer in layers[at:end])))
        else:
            found += [Folded((row,)) for row in first]
        at = end
    return found


def _layers(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield runs of rows inside one numbered layer with the path that its siblings share; "" for rows in none."""
    run: list[Row] = []
    for row in rows:
        if run and _goes_on(run[0], row):
            run.append(row)
            continue
        if run:
            yield _stem(_layer_of(run[0])), run
        run = [row]
    if run:
        yield _stem(_layer_of(run[0])), run


def _goes_on(first: Row, row: Row) -> bool:
    """Tell whether ``row`` is in the same call of the same layer as ``first``."""
    again = row.path == first.path and row.call != first.call
    return bool(_layer_of(row)) and _layer_of(row) == _layer_of(first) and row.forward == first.forward and not again


_LAYER = re.compile(r"^(.*?[^.\d][^.]*\.\d+)(?:\.|$)")


def _layer_of(row: Row) -> str:
    """Return the path of the outermost numbered layer: ``"0.model.encoder.layer.3"``. A pipeline's stages are none."""
    match = _LAYER.match(row.path)
    return match[1] if match else ""


def _stem(layer: str) -> str:
    return layer.rpartition(".")[0]


def _same(one: Sequence[Row], other: Sequence[Row]) -> bool:
    return len(one) == len(other) and [_deed(row) for row in one] == [_deed(row) for row in other]


def _deed(row: Row) -> tuple[object, ...]:
    layer = _layer_of(row)
    return row.path[len(layer) :], row.module, row.state, row.forward, row.thread, row.came, row.went
