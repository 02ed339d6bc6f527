"""The codes of ``diagnose``, and the checks on what was seen in one forward. No model runs here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .._format import dtype_of
from .._public import public
from .invariance import apart

CODES = {
    "PH001": "mask and embeddings differ in length",
    "PH002": "padding is pooled",
    "PH003": "the mask is a float",
    "PH004": "an adapter is never called",
    "PH005": "an adapter adds nothing",
    "PH006": "[CLS] is a virtual token",
    "PH007": "left padding moves the text",
    "PH008": "a hook never fires",
    "PH009": "text and virtual tokens exceed the positions",
    "PH010": "the prefix is ignored",
    "PH011": "an embedding depends on its batch",
    "PH012": "encode raises",
}
"""The meaning of each code. A code keeps its meaning in every later release of this library."""

LOOK = "with peft_hooks.trace_shapes(model) as trace: model.encode(texts)\nprint(trace)"
PAD_RIGHT = 'model.tokenizer.padding_side = "right"'


@public
@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a model.

    Attributes:
        code: ``"PH001"`` and so on: the keys of ``CODES``.
        place: The module, as in ``"Pooling '1'"``.
        sentence: What is wrong, and what follows from it.
        measured: The numbers.
        fix: The code that fixes it.
        fixed: Whether the fix was tried and removed this finding.

    Example:
        >>> from peft_hooks import Finding
        >>> finding = Finding("PH003", "Pooling '1'", "The mask has become a float.", "i64 in, f32 out", "mask.long()")
        >>> finding.name
        'the mask is a float'
    """

    code: str
    place: str
    sentence: str
    measured: str
    fix: str
    fixed: bool = False

    @property
    def name(self) -> str:
        """What the code stands for."""
        return CODES[self.code]

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-compatible data."""
        return {"code": self.code, "name": self.name, **{k: v for k, v in asdict(self).items() if k != "code"}}


@dataclass(frozen=True)
class Seen:
    """What one Transformer passed on to the module after it in one forward.

    Attributes:
        transformer: The Transformer, as in ``"Transformer '0'"``.
        consumer: The module after it, ``"Pooling '1'"``, or the Transformer itself if there is no Pooling.
        ids: The token ids that went into the Transformer, ``[batch, text]``.
        text_mask: The mask that went in, of the same shape, True where a token is not padding.
        given: The dtype of that mask.
        rows: The ``token_embeddings`` that came out, ``[batch, virtual + text, hidden]``.
        shape: The shape of the ``token_embeddings`` that the consumer got.
        mask: The mask that the consumer got.
        counted: ``bool[batch, virtual + text]``: which positions the pooled embedding depends on, by its gradient.
        first: The same for the ``cls`` part of the embedding alone; None if Pooling makes none.
    """

    transformer: str
    consumer: str
    ids: Tensor
    text_mask: Tensor
    given: str
    rows: Tensor
    shape: tuple[int, ...]
    mask: Tensor | None
    counted: Tensor | None = None
    first: Tensor | None = None

    @property
    def virtual(self) -> int:
        """By how many positions the output is longer than the input: the virtual tokens."""
        return self.rows.size(1) - self.ids.size(1)


def check_seen(seen: Seen, pools_position_0: bool = False) -> Iterator[Finding]:
    """Yield what is wrong with the mask and with how Pooling used it.

    Args:
        seen: What the Transformer passed on.
        pools_position_0: Whether the user chose to let ``cls`` read position 0 (``virtual_tokens="pool"``).
    """
    found = (check_length(seen), check_padding(seen), check_dtype(seen))
    yield from filter(None, (*found, None if pools_position_0 else check_cls(seen)))


def check_length(seen: Seen) -> Finding | None:
    """PH001: the mask does not belong to these embeddings."""
    if seen.mask is None or seen.mask.dim() != 2 or len(seen.shape) != 3 or seen.mask.size(1) == seen.shape[1]:
        return None
    return Finding(
        "PH001",
        seen.consumer,
        "The attention mask and the token embeddings differ in length. Sentence Transformers 5.4 and later then "
        "silently count every position, padding included; earlier releases raise.",
        f"{seen.shape[1]} embeddings per text and a mask of {seen.mask.size(1)}, for {seen.ids.size(1)} tokens",
        LOOK,
    )


def check_padding(seen: Seen) -> Finding | None:
    """PH002: the embedding depends on padding positions."""
    counted = text_part(seen, seen.counted)
    if counted is None:
        return None
    padding = ~seen.text_mask
    pooled = counted & padding
    if not bool(pooled.any()):
        return None
    worst = int(pooled.sum(dim=1).argmax())
    return Finding(
        "PH002",
        seen.consumer,
        "Padding counts as if it were text, so an embedding depends on what else is in its batch.",
        f"{int(pooled.sum())} of {int(padding.sum())} padding positions counted; in one text "
        f"{int(pooled[worst].sum())} besides its {int(seen.text_mask[worst].sum())} tokens",
        LOOK,
    )


def check_dtype(seen: Seen) -> Finding | None:
    """PH003: an integer mask has become a float mask."""
    if seen.mask is None or not seen.mask.is_floating_point() or seen.given.startswith(("f", "bf")):
        return None
    return Finding(
        "PH003",
        seen.consumer,
        "The attention mask was an integer tensor and has become a float tensor. Pooling accepts it, but code that "
        "indexes with the mask or inverts it, as in ~mask, raises.",
        f"{seen.given} went into {seen.transformer}, {dtype_of(seen.mask.dtype)} reached {seen.consumer}",
        "mask = mask.to(torch.int64)  # in the module or hook that changed it",
    )


def check_cls(seen: Seen) -> Finding | None:
    """PH006: cls pooling reads a virtual token."""
    if seen.first is None or seen.virtual <= 0 or seen.first.size(1) != seen.rows.size(1):
        return None
    virtual = seen.first[:, : seen.virtual].any(dim=1)
    if not bool(virtual.any()):
        return None
    return Finding(
        "PH006",
        seen.consumer,
        "cls pooling reads a virtual token instead of the text's own [CLS]. To keep the embeddings of a model that was "
        'trained like this, use virtual_tokens="pool".',
        f"position 0 of {seen.virtual} virtual tokens was read in {int(virtual.sum())} of {len(virtual)} texts; the "
        f"text begins at {seen.virtual}",
        'model[1] = Pooling(width, pooling_mode="mean")  # then train again',
    )


def text_part(seen: Seen, positions: Tensor | None) -> Tensor | None:
    """Cut the virtual tokens from ``[batch, virtual + text]``; None for a tensor of another shape."""
    if positions is None or positions.size(1) != seen.rows.size(1) or seen.virtual < 0:
        return None
    return positions[:, seen.virtual :]


def text_rows_moved(batch: Seen, alone: Seen) -> float:
    """Return how far the token embeddings of a text differ in a batch and alone; 0 if the batch lacks the text."""
    row = row_of(batch, alone.ids[0][alone.text_mask[0]].tolist())
    if row is None:
        return 0.0
    expected = alone.rows[0, alone.virtual :][alone.text_mask[0]]
    found = batch.rows[row, batch.virtual :][batch.text_mask[row]]
    return apart(found, expected)


def row_of(seen: Seen, ids: list[int]) -> int | None:
    """Return the row of the text with these token ids, or None: ``encode`` sorts texts by length, so rows move."""
    rows = (row[mask].tolist() for row, mask in zip(seen.ids, seen.text_mask))
    return next((number for number, row in enumerate(rows) if row == ids), None)
