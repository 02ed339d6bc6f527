"""Measure one query at a time, as a search service embeds them: ``python -m tests.benchmarks one_query``.

Real MiniLM, an encoder, whose virtual tokens see the text; and a random Qwen3, a decoder, whose virtual tokens are kept
between forwards. Each beside merged LoRA, PEFT's own way without hooks, and the exported graph in ONNX Runtime, if the
extra ``onnx`` is installed. All take turns, tokenizer included.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from peft_hooks import export_onnx, register_prompt_mask_hooks
from peft_hooks.testing import tiny_model

from ..tools.methods import backbone_of, put_adapter, put_backbone
from .encode import encoding
from .models import minilm
from .share_prompt import SIZES
from .table import Row
from .timing import Work, in_turns, ratios, raw_of

QUERY, ROUNDS = "how do birds find the way home in winter", 150
OTHERS = ("no prompt", "LoRA, merged", "PEFT's own way", "the ONNX graph")


def measure(quick: bool = False) -> list[Row]:
    """Measure an encoder with 10 virtual tokens, and a decoder with 50."""
    rounds = 2 if quick else ROUNDS
    served = not quick and importlib.util.find_spec("onnxruntime") is not None
    return [
        *_measured("MiniLM", minilm, 10, rounds, served),
        *_measured("the decoder", lambda: tiny_model("qwen3", **SIZES), 50, rounds, served),
    ]


def _measured(name: str, make: Callable[[], Any], virtual: int, rounds: int, served: bool) -> list[Row]:
    models = {which: make() for which in (*OTHERS[:3], "hooks")}
    put_adapter(models["LoRA, merged"], "lora")
    put_backbone(models["LoRA, merged"], backbone_of(models["LoRA, merged"]).merge_and_unload())
    for which in ("PEFT's own way", "hooks"):
        put_adapter(models[which], "prompt_tuning", num_virtual_tokens=virtual)
    register_prompt_mask_hooks(models["hooks"], share_prompt="keep")
    works: dict[str, Work] = {which: encoding(model, [QUERY]) for which, model in models.items()}
    if served:
        works["the ONNX graph"] = _graph(models["hooks"])
        torch.testing.assert_close(torch.as_tensor(works["the ONNX graph"]()), works["hooks"](), rtol=0, atol=1e-5)
    times = in_turns(works, rounds)
    what = f"encode of one query, {name} with {virtual} virtual tokens and the hooks"
    rows = [(other, ratios(times, "hooks", other)) for other in OTHERS if other in times]
    return [Row.of(what, other, found, None, **raw_of(times)) for other, found in rows]


def _graph(model: Any) -> Work:
    """Return a function that embeds the query with the exported files, in one thread."""
    import numpy as np
    from onnxruntime import InferenceSession, SessionOptions
    from tokenizers import Tokenizer

    options = SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export_onnx(model, path)
        session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = [(node.name, fields[node.name]) for node in session.get_inputs()]

    def run() -> Any:
        texts = tokenizer.encode_batch([QUERY])
        given = {name: np.array([getattr(text, field) for text in texts]) for name, field in inputs}
        return session.run(["sentence_embedding"], given)[0]

    return run
