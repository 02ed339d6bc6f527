"""A model's tokenizer as one ``tokenizer.json``, which makes the graph's inputs without any other library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError

TOKENIZER = "tokenizer.json"

_ENDLESS = 10**9
"""More tokens than any text has: transformers writes 10**30 if no length is set."""

# How the tokenizers library names what models take.
_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Texts:
    """Makes tensors from texts as users of the exported files do: with the library ``tokenizers`` alone.

    Args:
        tokenizer: The tokenizer that is written to ``tokenizer.json``.
        names: What the model's tokenizer returns, by the models' names.
    """

    def __init__(self, tokenizer: Any, names: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.names = names

    def rows(self, texts: list[Any]) -> dict[str, list[list[int]]]:
        """Return the rows of texts, or of pairs, for the model."""
        encodings = self.tokenizer.encode_batch(texts)
        return {name: [getattr(encoding, _PARTS[name]) for encoding in encodings] for name in self.names}

    def on(self, side: str) -> Texts:
        """Return the same with padding on the given side."""
        other = type(self.tokenizer).from_str(self.tokenizer.to_str())
        other.enable_padding(**{**self.tokenizer.padding, "direction": side})
        return Texts(other, self.names)


def texts_of(takes_text: Any) -> Texts:
    """Return what makes tensors for a Transformer, truncated and padded as its own tokenizer does.

    The model's tokenizer stays as it is.

    Raises:
        UnsupportedModelError: If it is written in Python, returns more than the graph can take, or cannot pad.
    """
    tokenizer = getattr(takes_text, "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is None or not hasattr(backend, "to_str"):
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} has no {TOKENIZER}, the form that works without Python code of "
            f"the model: load the model with a fast tokenizer, AutoTokenizer.from_pretrained(path, use_fast=True)"
        )
    names = tuple(tokenizer.model_input_names)
    other = [name for name in names if name not in _PARTS]
    if other or "input_ids" not in names or "attention_mask" not in names:
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} gives {', '.join(names)}: a graph can only take input_ids, "
            f"attention_mask and token_type_ids"
        )
    if tokenizer.pad_token is None:
        raise UnsupportedModelError(
            f"the tokenizer {type(tokenizer).__name__} has no padding token, so texts of different lengths cannot make "
            f"a batch: set model.tokenizer.pad_token = model.tokenizer.eos_token"
        )
    return Texts(_serialized(tokenizer, max_length(takes_text)), names)


def max_length(takes_text: Any) -> int | None:
    """Return the number of tokens that texts are truncated to, or None."""
    tokenizer = takes_text.tokenizer
    limits = [getattr(takes_text, "max_seq_length", None), getattr(tokenizer, "model_max_length", None)]
    known = [int(limit) for limit in limits if limit is not None]
    return known[0] if known and known[0] < _ENDLESS else None


def _serialized(tokenizer: Any, length: int | None) -> Any:
    """Return a copy of the inner tokenizer that truncates and pads by itself."""
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
    """Write a ``tokenizer_config.json`` that any release of transformers, and fastembed, can read."""
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
