"""Where an export writes: nothing but its own files is replaced, and nothing is left of one that failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from peft_hooks import SaveError, UnsupportedModelError, export_onnx
from peft_hooks.checkpoints.exporting import _target
from peft_hooks.checkpoints.manifest import digest
from peft_hooks.checkpoints.onnx_files import beside, put_in_place, refuse_others
from peft_hooks.checkpoints.onnx_graph import _attributes_kept
from peft_hooks.testing import tiny_model


def test_a_stage_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), beside(tmp_path / "a" / "b") as stage:
        (stage / "half").write_text("written")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_stage_that_is_put_in_place_leaves_its_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("stays")
    with beside(tmp_path) as stage:
        (stage / "onnx").mkdir()
        for name in ("onnx/model.onnx", "tokenizer.json"):
            (stage / name).write_text(name)
        put_in_place(stage, tmp_path, "onnx/model.onnx")
    found = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*"))
    assert found == ["mine", "onnx", "onnx/model.onnx", "tokenizer.json"]


def test_files_of_others_are_refused_and_those_of_an_export_are_not(tmp_path: Path) -> None:
    graph, tokenizer = tmp_path / "m.onnx", tmp_path / "tokenizer.json"
    names = ["m.onnx", "tokenizer.json"]
    refuse_others(tmp_path, names, "m.onnx", {})
    graph.write_text("graph")
    with pytest.raises(SaveError, match=r"m\.onnx: it was not written by"):
        refuse_others(tmp_path, names, "m.onnx", {})
    tokenizer.write_text("tokens")
    written = {"tokenizer.json": digest(tokenizer)}
    refuse_others(tmp_path, names, "m.onnx", written)
    tokenizer.write_text("changed")
    with pytest.raises(SaveError, match=r"tokenizer\.json: .*not written by .*changed since"):
        refuse_others(tmp_path, names, "m.onnx", written)


def test_a_path_is_a_file_or_a_folder_by_its_ending(tmp_path: Path) -> None:
    assert _target(str(tmp_path / "model.onnx")) == (tmp_path, "model.onnx", False)
    assert _target(str(tmp_path / "model")) == (tmp_path / "model", "onnx/model.onnx", True)
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"this is a file.* a folder.* ends in"):
        _target(str(tmp_path / "file"))
    with pytest.raises(SaveError, match="nothing can be written there"), beside(tmp_path / "file" / "in"):
        pass


def test_what_is_no_tuned_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a SentenceTransformer.* the str 'minilm'"):
        export_onnx("minilm", tmp_path / "model.onnx")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a file to export to.* None"):
        export_onnx(tiny_model(), None)  # type: ignore[arg-type]
    pytest.importorskip("onnxscript")
    with pytest.raises(UnsupportedModelError, match="has no PEFT adapter"):
        export_onnx(tiny_model(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_modules_get_their_own_dicts_and_lists_back() -> None:
    """torch.export leaves copies of them, of which an adapter that is added later would tell only one."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names, self.seen = {"a": 1}, [torch.zeros(1)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x)
            self.names["b"] = 2
            self.added = x
            return x + 1

    model = Model()
    names, seen = model.names, model.seen
    with _attributes_kept(model):
        model(torch.ones(2))
        model.names = dict(model.names)
    assert model.names is names
    assert model.names == {"a": 1}
    assert model.seen is seen
    assert len(model.seen) == 1
    assert not hasattr(model, "added")
