"""The language of contracts: ``{"token_embeddings!": "float: batch seq hidden=384"}``. Parsed once, as a hook is made.

A contract maps the names of tensors to their dimensions. ``!`` after a name requires the tensor. ``i64|bool:`` before
the dimensions says which dtypes it may have: short names, or the groups ``float``, ``int`` and ``complex``.

A dimension is a name (``seq``, one size in the whole forward), a size (``384``), both (``hidden=384``), any size
(``_``), or any number of dimensions (``...``, once). A question mark, ``?width`` or ``?width=384``, says that the size
may differ in the next call: the name holds within one call of one module, between its inputs and outputs. A leading
underscore switches the check off: ``_width`` and ``_width=384`` are only documentation. Both signs are jaxtyping's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from .._format import dtype_of
from ..errors import close_matches

Contract = Mapping[str, str]

_DIMENSION = re.compile(r"(?P<local>\??)(?P<name>[A-Za-z_]\w*)(?:=(?P<of>\d+))?|(?P<size>\d+)")


class Dimension(NamedTuple):
    """One dimension of a contract: a name to bind, a fixed size, both, or neither (``_``, any size).

    ``local`` names are bound only within one call of one module.
    """

    name: str | None
    size: int | None = None
    local: bool = False

    def __str__(self) -> str:
        if self.name is None:
            return "_" if self.size is None else str(self.size)
        return self.name if self.size is None else f"{self.name}={self.size}"


ANY = Dimension(None)


class Expected(NamedTuple):
    """What a contract says about one tensor.

    Attributes:
        key: Its name as written, without ``!``; empty if the tensor is the argument or the output itself.
        parts: The name, split at its dots.
        required: Whether the tensor has to be there.
        head: The dimensions before ``...``, or all of them.
        tail: The dimensions after ``...``; None without it.
        dtypes: The allowed dtypes; None if any is allowed.
        kinds: The dtypes as written, for messages.
        label: The name, for messages.
        only: The name, if it has a single part.
    """

    key: str
    parts: tuple[str, ...]
    required: bool
    head: tuple[Dimension, ...]
    tail: tuple[Dimension, ...] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    kinds: str = ""
    label: str = ""
    only: str | None = None

    @property
    def dimensions(self) -> str:
        """The dimensions as text: ``batch ... hidden``."""
        return " ".join(map(str, (*self.head, *(() if self.tail is None else ("...", *self.tail)))))

    def filled(self, count: int) -> tuple[Dimension, ...]:
        """Return ``count`` dimensions, with ``...`` filled by any size; more if head and tail alone exceed it."""
        tail = self.tail or ()
        return (*self.head, *(ANY,) * (count - len(self.head) - len(tail)), *tail)


Spec = tuple[Expected, ...]


def parse(contract: Contract) -> Spec:
    """Parse a contract.

    Raises:
        ValueError: If a name, a dimension or a dtype cannot be read.

    Example:
        >>> [tensor] = parse({"attention_mask!": "i64|bool: batch seq"})
        >>> tensor.key, tensor.required, tensor.dimensions, tensor.kinds
        ('attention_mask', True, 'batch seq', 'i64 or bool')
    """
    return tuple(_expected(key, text) for key, text in contract.items())


def _expected(key: str, text: str) -> Expected:
    name = key.removesuffix("!")
    parts = tuple(name.split(".")) if name else ()
    if "" in parts or "!" in name:
        raise ValueError(f"{key!r} names no tensor: write a name like 'mask', 'features.mask', 'output.0', or ''")
    kinds, colon, dimensions = text.rpartition(":")
    words = dimensions.split()
    if words.count("...") > 1:
        raise ValueError(f"{dimensions.strip()!r} in the contract of {name!r} has '...' twice: it can stand once")
    place = words.index("...") if "..." in words else None
    parsed = [_dimension(name, word) for word in words if word != "..."]
    names = [kind.strip() for kind in kinds.split("|")] if colon else []
    return Expected(
        name,
        parts,
        key.endswith("!"),
        tuple(parsed[:place]),
        None if place is None else tuple(parsed[place:]),
        frozenset().union(*(_dtypes(name, kind) for kind in names)) if colon else None,
        " or ".join(names),
        name or "the tensor",
        name if len(parts) == 1 else None,
    )


def _dimension(key: str, text: str) -> Dimension:
    match = _DIMENSION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} in the contract of {key!r} is not a dimension: write a name, a size, name=size, ?name, _ or ..."
        )
    name, size, local = match["name"], match["size"] or match["of"], bool(match["local"])
    if name is None or not name.startswith("_"):
        return Dimension(name, None if size is None else int(size), local)
    if local:
        raise ValueError(f"{text!r} in the contract of {key!r} is not checked, after an underscore: leave out one sign")
    return ANY


def _dtypes(key: str, kind: str) -> frozenset[torch.dtype]:
    known = _known_dtypes()
    if kind not in known:
        close = close_matches(kind, known)
        raise ValueError(f"{kind!r} in the contract of {key!r} is not a dtype{close}")
    return known[kind]


@functools.cache
def _known_dtypes() -> dict[str, frozenset[torch.dtype]]:
    """Return every dtype under its short name and torch's name, and the groups."""
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    known = {dtype_of(dtype): frozenset({dtype}) for dtype in every}
    known |= {str(dtype).removeprefix("torch."): frozenset({dtype}) for dtype in every}
    floating = frozenset(dtype for dtype in every if dtype.is_floating_point)
    complexes = frozenset(dtype for dtype in every if dtype.is_complex)
    whole = frozenset(dtype for dtype in every if str(dtype).startswith(("torch.int", "torch.uint")))
    return {**known, "float": floating, "complex": complexes, "int": whole}
