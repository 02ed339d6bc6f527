"""Compares a merged model with the hooked one: on texts alone, in a batch, truncated, and with prompts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..compat.cross_encoders import root_of
from ..prompts import probes

# How far components may be apart, relative to the largest one of a typical text. A wrong model is off by more.
_TOLERANCE = 1e-5

# A difference of more than this many times the hooked model's own, between alone and in a batch, is not rounding.
_MARGIN = 6

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


# Weights times positions that the longest text may cost in total: a few seconds on two cores.
_BUDGET = 200_000_000_000


@dataclass(frozen=True)
class Comparison:
    """What was compared, and how far apart it was.

    Attributes:
        what: ``"embeddings"``, or ``"scores"`` for a CrossEncoder.
        texts: The number of texts, or of pairs.
        ways: How they were encoded: ``"alone"``, ``"in a batch"``, ``"with the prompt 'query: '"``, ``"cut at 256"``.
        largest: The largest difference of any component.
        allowed: The largest difference that counts as rounding.
        worst: The text and the way with the largest difference.
    """

    what: str
    texts: int
    ways: tuple[str, ...]
    largest: float
    allowed: float
    worst: str

    @property
    def equal(self) -> bool:
        """Whether the plain model equals the hooked one."""
        return self.largest <= self.allowed

    def __str__(self) -> str:
        verdict = "are" if self.equal else "are not"
        return (
            f"{self.what} of {self.texts} texts ({', '.join(self.ways)}) {verdict} those of the hooked model: largest "
            f"difference {self.largest:.1e} ({self.worst}), allowed {self.allowed:.1e}"
        )


class _Run(NamedTuple):
    """Texts that were encoded in one way."""

    way: str
    texts: Sequence[Any]
    found: list[Tensor]


class Truth:
    """The embeddings or scores of a hooked model for the texts, to compare plain models with.

    Args:
        model: The model with its hooks on.
        transformer: Its only Transformer.
    """

    def __init__(self, model: Any, transformer: Any) -> None:
        self._pairs = releases.is_cross_encoder(model)
        self._texts, self._long = _texts(transformer, self._pairs), _long(transformer, self._pairs)
        self._ways = list(_ways(model))
        self._runs = self._run(model)
        alone, together, long, beside = self._runs[:4]
        moved = [_difference(one, other) for one, other in zip(alone.found, together.found)]
        moved.append(_difference(long.found[0], beside.found[0]))
        rounding = max(moved)
        self.allowed = max(_TOLERANCE * _size_of(alone.found), _MARGIN * rounding if math.isfinite(rounding) else 0.0)

    def _run(self, model: Any) -> list[_Run]:
        """Encode the texts in every way."""
        texts, (how_long, long) = self._texts, self._long
        root = root_of(model)
        with probes.at_rest(root), modules.prompt_lengths_kept(root):
            encode = encoder_of(model, {})
            runs = [
                _Run("alone", texts, [encode([text])[0] for text in texts]),
                _Run("in a batch", texts, encode(texts)),
                _Run(how_long, [long], encode([long])),
                _Run(f"{how_long} next to a short one", [long, texts[0]], encode([long, texts[0]])),
            ]
            return runs + [_Run(way, texts, encoder_of(model, options)(texts)) for way, options in self._ways]

    def compare(self, plain: Any) -> Comparison:
        """Compare a plain model with the hooked one."""
        largest, worst = 0.0, "every text"
        for truth, run in zip(self._runs, self._run(plain), strict=True):
            for text, one, other in zip(truth.texts, truth.found, run.found, strict=True):
                far = _difference(one, other)
                if far > largest:
                    largest, worst = far, f"{_shown(text)} {truth.way}"
        what = "scores" if self._pairs else "embeddings"
        ways = tuple(run.way for run in self._runs)
        return Comparison(what, len(self._texts) + 1, ways, largest, self.allowed, worst)


def _texts(transformer: Any, pairs: bool) -> list[Any]:
    words = releases.plain_backbone(transformer).get_input_embeddings().weight.size(0)
    tokens = [transformer.tokenizer(text)["input_ids"] for text in _TEXTS]
    # Without tokens nothing can be pooled unless there are virtual ones; ids outside the vocabulary have no embedding.
    texts = [text for text, ids in zip(_TEXTS, tokens) if len(ids) and max(ids) < words]
    if not pairs:
        return texts
    return [(text, other) for text, other in zip(texts, [*texts[3:], *texts[:3]]) if text and other]


def _long(transformer: Any, pairs: bool) -> tuple[str, Any]:
    """Return a text that the model truncates, or one as long as is affordable, and a name for it."""
    limit, virtual = transformer.max_seq_length, releases.active_virtual_tokens(transformer)
    backbone = releases.plain_backbone(transformer)
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    weights -= backbone.get_input_embeddings().weight.numel()
    length = min(max(32, _BUDGET // max(1, 3 * weights)), max(8, probes.longest_text(transformer, virtual)))
    cut = isinstance(limit, int) and length >= limit
    words = " ".join(_TEXTS).split()
    text = " ".join(words[place % len(words)] for place in range(length + 8 if cut else max(1, length // 4)))
    how = f"cut at {length} tokens" if cut else f"of up to {length} tokens"
    return how, (text, text) if pairs else text


def _ways(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield other ways to encode a batch: with each prompt of the model, as a query, and as a document."""
    if releases.is_cross_encoder(model):
        return
    known = inspect.signature(model.encode).parameters
    prompts = [prompt for prompt in (getattr(model, "prompts", None) or {}).values() if prompt]
    for prompt in dict.fromkeys([*prompts[:3], _PROMPT] if "prompt" in known else ()):
        yield f"with the prompt {prompt!r}", {"prompt": prompt}
    for name in ("encode_query", "encode_document"):
        if hasattr(model, name):
            yield f"by {name}", {"by": name}


def encoder_of(model: Any, options: Mapping[str, Any]) -> Callable[[Sequence[Any]], list[Tensor]]:
    """Return a function that encodes a batch, or scores it before the activation, which could hide a difference."""
    options = dict(options)
    if releases.is_cross_encoder(model):
        call: Any = model.predict
        known = inspect.signature(call).parameters
        options["activation_fct" if "activation_fct" in known else "activation_fn"] = torch.nn.Identity()
    else:
        call = getattr(model, options.pop("by", "encode"))
        known = inspect.signature(model.encode).parameters
        options["device"] = str(model.device)
    wanted = {"convert_to_tensor": True, "convert_to_sparse_tensor": False, "show_progress_bar": False}
    options.update({name: value for name, value in wanted.items() if name in known})

    def encode(batch: Sequence[Any]) -> list[Tensor]:
        found = call(list(batch), batch_size=len(batch), **options)
        return [torch.as_tensor(row).double().cpu() for row in found]

    return encode


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of any component; extra zeros at the end, of a sparse embedding, do not count."""
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
