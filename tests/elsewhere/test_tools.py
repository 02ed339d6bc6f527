"""A merged MiniLM, and one with a prefix as an ONNX graph, served by what no one here wrote: the same embeddings.

Each tool has an environment of its own, without PEFT and this library, which is removed again: ``tox run -e merged``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .environments import ONLY_IF_ASKED, PROGRAMS, environment, node_modules, run
from .served import Served
from .texts import FEW, strange
from .tools import BACKEND, JAVASCRIPT, TOOLS

pytestmark = ONLY_IF_ASKED


def distances(found: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    """Return how far the embeddings are from the hooked model's, for each of its models."""
    far: dict[str, float] = {}
    for name, embeddings in found.items():
        model = name.partition("_")[0]
        assert embeddings.shape == truth[model].shape
        assert np.isfinite(embeddings).all()
        far[model] = max(far.get(model, 0.0), float(abs(embeddings - truth[model]).max()))
    return far


def same(tool: str, version: str, far: dict[str, float]) -> None:
    """Print the row of the guide's table, and assert what it says."""
    shown = ", ".join(f"{model} {largest:.1e}" for model, largest in far.items())
    print(f"{tool} {version}: {shown}", flush=True)
    assert version == TOOLS[tool].version
    assert max(far.values()) <= 1e-6


def through(tool: str, served: Served, tmp_path: Path) -> None:
    """Make the environment, run the program, and compare."""
    out = tmp_path / "found.npz"
    with environment(*TOOLS[tool].wanted) as python:
        version = run(TOOLS[tool].program, python, cwd=tmp_path, **served.given(out))
    with np.load(out) as found:
        same(tool, version, distances(dict(found), served.truth))


@pytest.fixture(scope="module")
def with_graph(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Have the merged model exported by Sentence Transformers' ONNX backend, and compare what that gives."""
    through(BACKEND, served, tmp_path_factory.mktemp("backend"))
    return served


def test_sentence_transformers_own_backend_gives_the_same_embeddings(with_graph: Served) -> None:
    """It exports the merged model by itself; the tools below take what it wrote."""
    assert (Path(with_graph.merged_onnx) / "onnx" / "model.onnx").is_file()


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in (BACKEND, JAVASCRIPT)])
def test_the_tool_gives_the_same_embeddings(tool: str, with_graph: Served, tmp_path: Path) -> None:
    """In batches of its own, alone, cut off; those of Ray Data of 3,000 texts."""
    through(tool, with_graph, tmp_path)


def test_transformers_js_gives_the_same_ids_and_embeddings(with_graph: Served, tmp_path: Path) -> None:
    """Of texts that it cuts off it drops ``[SEP]``, of an untuned MiniLM as well: all before it is the same."""
    fits = [number for number, text in enumerate(FEW) if len(text) < 300]
    given = {**with_graph.given(tmp_path), "texts": [FEW[number] for number in fits]}
    with node_modules(*TOOLS[JAVASCRIPT].wanted) as folder:
        program = folder / TOOLS[JAVASCRIPT].program  # what it imports is looked for beside it
        program.write_bytes((PROGRAMS / program.name).read_bytes())
        found = run(str(program), "node", cwd=folder, **given)
    texts = strange(600)
    whole = with_graph.tokenizer(texts)["input_ids"]
    assert found["whole"] == whole
    cut = with_graph.tokenizer(texts, truncation=True)["input_ids"]
    assert [one for one, ids in zip(found["cut"], whole) if len(ids) <= 260] == [
        ids for ids in whole if len(ids) <= 260
    ]
    assert [ids[:-1] for ids in found["cut"]] == [ids[:-1] for ids in cut]
    truth = with_graph.truth["merged"][fits]
    far = max(float(abs(np.array(found[how]) - truth).max()) for how in ("together", "alone"))
    same(JAVASCRIPT, found["version"], {"merged": far})
