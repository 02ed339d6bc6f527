"""``check_padding_invariance``: the proof that a user can run on a model of his own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextDifference:
    """How far one text's embedding moves with the batch it is in."""

    text: str
    difference: float
    batch_size: int


@dataclass(frozen=True)
class PaddingReport:
    """What ``check_padding_invariance`` found. True in a condition if the embeddings are the same alone and in batches.

    Attributes:
        differences: For every text, the largest difference of a component between alone and any batch, and the size of
            that batch.
        tolerance: What counts as the same.

    Example:
        >>> from peft_hooks import check_padding_invariance
        >>> from peft_hooks.testing import tiny_model
        >>> report = check_padding_invariance(tiny_model("bert"), ["a cat", "the dog sleeps on the warm sofa"])
        >>> report.ok, len(report.differences), report.largest_difference < 1e-5
        (True, 2, True)
        >>> print(report)
        2 embeddings are the same alone and in any batch tried: largest difference ... (tolerance 1e-04), of ...
    """

    differences: tuple[TextDifference, ...]
    tolerance: float

    @property
    def worst(self) -> TextDifference:
        """The text that moves most."""
        return max(self.differences, key=lambda row: row.difference)

    @property
    def largest_difference(self) -> float:
        """The largest difference of a component over all texts and batches."""
        return self.worst.difference

    @property
    def ok(self) -> bool:
        """Whether no embedding moves by more than the tolerance. A NaN differs infinitely."""
        return all(row.difference <= self.tolerance for row in self.differences)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        count, verdict = len(self.differences), "depend on their batch"
        if self.ok:
            verdict = "are the same alone and in any batch tried"
        worst = self.worst
        shown = worst.text if len(worst.text) <= 60 else worst.text[:57] + "..."
        return (
            f"{count} embeddings {verdict}: largest difference {worst.difference:.2e} "
            f"(tolerance {self.tolerance:.0e}), of {shown!r} in a batch of {worst.batch_size}"
        )


def check_padding_invariance(
    model: nn.Module,
    texts: Sequence[str],
    *,
    batch_sizes: Sequence[int] | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    **encode_options: Any,
) -> PaddingReport:
    """Encode each text alone and in batches with others, and report the largest difference.

    Works with and without hooks, and leaves the model as it is. Texts of different lengths make the check: a batch of
    equal lengths has no padding.

    Args:
        model: A ``SentenceTransformer``, or anything with an ``encode`` that takes its options and returns one tensor
            or array ``[texts, ...]``.
        texts: At least two texts, better of very different lengths.
        batch_sizes: Sizes of batches to try, each over the texts in a shuffled order. By default 2, 3 and all at once.
        tolerance: Largest difference of a component that counts as the same; half precision needs about 1e-2.
        seed: Of the shuffling.
        **encode_options: Passed on to ``model.encode``, such as ``prompt_name="query"``.

    Returns:
        The report; ``bool(report)`` is the verdict, ``print(report)`` says it.

    Raises:
        TypeError: If ``texts`` is a single string, or ``model`` has no ``encode``.
        ValueError: If there are fewer than two texts.

    Example:
        >>> from peft_hooks import check_padding_invariance
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> bool(check_padding_invariance(tiny_model("bert", pooling="cls"), TEXTS, batch_sizes=[2, 6]))
        True
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string: give a list of at least two texts, of different lengths")
    if not hasattr(model, "encode"):
        raise TypeError(f"expected a SentenceTransformer, got {type(model).__name__}: it has no encode()")
    texts = list(texts)
    if len(texts) < 2:
        raise ValueError(
            f"got {len(texts)} text{'' if len(texts) == 1 else 's'}: at least two are needed to make a batch"
        )
    encode = _encoder(model, encode_options)
    alone = torch.cat([encode([text]) for text in texts])
    rows = [TextDifference(text, 0.0, 1) for text in texts]
    shuffle = random.Random(seed)
    for size in batch_sizes or sorted({2, min(3, len(texts)), len(texts)}):
        order = shuffle.sample(range(len(texts)), len(texts))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            moved = (encode([texts[index] for index in batch]) - alone[batch]).abs()
            moved = moved.masked_fill(moved.isnan(), math.inf).flatten(1).amax(dim=1)
            for index, difference in zip(batch, moved.tolist()):
                if difference > rows[index].difference:
                    rows[index] = TextDifference(texts[index], difference, len(batch))
    return PaddingReport(tuple(rows), tolerance)


def _encoder(model: Any, options: dict[str, Any]) -> Any:
    def encode(batch: list[str]) -> Tensor:
        found = model.encode(batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False, **options)
        return torch.as_tensor(found).double().cpu()

    return encode
