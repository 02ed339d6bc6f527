"""``peft-hooks merge``: a folder is written, and what was compared and how far it was is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

import peft_hooks
from peft_hooks.cli.main import main
from peft_hooks.testing import TEXTS, tiny_model

from ...tools.checks import distance, encoded
from ...tools.methods import put_adapter


def tuned(folder: Path, architecture: str = "bert", method: str = "prompt_tuning", **options: Any) -> Any:
    """Save a tuned model in ``folder / "tuned"``, and its base model beside it."""
    model = tiny_model(architecture, path=folder / "base", padding_side=options.pop("padding_side", "right"))
    put_adapter(model, method)
    peft_hooks.register_prompt_mask_hooks(model, **options)
    peft_hooks.save(model, folder / "tuned")
    return model


def test_it_writes_a_plain_model_and_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merged and as it is loaded from the folder."""
    model = tuned(tmp_path)
    assert main(["merge", str(tmp_path / "tuned"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for part in (
        "SentenceTransformer(",
        "merged: ",
        "8 texts",
        "cut at 64",
        "loaded: its",
    ):
        assert part in said
    assert said.count("largest difference") == 2
    merged = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert distance(encoded(merged), encoded(model)) <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "tuned"]


def test_what_the_model_was_saved_with_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its policy and task; others can be asked for. Padding that had to be turned is said."""
    model = tuned(tmp_path, "gpt2", "multitask_prompt_tuning", task_id=2, virtual_tokens="ignore", padding_side="left")
    assert main(["merge", str(tmp_path / "tuned"), str(tmp_path / "out")]) == 0
    assert "pads on the right" in capsys.readouterr().out
    assert distance(encoded(SentenceTransformer(str(tmp_path / "out"), device="cpu")), encoded(model)) <= 1e-6
    more = ["--task-id", "0", "--virtual-tokens", "pool", "--json"]
    assert main(["merge", str(tmp_path / "tuned"), str(tmp_path / "other"), *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "SentenceTransformer" and found["merged"]["largest"] <= 1e-6 and found["pads"]
    other = encoded(SentenceTransformer(str(tmp_path / "other"), device="cpu"))
    with peft_hooks.prompt_mask_hooks(model, task_id=0, virtual_tokens="pool"):
        assert distance(other, encoded(model)) <= 1e-6


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("prefix_tuning", [], "PREFIX_TUNING puts keys and values"),
        ("prompt_tuning", ["--task-id", "1"], "no adapter has tasks"),
        ("lora", [], "the adapter is LORA"),
    ],
)
def test_what_cannot_be_merged_is_said_and_nothing_is_written(
    method: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback, with exit status 2."""
    tuned(tmp_path, method=method)
    assert main(["merge", str(tmp_path / "tuned"), str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that has something in it stays; an empty one is taken."""
    tuned(tmp_path)
    assert main(["merge", str(tmp_path / "tuned"), str(tmp_path / "base")]) == 2
    assert "something is already there" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["merge", str(tmp_path / "tuned"), str(tmp_path / "empty")]) == 0
    assert len(encoded(SentenceTransformer(str(tmp_path / "empty"), device="cpu"))) == len(TEXTS)
