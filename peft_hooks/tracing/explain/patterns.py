"""Reads ``table.py``: whether arguments are as a layer takes them, and if not, which dimension of which is not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .ghosts import Shape
from .table import MEANINGS, Takes

Number = Callable[[str], Any]


@dataclass(frozen=True)
class Fixed:
    """Who says what a size must be: an attribute of the layer, or a dimension of another argument."""

    name: str
    dimension: int | None = None


@dataclass(frozen=True)
class Mismatch:
    """One argument that is not as the layer takes it.

    Attributes:
        parameter: Which argument.
        dimension: Which of its dimensions; None if it has too many or too few.
        size: The size that it has.
        wanted: The size that it must have; the numbers of dimensions that it may have if ``dimension`` is None.
        fixed: Who says so.
        word: The dimension, in the words of the table.
        pattern: What the argument should be like.
    """

    parameter: str
    dimension: int | None
    size: int
    wanted: tuple[int, ...]
    fixed: Fixed
    word: str
    pattern: str

    @property
    def meaning(self) -> str:
        """What the dimension is, ``"batch"``, or nothing."""
        return MEANINGS.get(self.word.strip("~").partition("*")[0], "")


@dataclass
class _Known:
    """What letters stand for so far."""

    number: Number
    letters: dict[str, tuple[int, Fixed]] = field(default_factory=dict)

    def wanted(self, word: str) -> tuple[int, Fixed] | None:
        """Return the size that a word asks for, and who says so; None if any will do."""
        sizes, by, parts = [], None, word.split("*")
        for part in parts:
            if part in self.letters:
                size, fixed = self.letters[part]
                by = by if by is not None and by.dimension is None else fixed
            else:
                size = self.number(part)
                if not isinstance(size, int) or isinstance(size, bool):
                    return None
                by = Fixed(part)
            sizes.append(size)
        if by is not None and by.dimension is None and len(parts) > 1:
            named = [f"the {MEANINGS[part]}" if part in MEANINGS else part.rpartition(".")[2] for part in parts]
            by = Fixed(" * ".join(f"{name} {size}" for name, size in zip(named, sizes)))
        return None if by is None else (math.prod(sizes), by)


def is_letter(word: str) -> bool:
    """Tell whether a word stands for any size."""
    return word[:1].isupper() or word.endswith("_")


def check(
    takes: Takes, shapes: Mapping[str, Shape], number: Number, batch_first: bool | None = None
) -> Mismatch | None:
    """Return the first argument that is not as the layer takes it.

    Args:
        takes: What the layer takes.
        shapes: The shapes of the arguments that are tensors.
        number: Returns an attribute of the layer, or an argument that is a number.
        batch_first: Whether the batch comes first; what the layer says by default.
    """
    first = bool(takes.batch_first and number(takes.batch_first)) if batch_first is None else batch_first
    known = _Known(number)
    for parameter, pattern in takes.patterns.items():
        shape = shapes.get(parameter)
        if shape is not None:
            found = _check_one(parameter, _alternatives(pattern, first, number), shape, known)
            if found is not None:
                return found
    return _check_fronts(takes, shapes)


def _check_fronts(takes: Takes, shapes: Mapping[str, Shape]) -> Mismatch | None:
    """Compare what stands for ``...`` in front of several arguments: it is broadcast."""
    fronts = [
        (name, shapes[name][: len(shapes[name]) - len(pattern.split()) + 1])
        for name, pattern in takes.patterns.items()
        if name in shapes and pattern.startswith("... ") and "|" not in pattern and "*" not in pattern
    ]
    for number, (name, front) in enumerate(fronts):
        for other, before in fronts[:number]:
            for place in range(1, min(len(front), len(before)) + 1):
                a, b = front[-place], before[-place]
                if a != b and 1 not in (a, b):
                    fixed = Fixed(other, len(before) - place)
                    return Mismatch(name, len(front) - place, a, (b,), fixed, "", takes.patterns[name])
    return None


def _alternatives(pattern: str, batch_first: bool, number: Number) -> list[list[str]]:
    """Return the words of every alternative, in the order that the layer has them."""
    turned = re.sub(r"\((\w+) (\w+)\)", r"\2 \1" if batch_first else r"\1 \2", pattern)
    found = []
    for alternative in turned.split("|"):
        words: list[str] = []
        for word in alternative.split():
            sizes = number(word[1:]) if word.startswith("*") else None
            words += [word] if sizes is None else [str(size) for size in sizes]
        found.append(words)
    return found


def _check_one(parameter: str, alternatives: list[list[str]], shape: Shape, known: _Known) -> Mismatch | None:
    fitting = [words for words in alternatives if _rank_fits(words, len(shape))]
    if not fitting:
        wanted = tuple(sorted({len(words) - ("..." in words) for words in alternatives}))
        return Mismatch(parameter, None, len(shape), wanted, Fixed(""), "", _readable(alternatives[0]))
    words = fitting[0]
    if words[:1] == ["..."] and len(words) > 1:
        places = [(place - len(words), word) for place, word in enumerate(words) if word != "..."]
    else:
        places = [(place, word) for place, word in enumerate(words) if word != "..."]
    for place, word in sorted(places, key=lambda one: is_letter(one[1])):
        size, loose, name = shape[place], word.startswith("~"), word.strip("~")
        asked = (int(name), Fixed("normalized_shape")) if name.isdigit() else known.wanted(name)
        if asked is None:
            if is_letter(name) and "*" not in name and not loose:
                known.letters[name] = (size, Fixed(parameter, place % len(shape)))
        elif size != asked[0] and not (loose and size == 1):
            return Mismatch(parameter, place % len(shape), size, (asked[0],), asked[1], word, _readable(words))
    return None


def _rank_fits(words: list[str], rank: int) -> bool:
    return rank >= len(words) - 1 if "..." in words else rank == len(words)


def _readable(words: Iterable[str]) -> str:
    return "[" + ", ".join(MEANINGS.get(word, word).rpartition(".")[2].strip("~_") for word in words) + "]"


@dataclass(frozen=True)
class Repair:
    """A change of an argument, or of the layer, after which everything fits.

    Attributes:
        kind: ``"batch_first"``, ``"turn"``, ``"mask"`` of a mask with a row for each text, or a tensor's method.
        parameters: Which arguments.
        dimensions: Which of their dimensions.
        shape: The first argument's shape after it.
    """

    kind: str
    parameters: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()
    shape: Shape = ()


def repairs(
    takes: Takes, shapes: Mapping[str, Shape], number: Number, found: Mismatch, same: Callable[[str], tuple[str, ...]]
) -> list[Repair]:
    """Return the changes after which everything fits, the likeliest first.

    Args:
        takes: What the layer takes.
        shapes: The shapes of the arguments.
        number: Returns an attribute of the layer.
        found: What does not fit.
        same: Returns the parameters that are given the very tensor that a parameter is given.
    """
    fitting = []
    if takes.batch_first and number(takes.batch_first) is False and check(takes, shapes, number, True) is None:
        fitting.append(Repair("batch_first"))
    main = next(iter(name for name in takes.patterns if name in shapes), found.parameter)
    for name in dict.fromkeys((found.parameter, main, found.fixed.name)):
        if name not in shapes:
            continue
        for repair in _changes(takes, name, shapes[name], found):
            together = same(name)
            changed = {**shapes, **dict.fromkeys(together, repair.shape)}
            if check(takes, changed, number) is None:
                fitting.append(replace(repair, parameters=together))
    return fitting


def _changes(takes: Takes, name: str, shape: Shape, found: Mismatch) -> Iterable[Repair]:
    """Yield what could be done to one argument."""
    if name == found.parameter:
        yield from _of_rank(name, shape, found) if found.dimension is None else _of_size(takes, name, shape, found)
    if found.dimension is None and name == found.parameter:
        return
    for one in range(len(shape)):
        for other in range(one + 1, len(shape)):
            if shape[one] != shape[other]:
                sizes = list(shape)
                sizes[one], sizes[other] = sizes[other], sizes[one]
                yield Repair("turn", (name,), (one, other), tuple(sizes))
    if name == found.parameter and found.dimension is not None and found.size == 1:
        sizes = list(shape)
        sizes[found.dimension] = found.wanted[0]
        yield Repair("repeat", (name,), (found.dimension,), tuple(sizes))


def _of_rank(name: str, shape: Shape, found: Mismatch) -> Iterable[Repair]:
    if len(shape) + 1 in found.wanted:
        yield Repair("unsqueeze", (name,), (0,), (1, *shape))
        yield Repair("unsqueeze", (name,), (1,), (*shape[:1], 1, *shape[1:]))
    for place, size in enumerate(shape):
        if size == 1 and len(shape) - 1 in found.wanted:
            yield Repair("squeeze", (name,), (place,), shape[:place] + shape[place + 1 :])


def _of_size(takes: Takes, name: str, shape: Shape, found: Mismatch) -> Iterable[Repair]:
    wanted, rest = found.wanted[0], shape[1:]
    if found.fixed.dimension is None and found.dimension == len(shape) - 1:
        if wanted == 1:
            yield Repair("unsqueeze", (name,), (-1,), (*shape, 1))
        for place in range(1, len(shape) - 1) if takes.patterns[name].startswith("...") else ():
            if math.prod(shape[place:]) == wanted:
                yield Repair("flatten", (name,), (place,), (*shape[:place], wanted))
    if found.dimension == 0 and wanted == 1:  # channels of one, left out
        yield Repair("unsqueeze", (name,), (1,), (*shape[:1], 1, *rest))
    if found.dimension == 0 and "*" in found.word and wanted % max(found.size, 1) == 0:  # one for each head
        yield Repair("repeat_interleave", (name,), (wanted // max(found.size, 1), 0), (wanted, *rest))
    if found.word == "~L":  # a row for each text, not for each place of a text
        yield Repair("mask", (name,), (), (shape[0], 1, 1, *rest))
