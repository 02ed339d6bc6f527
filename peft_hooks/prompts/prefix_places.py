"""Find the modules of a backbone that project keys and values, by forwards of a few tokens instead of by name.

Every leaf module that returns a row per token is watched. In one forward the first rows of each are detached from what
they were computed from, so that a gradient tells which of them the other rows read directly: those are keys and values.
(A query is read only by its own row, and all other rows are read through keys and values.) Attention returns means of
the values, which tells values from keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import probes
from .prefix_record import Piece, Places, Projection
from .prefix_watched import FRONT, Key, UnknownPlacesError, Watched

# How far keys and values are moved, in standard deviations, and how close to that a movement must be to count as equal.
_FAR, _NEAR = 10.0, 0.1


def find_places(backbone: Any, layers: int) -> Places:
    """Return where the attention of ``backbone`` takes keys and values.

    Args:
        backbone: The transformers model, without hooks, or with hooks that do nothing at the moment.
        layers: How many layers have keys and values, according to the adapter.

    Raises:
        UnknownPlacesError: If the places cannot be found.
    """
    body = probes.body_of(backbone)
    with probes.at_rest(backbone), torch.inference_mode(False):
        watched = Watched(body)
        channels = watched.channels()
        pairs = _by_layer(channels, layers)
        halves = _keys_first(watched, pairs)
    return _named(backbone, watched, halves)


class _Part(NamedTuple):
    """Columns in the output of one call of a module: a layer's keys, or its values."""

    key: Key
    columns: tuple[int, ...]


def _by_layer(channels: list[tuple[Key, Tensor]], layers: int) -> list[tuple[_Part, _Part]]:
    """Return two parts for each layer: one is its keys, the other its values."""
    found = len(channels)
    if found == 2 * layers:
        whole = [_Part(key, tuple(range(len(columns)))) for key, columns in channels]
        return list(zip(whole[::2], whole[1::2], strict=True))
    if found == layers:
        return _fused(channels)
    raise UnknownPlacesError(
        f"rows of a text are read by other rows in {found} places, but {layers} layers with keys and values should "
        f"have {layers} or {2 * layers}"
    )


def _fused(channels: list[tuple[Key, Tensor]]) -> list[tuple[_Part, _Part]]:
    """Return both parts of modules that project keys and values together: the halves of each run of columns read."""
    widths = {len(columns) for _, columns in channels}
    if len(widths) != 1:
        raise UnknownPlacesError("its layers project keys and values in different widths")
    read = torch.stack([columns for _, columns in channels]).any(0).tolist()
    first: list[int] = []
    second: list[int] = []
    start = 0
    for stop in range(1, len(read) + 1):
        if stop < len(read) and read[stop] == read[start]:
            continue
        half, odd = divmod(stop - start, 2)
        if read[start]:
            if odd:
                raise UnknownPlacesError("keys and values of a layer differ in size")
            first += range(start, start + half)
            second += range(start + half, stop)
        start = stop
    return [(_Part(key, tuple(first)), _Part(key, tuple(second))) for key, _ in channels]


def _keys_first(watched: Watched, pairs: list[tuple[_Part, _Part]]) -> list[tuple[_Part, _Part]]:
    """Return the parts of each layer as keys and values, in this order."""
    still = watched.inputs({})
    _need_last(watched, pairs, still)
    values = [_are_values(watched, pairs, half, still) for half in (0, 1)]
    if any(first == second for first, second in zip(*values, strict=True)):
        raise UnknownPlacesError("it cannot be told which of two projections are the values")
    return [(pair[1], pair[0]) if first else pair for pair, first in zip(pairs, values[0], strict=True)]


def _need_last(watched: Watched, pairs: list[tuple[_Part, _Part]], still: dict[Key, Tensor]) -> None:
    """Raise if further modules take the supposed keys and values, so that the real projections return no rows."""
    moved: dict[Key, Tensor] = {}
    for part in (part for pair in pairs for part in pair):  # one call has two parts if a module projects both
        moved[part.key] = _drawn(watched, part, FRONT) + moved.get(part.key, 0)
    for key, rows in watched.inputs(moved).items():
        away = (rows - still[key]).norm(dim=(0, 2))
        if away[:FRONT].any() and not away[FRONT:].any():
            raise UnknownPlacesError(
                "its attention takes keys or values that have no row for each token of a text (as when it runs without "
                "padding), so there are no rows to overwrite"
            )


def _are_values(watched: Watched, pairs: list[tuple[_Part, _Part]], half: int, still: dict[Key, Tensor]) -> list[bool]:
    """Tell for each layer whether the given half is its values.

    Attention returns means of values: if all values move by the same amount, so do the means.
    """
    moved = {pair[half].key: _drawn(watched, pair[half], 1) for pair in pairs}
    inputs, places = watched.inputs(moved), {key: place for place, key in enumerate(watched.order)}
    found = []
    for number, pair in enumerate(pairs):
        start = max(places[part.key] for part in pair) + 1
        following = pairs[number + 1] if number + 1 < len(pairs) else ()
        stop = min((places[part.key] for part in following), default=len(places) - 1)
        steps = (inputs[key] - still[key] for key in watched.order[start : stop + 1] if key in inputs)
        step = next((one[0, FRONT:] for one in steps if one[:, FRONT:].any()), None)
        by = moved[pair[half].key][0, list(pair[half].columns)]
        found.append(step is not None and _is(step, by))
    return found


def _is(step: Tensor, by: Tensor) -> bool:
    """Tell whether each row moved by ``by``, which grouped-query attention repeats for the heads that share it."""
    groups, rest = divmod(step.size(1), len(by))
    if rest or not groups:
        return False
    columns = torch.arange(len(by), device=by.device)
    for size in {len(by) // heads for heads in range(1, len(by) + 1) if len(by) % heads == 0}:
        wanted = by[columns.view(-1, size).repeat_interleave(groups, 0).flatten()].double()
        if bool((step - wanted).norm() <= _NEAR * wanted.norm() * len(step) ** 0.5):
            return True
    return False


def _drawn(watched: Watched, part: _Part, rows: int) -> Tensor:
    """Return how far to move the columns of a part, ``[rows, width]``: far enough to make rounding irrelevant."""
    given = watched.given[part.key]
    noise = torch.zeros(rows, given.size(-1))
    noise[:, part.columns] = torch.randn(rows, len(part.columns), generator=torch.Generator().manual_seed(1))
    return noise.to(given.device) * (_FAR * float(given.double().std()))


class _Call(NamedTuple):
    """What one call of a projection returns."""

    layer: int
    pieces: tuple[Piece, ...]


def _named(backbone: nn.Module, watched: Watched, halves: list[tuple[_Part, _Part]]) -> Places:
    """Return the places of keys and values as paths of modules."""
    paths = {module: path for path, module in backbone.named_modules()}
    calls: dict[nn.Module, dict[int, _Call]] = {}
    for layer, pair in enumerate(halves):
        for module, number in dict.fromkeys(part.key for part in pair):
            columns = {name: part.columns for name, part in zip(_NAMES, pair) if part.key == (module, number)}
            width = watched.given[module, number].size(-1)
            calls.setdefault(module, {})[number] = _Call(layer, _pieces(columns, width))
    found = tuple(_projection(paths[module], numbers) for module, numbers in calls.items())
    widths = {len(part.columns) for pair in halves for part in pair}
    if len(widths) != 1:
        raise UnknownPlacesError("keys and values do not have the same width in all layers")
    body = paths[watched.body]
    return Places(len(halves), widths.pop(), found, body, watched.around(found, body))


_NAMES = ("keys", "values")


def _projection(path: str, numbers: dict[int, _Call]) -> Projection:
    kinds = {call.pieces for call in numbers.values()}
    if len(kinds) != 1:
        raise UnknownPlacesError("one module projects keys in one call and values in another")
    layers = tuple(numbers[number].layer if number in numbers else None for number in range(max(numbers) + 1))
    return Projection(path, layers, kinds.pop())


def _pieces(columns: dict[str, tuple[int, ...]], width: int) -> tuple[Piece, ...]:
    """Return the contents of ``width`` columns as runs, each from one source."""
    source: dict[int, tuple[str, int]] = {}
    for name, own in columns.items():
        source.update((column, (name, place)) for place, column in enumerate(own))
    pieces: list[Piece] = []
    for column in range(width):
        name, place = source.get(column, ("own", column))
        if pieces and pieces[-1][0] == name and pieces[-1][2] == place:
            pieces[-1] = name, pieces[-1][1], place + 1
        else:
            pieces.append((name, place, place + 1))
    return tuple(pieces)
