"""A model's tokenizer as one ``tokenizer.json``, which makes what the graph takes without any other library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError

TOKENIZER = "tokenizer.json"

_ENDLESS = 10**9
"""More tokens than any text has: transformers writes 10**30 where no length is set."""

# What the tokenizers library calls what the models call like this.
_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Texts:
    """Makes tensors of texts, as whoever uses the exported files does: with the library ``tokenizers`` alone.

    Args:
        tokenizer: What was written to ``tokenizer.json``.
        names: What the model's tokenizer gives, by the models' names.
    """

    def __init__(self, tokenizer: Any, names: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.names = names

    def rows(self, texts: list[Any]) -> dict[str, list[list[int]]]:
        """Return what texts, or pairs of them, are to the model."""
        encodings = self.tokenizer.encode_batch(texts)
        return {name: [getattr(encoding, _PARTS[name]) for encoding in encodings] for name in self.names}

    def on(self, side: str) -> Texts:
        """Return the same with padding on another side."""
        other = type(self.tokenizer).from_str(self.tokenizer.to_str())
        other.enable_padding(**{**self.tokenizer.padding, "direction": side})
        return Texts(other, self.names)


def texts_of(takes_text: Any) -> Texts:
    """Return what makes tensors for a Transformer, cut off and padded as its own tokenizer does that.

    The model's tokenizer stays as it is.

    Raises:
        UnsupportedModelError: If it is written in Python, gives what no other library makes, or pads nothing.
    """
    tokenizer = getattr(takes_text, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is None or not hasattr(backend, "to_str"):
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} has no {TOKENIZER}, which a process without Python code of the "
            f"model's reads: load the model with a fast tokenizer, AutoTokenizer.from_pretrained(path, use_fast=True)"
        )
    names = tuple(tokenizer.model_input_names)
    other = [name for name in names if name not in _PARTS]
    if other or "input_ids" not in names or "attention_mask" not in names:
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} gives {', '.join(names)}: a graph can be made for input_ids, "
            f"attention_mask and token_type_ids"
        )
    if tokenizer.pad_token is None:
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} has no padding token, so that texts of different lengths make "
            f"no batch: set model.tokenizer.pad_token = model.tokenizer.eos_token"
        )
    return Texts(_serialized(tokenizer, max_length(takes_text)), names)


def max_length(takes_text: Any) -> int | None:
    """Return after how many tokens a text is cut off, or None."""
    tokenizer = takes_text.tokenizer
    limits = [getattr(takes_text, "max_seq_length", None), getattr(tokenizer, "model_max_length", None)]
    known = [int(limit) for limit in limits if limit is not None]
    return known[0] if known and known[0] < _ENDLESS else None


def _serialized(tokenizer: Any, length: int | None) -> Any:
    """Return a copy of the tokenizer behind transformers' own that cuts and pads by itself."""
    backend = tokenizer.backend_tokenizer
    copied = type(backend).from_str(backend.to_str())
    copied.no_truncation()
    if length is not None:
        copied.enable_truncation(max_length=length, direction=tokenizer.truncation_side)
    copied.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    return copied


def write_config(takes_text: Any, folder: Path) -> None:
    """Write a ``tokenizer_config.json`` that transformers of any release and fastembed read."""
    tokenizer = takes_text.tokenizer
    special = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    tokens = {name: getattr(tokenizer, name, None) for name in special}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.model_input_names),
        "model_max_length": max_length(takes_text) or 10**30,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": False,
        **{name: str(token) for name, token in tokens.items() if token is not None},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
