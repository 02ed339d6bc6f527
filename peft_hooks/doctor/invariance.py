"""``check_padding_invariance``: a proof that users can run on their own models."""

from __future__ import annotations

import inspect
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._arguments import in_words, loading, refuse_meta, texts_given
from .._public import public
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from .rounding import LARGEST, MARGIN, SAMPLES, dtypes_of, rounded_another_way

TOLERANCE = 1e-4  # per component, unless the caller gives another


@dataclass(frozen=True)
class TextDifference:
    """How far the embedding of one text moves with its batch."""

    text: str
    difference: float
    batch_size: int


@public
@dataclass(frozen=True)
class PaddingReport:
    """The result of ``check_padding_invariance``. True as a condition if embeddings are the same alone and in batches.

    Attributes:
        differences: For every text, the largest difference of any component between alone and any batch, with the size
            of that batch.
        tolerance: The tolerance that was given, or 1e-4.
        what: What was compared: ``"embeddings"``, or ``"scores"`` for a CrossEncoder.
        allowed: The largest difference that counts as the same.
        judged_by: Where ``allowed`` comes from, as text.

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
    what: str
    allowed: float
    judged_by: str

    @property
    def worst(self) -> TextDifference:
        """The text that moves most."""
        return max(self.differences, key=lambda row: row.difference)

    @property
    def largest_difference(self) -> float:
        """The largest difference of any component over all texts and batches."""
        return self.worst.difference

    @property
    def ok(self) -> bool:
        """Whether no embedding moves by more than ``allowed``. A NaN counts as an infinite difference."""
        return all(row.difference <= self.allowed for row in self.differences)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        count, verdict = len(self.differences), "depend on their batch"
        if self.ok:
            verdict = "are the same alone and in any batch tried"
        worst = self.worst
        shown = worst.text if len(worst.text) <= 60 else worst.text[:57] + "..."
        return (
            f"{count} {self.what} {verdict}: largest difference {worst.difference:.2e} "
            f"({self.judged_by}), of {shown!r} in a batch of {worst.batch_size}"
        )


@public
def check_padding_invariance(
    model: nn.Module,
    texts: Sequence[str | Sequence[str]],
    *,
    batch_sizes: Sequence[int] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    **encode_options: Any,
) -> PaddingReport:
    """Encode each text alone and in batches with others, and report the largest difference.

    Works with and without hooks, and leaves the model as it is. Use texts of different lengths: a batch of equally
    long texts has no padding, so it checks nothing.

    Args:
        model: A ``SentenceTransformer``, ``SparseEncoder``, ``MultiVectorEncoder`` or ``CrossEncoder``, or a module
            with an ``encode`` that takes its options and returns one tensor or array ``[texts, ...]``.
        texts: At least two texts, ideally of very different lengths; for a ``CrossEncoder``, pairs of texts.
        batch_sizes: The batch sizes to try, each over the texts in shuffled order. By default 2, 3 and all at once.
        tolerance: The largest difference of any component that counts as the same; where components exceed 1, it is
            multiplied by the largest component of a typical text. By default 1e-4, or what rounding alone makes of
            these texts if that is more, as in half precision: it is measured, and the report says so.
        seed: The seed of the shuffling.
        **encode_options: Passed on to ``model.encode``, such as ``prompt_name="query"``, or to ``model.predict``.

    Returns:
        The report: ``bool(report)`` is the verdict, and ``print(report)`` shows it.

    Raises:
        TypeError: If ``texts`` is not a list of texts (pairs for a ``CrossEncoder``) or ``model`` has no ``encode``.
        ValueError: If there are fewer than two texts, or a batch size is not a positive whole number.
        UnsupportedModelError: If the model is on the meta device.

    Example:
        >>> from peft_hooks import check_padding_invariance
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> bool(check_padding_invariance(tiny_model("bert", pooling="cls"), TEXTS, batch_sizes=[2, 6]))
        True
    """
    pairs = releases.is_cross_encoder(model)
    if not pairs and not isinstance(model, nn.Module):
        raise TypeError(f"expected a SentenceTransformer, got {in_words(model)}: {loading(model)}")
    if not pairs and not hasattr(model, "encode"):
        raise TypeError(f"expected a SentenceTransformer, got {in_words(model)}: it has no encode()")
    if isinstance(model, nn.Module):
        refuse_meta(model)
    texts = texts_given(texts, pairs)
    sizes = _checked_sizes(batch_sizes, len(texts))
    encode = encoder_of(model, encode_options)
    alone = [encode([text])[0] for text in texts]
    rows = _differences(encode, texts, alone, sizes, seed)
    allowed, judged_by = TOLERANCE, f"tolerance {TOLERANCE:.0e}"
    if tolerance is not None:
        allowed, judged_by = _asked_for(tolerance, _size_of(alone))
    elif any(TOLERANCE < row.difference < math.inf for row in rows):
        allowed, judged_by = _by_rounding(cross.root_of(model), encode, texts, alone)
    what = "scores" if pairs else "embeddings"
    return PaddingReport(tuple(rows), TOLERANCE if tolerance is None else tolerance, what, allowed, judged_by)


def _differences(
    encode: Encode, texts: Sequence[Any], alone: Sequence[Tensor], sizes: Sequence[int], seed: int
) -> list[TextDifference]:
    """Return how far each text moves in shuffled batches of each size."""
    names = [text if isinstance(text, str) else " | ".join(map(str, text)) for text in texts]
    rows = [TextDifference(name, 0.0, 1) for name in names]
    shuffle = random.Random(seed)
    for size in sizes:
        order = shuffle.sample(range(len(texts)), len(texts))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for index, found in zip(batch, encode([texts[index] for index in batch])):
                difference = apart(found, alone[index])
                if difference > rows[index].difference:
                    rows[index] = TextDifference(names[index], difference, len(batch))
    return rows


def _size_of(alone: Sequence[Tensor]) -> float:
    """Return the largest component of a typical text: the median, which a single outlier does not move."""
    largest = [float(row.abs().max()) for row in alone if row.numel()]
    return statistics.median(filter(math.isfinite, largest)) if any(map(math.isfinite, largest)) else 1.0


def _asked_for(tolerance: float, size: float) -> tuple[float, str]:
    """Return the difference that a tolerance allows for embeddings of this size, and that as text."""
    if size <= 1:
        return tolerance, f"tolerance {tolerance:.0e}"
    allowed = tolerance * size
    return allowed, f"allowed {allowed:.0e}: tolerance {tolerance:.0e} times the largest component, {size:.1f}"


def _by_rounding(model: nn.Module, encode: Encode, texts: Sequence[Any], alone: Sequence[Tensor]) -> tuple[float, str]:
    """Return twice the effect of rounding on the texts if that exceeds the tolerance, and that as text."""
    moved = []
    for seed in range(SAMPLES):
        with rounded_another_way(model, seed):
            moved += [apart(encode([text])[0], row) for text, row in zip(texts, alone)]
    measured = MARGIN * max(filter(math.isfinite, moved), default=0.0)
    allowed = min(measured, LARGEST * _size_of(alone))
    if allowed <= TOLERANCE:
        return TOLERANCE, f"tolerance {TOLERANCE:.0e}"
    kind = dtypes_of(model)
    if allowed < measured:
        return (
            allowed,
            f"allowed {allowed:.0e}: a quarter of the largest component, which is less than rounding in {kind} makes",
        )
    return allowed, f"allowed {allowed:.0e}: twice what rounding in {kind} makes of this model, measured"


def _checked_sizes(sizes: Any, count: int) -> list[int]:
    if sizes is None:
        return sorted({2, min(3, count), count})
    if isinstance(sizes, (int, str)) or not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"batch_sizes={sizes!r}: give a list of positive whole numbers, such as [2, 8]")
    return list(sizes)


Encode = Callable[[list[Any]], list[Tensor]]
"""Returns one tensor for each text of a batch."""


def encoder_of(model: Any, options: dict[str, Any]) -> Encode:
    """Return a function from texts, or pairs for a CrossEncoder, to one float64 tensor each, on the CPU."""
    return _scorer(model, options) if releases.is_cross_encoder(model) else encoder(model, options)


def encoder(model: Any, options: dict[str, Any]) -> Encode:
    """Return a function that calls ``model.encode`` with these options and returns dense float64 tensors on the CPU."""
    known = inspect.signature(model.encode).parameters
    dense = {"convert_to_tensor": True, "convert_to_sparse_tensor": False}  # a MultiVectorEncoder returns a list anyway
    ours = {"show_progress_bar": False, **{key: value for key, value in dense.items() if key in known}, **options}

    def encode(batch: list[Any]) -> list[Tensor]:
        found = model.encode(batch, batch_size=len(batch), **ours)
        return [torch.as_tensor(row).detach().double().cpu() for row in found]

    return encode


def _scorer(model: Any, options: dict[str, Any]) -> Encode:
    ours = {"show_progress_bar": False, "convert_to_tensor": True, **options}

    def score(batch: list[Any]) -> list[Tensor]:
        found = model.predict([list(pair) for pair in batch], batch_size=len(batch), **ours)
        return [torch.as_tensor(row).double().cpu() for row in found]

    return score


def apart(found: Tensor, alone: Tensor) -> float:
    """Return the largest difference of any component; infinity for a NaN or for different shapes."""
    if found.shape != alone.shape:
        return math.inf
    moved = (found.double() - alone.double()).abs()
    return float(moved.masked_fill(moved.isnan(), math.inf).max()) if moved.numel() else 0.0
