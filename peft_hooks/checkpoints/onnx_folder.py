"""Writes the folder around a graph that Sentence Transformers' own ONNX backend and fastembed load.

Its files have the form that old releases read, because that backend is optimum-onnx, which needs an old transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..compat import sentence_transformers as releases
from ..compat import st_modules
from .onnx_tokenizer import max_length, write_config

MODEL = "onnx/model.onnx"
"""Where the backend looks for the graph."""

_MODULES = "sentence_transformers.models"
"""Where every release finds the modules, under this name."""


def write_folder(model: Any, takes_text: Any, folder: Path) -> None:
    """Write everything but the graph and ``tokenizer.json``: a Transformer, and a Pooling that picks its only row."""
    parts = ({"name": "Transformer", "path": ""}, {"name": "Pooling", "path": "1_Pooling"})
    modules = [
        {"idx": number, "name": str(number), "path": part["path"], "type": f"{_MODULES}.{part['name']}"}
        for number, part in enumerate(parts)
    ]
    pooling = {
        "word_embedding_dimension": _width(model),
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    settings = {
        "__version__": {},
        "prompts": dict(getattr(model, "prompts", None) or {}),
        "default_prompt_name": getattr(model, "default_prompt_name", None),
        "similarity_fn_name": st_modules.similarity_of(model),
    }
    (folder / "1_Pooling").mkdir()
    releases.plain_backbone(takes_text).config.save_pretrained(folder)
    write_config(takes_text, folder)
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length(takes_text), "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", settings)


def _width(model: Any) -> int:
    named = ("get_embedding_dimension", "get_sentence_embedding_dimension")  # renamed in 5.4
    method = next(getattr(model, name) for name in named if hasattr(model, name))
    return int(method())


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
