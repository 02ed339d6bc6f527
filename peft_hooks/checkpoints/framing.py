"""Finds out what a tokenizer puts around a text, and makes a post-processor that puts more before it.

Reads it from what the tokenizer returns, not from the kind of its post-processor: BERT's, RoBERTa's, a template, none,
or several in a sequence. All of them become one template, because two templates in a sequence make tokenizers panic.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedModelError

# Short texts, one of which has a token in the vocabulary of any language.
_PROBES = ("a", "A", "1", ".", "the", "in", "e", "中", "и")


@dataclass(frozen=True)
class Front:
    """What goes before the text.

    Attributes:
        ids: The ids of the virtual tokens.
        first: The id of the token that replaces the text's first special token, before the virtual tokens.
        stands_for: The id of that special token.
        names: The names of the tokens in the vocabulary; None if no text may contain such names.
        segments: Whether the backbone gets the segment ids that tell the texts of a pair apart.
    """

    ids: tuple[int, ...]
    first: int | None = None
    stands_for: int | None = None
    names: tuple[str, ...] | None = None
    segments: bool = True

    @property
    def all_ids(self) -> tuple[int, ...]:
        """Every new id, in the order of ``names``."""
        return self.ids if self.first is None else (*self.ids, self.first)

    def before(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a text with the virtual tokens in their place."""
        if self.first is None:
            return [*self.ids, *ids]
        return [self.first, *self.ids, *ids[1:]]


@dataclass(frozen=True)
class Piece:
    """One piece of a framed text: a special token, or the place of text 0 or 1."""

    which: int | None
    segment: int
    id: int = 0
    token: str = ""


def framed(backend: Any, pair: bool) -> list[Piece]:
    """Return the pieces that a text or a pair consists of.

    Which token belongs to which text is found from the tokens themselves: ``sequence_ids`` are wrong if a sequence of
    post-processors has another one after a template.
    """
    for one, other in itertools.permutations(_PROBES, 2):
        texts = [backend.encode(text, add_special_tokens=False).ids for text in (one, other)]
        if not all(texts) or texts[0] == texts[1]:
            continue
        given = backend.encode(one, other) if pair else backend.encode(one)
        found = _pieces(given, texts if pair else texts[:1])
        if found is not None:
            return found
    raise UnsupportedModelError(
        f"cannot tell how the tokenizer frames a text: no two of {', '.join(map(repr, _PROBES))} are framed alike"
    )


def _pieces(given: Any, texts: list[list[int]]) -> list[Piece] | None:
    """Return the pieces that the tokenizer made of these texts, or None if the texts cannot be found in its output."""
    left, found, place = dict(enumerate(texts)), [], 0
    while place < len(given.ids):
        which = None
        if not given.special_tokens_mask[place]:
            which = next((n for n, ids in left.items() if given.ids[place : place + len(ids)] == ids), None)
            if which is None:
                return None
        found.append(Piece(which, given.type_ids[place], given.ids[place], given.tokens[place]))
        place += 1 if which is None else len(left.pop(which))
    return None if left else found


def post_processor(backend: Any, former: Any, front: Front) -> dict[str, Any]:
    """Return one template with the virtual tokens, after the processors that only adjust the offsets of tokens."""
    names = front.names or [f"<|virtual_{token}|>" for token in front.all_ids]
    known = dict(zip(names, front.all_ids))
    pieces: dict[str, list[Any]] = {}
    for key, pair in (("single", False), ("pair", True)):
        around = framed(backend, pair)
        known |= {piece.token: piece.id for piece in around if piece.which is None}
        before = [_special(name, 0) for name in names[: len(front.ids)]]
        if front.first is not None:
            before, around = [_special(names[-1], 0), *before], around[1:]
        pieces[key] = before + [_as_json(piece, front.segments) for piece in around]
    special = {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in known.items()}
    template = {"type": "TemplateProcessing", **pieces, "special_tokens": special}
    processors = [*_of_offsets(former), template]
    return template if len(processors) == 1 else {"type": "Sequence", "processors": processors}


def _special(name: str, segment: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": segment}}


def _as_json(piece: Piece, segments: bool) -> dict[str, Any]:
    segment = piece.segment if segments else 0
    if piece.which is None:
        return _special(piece.token, segment)
    return {"Sequence": {"id": "AB"[piece.which], "type_id": segment}}


def _of_offsets(post: Any) -> list[dict[str, Any]]:
    """Return the processors that add no tokens: byte-level ones trim offsets, and so does RoBERTa's.

    An unknown one can at most add tokens, and those are in the template.
    """
    if post is None:
        return []
    if post["type"] == "Sequence":
        return [inner for processor in post["processors"] for inner in _of_offsets(processor)]
    if post["type"] == "ByteLevel":
        return [post]
    if post["type"] != "RobertaProcessing":
        return []
    return [
        {**{key: post[key] for key in ("add_prefix_space", "trim_offsets")}, "type": "ByteLevel", "use_regex": False}
    ]
