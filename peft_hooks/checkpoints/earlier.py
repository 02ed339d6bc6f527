"""Lists the files of a saved model that an early version of ``save`` wrote without recording a list of them.

That version never wrote a base model's config or weights, so these names are not among them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..errors import LoadError
from .folder import ADAPTER, MODULES, WEIGHTS, adapter_folders, parts_of, transformer_folders
from .restore import ENCODER

ANY = "any"
"""Stands for a digest that was not recorded."""

_ADAPTER = (ADAPTER, WEIGHTS, ENCODER)

_OF_A_MODEL = ("README.md", MODULES, "config_sentence_transformers.json", "router_config.json")

_OF_A_TRANSFORMER = (
    "sentence_bert_config.json",
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("chat_template.jinja", "processor_config.json", "preprocessor_config.json"),
)

_OF_ANOTHER_MODULE = ("config.json", "model.safetensors", "router_config.json")


def files(path: Path) -> dict[str, str]:
    """Return the files that a save without a list wrote to a model's folder; none if the folder is damaged."""
    names: dict[Path, tuple[str, ...]] = {}
    with contextlib.suppress(LoadError):
        transformers = transformer_folders(path)
        adapters = [(at, adapter_folders(at, transformers)) for at in transformers]
        names.update({part.folder: _OF_ANOTHER_MODULE for part in parts_of(path)})
        names[path] = _OF_A_MODEL
        for at, found in adapters:
            names[at] = () if not found else (*_OF_A_MODEL, *_OF_A_TRANSFORMER)
            for folder in found.values():
                names[folder] = (*names.get(folder, ()), *_ADAPTER)
    return {
        (folder / name).relative_to(path).as_posix(): ANY
        for folder, known in names.items()
        for name in known
        if (folder / name).is_file()
    }
