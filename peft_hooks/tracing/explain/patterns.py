"""Check arguments against ``table.py``, find the dimension that does not fit, and what would."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .ghosts import Ghost, Shape, shape_of
from .meta import method
from .sites import Site
from .table import MEANINGS, Takes


class Fixed(NamedTuple):
    """What sets a size: an attribute of the layer, or a dimension of another argument."""

    name: str
    dimension: int | None = None


class Mismatch(NamedTuple):
    """One argument that the layer does not take as it is.

    Attributes:
        parameter: Which argument.
        dimension: Which of its dimensions; None if it has too many or too few of them.
        size: The size that it has.
        wanted: The size that it must have or, if ``dimension`` is None, the allowed numbers of dimensions.
        fixed: What sets that size.
        word: The dimension's word in the table.
        pattern: What the argument should look like.
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
        """What the dimension means, such as ``"batch"``; empty if that is unknown."""
        return MEANINGS.get(self.word.strip("~").partition("*")[0], "")


@dataclass
class _Known:
    """The sizes that letters stand for so far."""

    site: Site
    letters: dict[str, tuple[int, Fixed]] = field(default_factory=dict)
    batched: bool | None = None

    def same_batch(self, alternatives: list[list[str]]) -> list[list[str]]:
        """Drop the alternatives with a batch if earlier arguments have none, and vice versa."""
        kinds = {"N" in words for words in alternatives}
        if self.site.module is None or self.batched is None or len(kinds) < 2:
            return alternatives
        return [words for words in alternatives if ("N" in words) == self.batched]

    def wanted(self, word: str) -> tuple[int, Fixed] | None:
        """Return the size that a word asks for, and what sets it; None if any size will do."""
        sizes, by, parts = [], None, word.split("*")
        for part in parts:
            if part in self.letters:
                size, fixed = self.letters[part]
                by = by if by is not None and by.dimension is None else fixed
            else:
                size = self.site.number(part)
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


def check(site: Site, shapes: Mapping[str, Shape], batch_first: bool | None = None) -> Mismatch | None:
    """Return the first argument that the layer does not take as it is.

    Args:
        site: The call that takes them.
        shapes: The shapes of the arguments that are tensors.
        batch_first: Whether the batch comes first; by default, what the layer says.
    """
    takes = site.takes
    first = bool(takes.batch_first and site.number(takes.batch_first)) if batch_first is None else batch_first
    known = _Known(site)
    for parameter, pattern in takes.patterns.items():
        alternatives = _alternatives(site, pattern, first)
        found = _check_one(parameter, alternatives, shapes[parameter], known) if parameter in shapes else None
        if found is not None:
            return found
    return _check_fronts(takes, shapes)


def _check_fronts(takes: Takes, shapes: Mapping[str, Shape]) -> Mismatch | None:
    """Compare the leading dimensions (``...``) of several arguments, which are broadcast together."""
    plain = [name for name, one in takes.patterns.items() if one.startswith("... ") and not {"|", "*"} & set(one)]
    fronts = {one: shapes[one][: 1 - len(takes.patterns[one].split())] for one in plain if one in shapes}
    for (other, before), (name, front) in itertools.combinations(fronts.items(), 2):
        for place in range(1, min(len(front), len(before)) + 1):
            a, b = front[-place], before[-place]
            if a != b and 1 not in (a, b):
                fixed = Fixed(other, len(before) - place)
                return Mismatch(name, len(front) - place, a, (b,), fixed, "", takes.patterns[name])
    return None


def _alternatives(site: Site, pattern: str, batch_first: bool) -> list[list[str]]:
    """Return the words of each alternative, in the layer's order of batch and length."""
    turned = re.sub(r"\((\w+) (\w+)\)", r"\2 \1" if batch_first else r"\1 \2", pattern)
    found = []
    for alternative in turned.split("|"):
        words: list[str] = []
        for word in alternative.split():
            sizes = site.number(word[1:]) if word.startswith("*") else None
            words += [word] if sizes is None else map(str, sizes)
        found.append(words)
    return found


def _check_one(parameter: str, alternatives: list[list[str]], shape: Shape, known: _Known) -> Mismatch | None:
    both, alternatives = len({"N" in words for words in alternatives}) > 1, known.same_batch(alternatives)
    fitting = [words for words in alternatives if _rank_fits(words, len(shape))]
    if fitting and both and known.batched is None:
        known.batched = "N" in fitting[0]
    if not fitting:
        wanted = tuple(sorted({len(words) - ("..." in words) for words in alternatives}))
        return Mismatch(parameter, None, len(shape), wanted, Fixed(""), "", _readable(alternatives[0]))
    words = fitting[0]
    start = len(words) if words[:1] == ["..."] else 0  # count places from the end
    places = [(place - start, word) for place, word in enumerate(words) if word != "..."]
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


class Repair(NamedTuple):
    """A change of an argument or of the layer after which everything fits.

    Attributes:
        kind: ``"batch_first"``, ``"turn"``, ``"mask"`` for a mask with one row per text, or a method of tensors.
        parameters: Which arguments.
        dimensions: Which of their dimensions.
    """

    kind: str
    parameters: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()


def repairs(site: Site, found: Mismatch) -> list[Repair]:
    """Return the changes after which everything fits, most likely first."""
    takes, shapes, fitting = site.takes, site.shapes, []
    if takes.batch_first and site.number(takes.batch_first) is False and check(site, shapes, True) is None:
        fitting.append(Repair("batch_first"))
    main = next(iter(name for name in takes.patterns if name in shapes), found.parameter)
    for name in dict.fromkeys((found.parameter, main, found.fixed.name)):
        for kind, dimensions in _changes(takes, name, shapes[name], found) if name in shapes else ():
            together, after = _together(site, name, shapes), _after(kind, dimensions, shapes[name], found)
            if after is not None and check(site, {**shapes, **dict.fromkeys(together, after)}) is None:
                fitting.append(Repair(kind, together, dimensions))
    return fitting


def _together(site: Site, name: str, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Return the arguments that change with one: the same tensor, or the other state of a pair."""
    prefix, dot, _ = name.partition(".")
    pair = [one for one in shapes if dot and one.startswith(prefix + dot) and shapes[one] == shapes[name]]
    return tuple(dict.fromkeys((*site.same(name), *pair)))


def _after(kind: str, dimensions: tuple[int, ...], shape: Shape, found: Mismatch) -> Shape | None:
    """Return the shape of an argument after a change."""
    if kind == "mask":
        return (shape[0], 1, 1, *shape[1:])
    if kind == "repeat":
        return (*shape[: dimensions[0]], found.wanted[0], *shape[dimensions[0] + 1 :])
    ghost = Ghost(shape, torch.float32, torch.device("cpu"))
    return shape_of(method(ghost, "transpose" if kind == "turn" else kind, dimensions, {}))


def _changes(takes: Takes, name: str, shape: Shape, found: Mismatch) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the possible changes of one argument: the kind and the dimensions."""
    own, rank = name == found.parameter, len(shape)
    if own and found.dimension is None:
        yield from (("unsqueeze", (place,)) for place in (0, 1) if rank + 1 in found.wanted)
        yield from (("squeeze", (place,)) for place in range(rank) if shape[place] == 1 and rank - 1 in found.wanted)
        if "in_channels" in takes.patterns[name] and max(found.wanted) == rank - 1:  # several frames or crops each
            yield "flatten", (0, 1)
        return
    yield from _of_size(takes.patterns[name], shape, found) if own else ()
    if found.dimension is None:  # the other argument may lack a dimension
        yield from (("unsqueeze", (place,)) for place in (0, 1))
    pairs = itertools.combinations(range(rank), 2)
    yield from (("turn", (one, other)) for one, other in pairs if shape[one] != shape[other])
    if own and found.dimension is not None and found.size == 1:
        yield "repeat", (found.dimension,)


def _of_size(pattern: str, shape: Shape, found: Mismatch) -> Iterator[tuple[str, tuple[int, ...]]]:
    wanted, first = found.wanted[0], found.dimension == 0
    if found.fixed.dimension is None and found.dimension == len(shape) - 1:
        if wanted == 1:
            yield "unsqueeze", (-1,)
        places = range(1, len(shape) - 1) if pattern.startswith("...") else ()
        yield from (("flatten", (place,)) for place in places if math.prod(shape[place:]) == wanted)
    if first and wanted == 1:  # a single channel, left out
        yield "unsqueeze", (1,)
    if first and "*" in found.word and wanted % max(found.size, 1) == 0:  # one for each head
        yield "repeat_interleave", (wanted // max(found.size, 1), 0)
    if found.word == "~L":  # a row for each text, not for each position of it
        yield "mask", ()
