"""OpenVINO, by the graphs that Sentence Transformers' ONNX backend and ``export_onnx`` wrote; without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from common import both, read, write
from tokenizers import Tokenizer

given = read("torch", "transformers")


class Model:
    """One folder: ``onnx/model.onnx`` and the tokenizer beside it."""

    def __init__(self, folder: str) -> None:
        where = Path(folder)
        self.tokenizer = Tokenizer.from_file(str(where / "tokenizer.json"))
        self.tokenizer.enable_truncation(
            json.loads((where / "sentence_bert_config.json").read_text())["max_seq_length"]
        )
        self.tokenizer.enable_padding()
        precise = {"INFERENCE_PRECISION_HINT": "f32"}  # on newer processors it computes in bf16 by itself
        self.graph = openvino.Core().compile_model(where / "onnx" / "model.onnx", "CPU", precise)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the graph's outputs by name, and the attention mask."""
        rows = self.tokenizer.encode_batch(list(texts))
        mask = np.array([row.attention_mask for row in rows])
        tensors = {"input_ids": np.array([row.ids for row in rows]), "attention_mask": mask}
        tensors["token_type_ids"] = np.zeros_like(mask)
        return self.graph({one.any_name: tensors[one.any_name] for one in self.graph.inputs}), mask


def pooled(outputs: Any, mask: Any) -> Any:
    """Pool as the model's own folder says: the mean of the tokens, at length 1."""
    weights = mask[:, :, None].astype(np.float32)
    mean = (outputs["last_hidden_state"] * weights).sum(axis=1) / weights.sum(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


merged, exported = Model(given["merged_onnx"]), Model(given["exported"])
found = both("merged", lambda texts: pooled(*merged(texts)), given["texts"])
found |= both("exported", lambda texts: exported(texts)[0]["sentence_embedding"], given["texts"])
write(given, openvino.__version__.partition("-")[0], **found)
