"""Whether a merged model is the hooked one: compared on texts, alone, in a batch, cut, with prompts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compat import sentence_transformers as releases
from ..compat.cross_encoders import root_of
from ..prompts import probes

# How far apart components may be, as a part of the largest one of a typical text. What is wrong is off by more.
_TOLERANCE = 1e-5

# More than so many times what rounding does to the hooked model's own embeddings, in a batch and alone, is no rounding.
_MARGIN = 8

_TEXTS = (
    "a cat",
    "The old captain sails a small red boat over the cold sea.",
    "",
    "how do birds find the way home in winter?",
    "Two children read one book about the moon, the stars and the dark sky above the quiet town, and none was afraid.",
    "naïve café, 中文, жук: 3 x 4 = 12\n\tprint('[CLS] <s> </s>')",
    "rain",
)
_PROMPT = "query: "


@dataclass(frozen=True)
class Comparison:
    """What was compared, and how far it was.

    Attributes:
        what: ``"embeddings"``, of a CrossEncoder ``"scores"``.
        texts: How many texts, or pairs.
        ways: How they were encoded: ``"alone"``, ``"in a batch"``, ``"with the prompt 'query: '"``.
        largest: The largest difference of a component.
        allowed: The largest difference that counts as rounding.
        worst: The text and the way of the largest difference.
        longest: How many tokens the longest text has, virtual ones not among them.
        cut: Whether the longest was cut.
    """

    what: str
    texts: int
    ways: tuple[str, ...]
    largest: float
    allowed: float
    worst: str
    longest: int
    cut: bool

    @property
    def equal(self) -> bool:
        """Whether the plain model is the hooked one."""
        return self.largest <= self.allowed

    def __str__(self) -> str:
        verdict = "are those of the hooked model" if self.equal else "are not those of the hooked model"
        length = f"the longest {'cut at' if self.cut else 'of'} {self.longest} tokens"
        return (
            f"{self.what} of {self.texts} texts ({length}) {', '.join(self.ways)} {verdict}: largest difference "
            f"{self.largest:.1e} (allowed {self.allowed:.1e}), {self.worst}"
        )


class Truth:
    """What a hooked model gives for the texts, kept to be compared with one plain model or another.

    Args:
        model: The model with its hooks on.
        transformer: Its one Transformer.
    """

    def __init__(self, model: Any, transformer: Any) -> None:
        self._pairs = releases.is_cross_encoder(model)
        self.longest, self.cut = _longest(transformer)
        self._texts = _texts(transformer, self.longest, self.cut, self._pairs)
        self._ways = list(_ways(model))
        self._found = self._run(model)
        alone, together = self._found[0][1], self._found[1][1]
        moved = max(_difference(one, other) for one, other in zip(alone, together))
        self.allowed = max(_TOLERANCE * _size_of(alone), _MARGIN * moved if math.isfinite(moved) else 0.0)

    def _run(self, model: Any) -> list[tuple[str, list[Tensor]]]:
        """Encode the texts in every way."""
        found = []
        with probes.at_rest(root_of(model)):
            encode = _encode(model, {})
            found.append(("alone", [encode([text])[0] for text in self._texts]))
            found.extend((way, _encode(model, options)(self._texts)) for way, options in self._ways)
        return found

    def compare(self, plain: Any) -> Comparison:
        """Compare a plain model."""
        largest, worst = 0.0, "of every text"
        for (way, expected), (_, found) in zip(self._found, self._run(plain), strict=True):
            for text, one, other in zip(self._texts, expected, found, strict=True):
                far = _difference(one, other)
                if far > largest or math.isnan(far):
                    largest, worst = far, f"of {_shown(text)} {way}"
        what = "scores" if self._pairs else "embeddings"
        ways = tuple(way for way, _ in self._found)
        return Comparison(what, len(self._texts), ways, largest, self.allowed, worst, self.longest, self.cut)


def _longest(transformer: Any) -> tuple[int, bool]:
    """Return how many tokens the longest text is to have, and whether that is where texts are cut."""
    limit, virtual = transformer.max_seq_length, releases.active_virtual_tokens(transformer)
    affordable = max(32, probes.affordable(releases.plain_backbone(transformer), 8))
    length = max(8, min(affordable, probes.longest_text(transformer, virtual)))
    return length, isinstance(limit, int) and length >= limit


def _texts(transformer: Any, longest: int, cut: bool, pairs: bool) -> list[Any]:
    tokens = transformer.tokenizer("")["input_ids"]
    texts = [text for text in _TEXTS if text or len(tokens)]  # nothing at all can be pooled without virtual tokens
    words = " ".join(_TEXTS).split()
    count = longest + 8 if cut else max(1, longest // 4)
    long = " ".join(words[place % len(words)] for place in range(count))
    texts.append(long)
    if not pairs:
        return texts
    return [(text, other) for text, other in zip(texts, [*texts[3:], *texts[:3]]) if text and other]


def _ways(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield how texts are encoded in a batch: plainly, with each prompt that the model has, as a query."""
    yield "in a batch", {}
    if releases.is_cross_encoder(model):
        return
    known = inspect.signature(model.encode).parameters
    prompts = [prompt for prompt in (getattr(model, "prompts", None) or {}).values() if prompt]
    for prompt in dict.fromkeys([*prompts[:3], _PROMPT] if "prompt" in known else ()):
        yield f"with the prompt {prompt!r}", {"prompt": prompt}
    for name in ("encode_query", "encode_document"):
        if hasattr(model, name):
            yield f"by {name}", {"by": name}


def _encode(model: Any, options: dict[str, Any]) -> Callable[[Sequence[Any]], list[Tensor]]:
    """Return what encodes a batch, or scores it before any activation, which could hide a difference."""
    options = dict(options)
    if releases.is_cross_encoder(model):
        call: Any = model.predict
        known = inspect.signature(call).parameters
        options["activation_fct" if "activation_fct" in known else "activation_fn"] = torch.nn.Identity()
    else:
        call = getattr(model, options.pop("by", "encode"))
        known = inspect.signature(model.encode).parameters
        if "convert_to_sparse_tensor" in known:
            options["convert_to_sparse_tensor"] = False
        options["device"] = str(model.device)
    options.update(convert_to_tensor=True, show_progress_bar=False)

    def encode(batch: Sequence[Any]) -> list[Tensor]:
        found = call(list(batch), batch_size=len(batch), **options)
        return [torch.as_tensor(row).double().cpu() for row in found]

    return encode


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of a component; what is longer by zeros, as a sparse embedding, is the same."""
    longer = other.size(-1) - one.size(-1) if one.dim() and one.dim() == other.dim() else 0
    if longer > 0:
        one = torch.nn.functional.pad(one, (0, longer))
    if one.shape != other.shape:
        return math.inf
    moved = (one - other).abs()
    return float(moved.nan_to_num(nan=math.inf).max()) if moved.numel() else 0.0


def _size_of(rows: Sequence[Tensor]) -> float:
    """Return the largest component of a typical text."""
    largest = sorted(float(row.abs().max()) for row in rows if row.numel())
    return largest[len(largest) // 2] if largest else 1.0


def _shown(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."
