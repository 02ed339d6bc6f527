"""A saved folder that was changed by hand: refused in words that name the file, or the same embeddings."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peft_hooks
from peft_hooks import LoadError
from peft_hooks.compat.quiet import quiet

from ..tools.checks import distance
from ..tools.methods import put_adapter
from ..tools.saved import vectors, with_hooks

ADAPTER, WEIGHTS, TOKENIZER = "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"


pytestmark = pytest.mark.usefixtures("quietly")


@pytest.fixture(scope="module", params=["save", "save_pretrained"])
def whole(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory, build: Any) -> Path:
    """Save a model with its notes, and as Sentence Transformers does, without."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    with quiet():
        model = with_hooks(build(base, dense=False))
        if request.param == "save":
            peft_hooks.save(model, folder)
        else:
            model.save(str(folder))
    return folder


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(at: Path) -> None:
        content = json.loads((at / name).read_text()) if (at / name).is_file() else {}
        (at / name).write_text(json.dumps({**content, **values}))

    return change


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def rewrite(at: Path) -> None:
        held = load_file(at / WEIGHTS)
        save_file({name: change(value).contiguous() for name, value in held.items()}, at / WEIGHTS)

    return rewrite


def fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(rows: torch.Tensor) -> torch.Tensor:
        rows[0, 0] = value
        return rows

    return change


EDITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights of int64": (weights(lambda rows: rows.long()), f"{WEIGHTS}: .* has the type I64"),
    "weights of bool": (weights(lambda rows: rows.bool()), f"{WEIGHTS}: .* has the type BOOL"),
    "an infinite weight": (weights(fill(float("inf"))), f"{WEIGHTS}: .* NaN or infinite"),
    "fewer rows": (weights(lambda rows: rows[:2]), f"{ADAPTER}: by its sizes prompt_embeddings is"),
    "too many tokens": (edit(ADAPTER, num_virtual_tokens=20_000_000), f"{ADAPTER}: by its sizes"),
    "a width": (edit(ADAPTER, token_dim=10**9), f"{ADAPTER}: by its sizes"),
    "tokens as text": (edit(ADAPTER, num_virtual_tokens="4"), f"{ADAPTER}: its num_virtual_tokens is '4'"),
    "a fraction of a token": (edit(ADAPTER, num_virtual_tokens=4.5), f"{ADAPTER}: its num_virtual_tokens is 4.5"),
    "no mask": (
        edit(TOKENIZER, model_input_names=["input_ids", "token_type_ids"]),
        f"{TOKENIZER}: its model_input_names",
    ),
    "a negative length": (edit(TOKENIZER, model_max_length=-3), f"{TOKENIZER}: its model_max_length is -3"),
    "a fractional length": (edit(TOKENIZER, model_max_length=17.5), f"{TOKENIZER}: its model_max_length is 17.5"),
    "another pad token": (edit(TOKENIZER, pad_token="<nothing>"), f"{TOKENIZER}: pad_token '<nothing>' has the id"),
    "a pad token of a number": (edit(TOKENIZER, pad_token=3), f"{TOKENIZER}: its pad_token is 3"),
    "a side": (edit(TOKENIZER, padding_side="up"), f"{TOKENIZER}: its padding_side is 'up'"),
    "a length of texts": (edit("sentence_bert_config.json", max_seq_length=-1), "max_seq_length is -1"),
}


def assert_refused(folder: Path, copy: Path, change: Callable[[Path], None], message: str) -> None:
    """Change a copy of a saved folder, and assert that it is not loaded, and why."""
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(LoadError, match=message):
        peft_hooks.load(copy, device="cpu")


@pytest.mark.parametrize("what", EDITS)
def test_what_no_model_can_have_is_refused_by_name(whole: Path, tmp_path: Path, what: str) -> None:
    assert_refused(whole, tmp_path / "model", *EDITS[what])


def test_sizes_are_compared_before_anything_is_allocated(whole: Path, tmp_path: Path) -> None:
    """It took 2.3 GB and 19 s."""
    shutil.copytree(whole, tmp_path / "model")
    edit(ADAPTER, num_virtual_tokens=200_000_000_000)(tmp_path / "model")
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(LoadError, match="by its sizes"):
        peft_hooks.load(tmp_path / "model", device="cpu")
    assert time.perf_counter() - begun < 5
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_a_size_of_a_module_that_its_weights_have_not_is_refused(base: Path, tmp_path: Path, build: Any) -> None:
    model = with_hooks(build(base))
    peft_hooks.save(model, tmp_path / "model")
    edit("2_Dense/config.json", out_features=10**9)(tmp_path / "model")
    with pytest.raises(LoadError, match=r"2_Dense/config\.json: its out_features is 1000000000"):
        peft_hooks.load(tmp_path / "model", device="cpu")


def test_a_rank_of_lora_that_its_weights_have_not_is_refused(base: Path, tmp_path: Path, build: Any) -> None:
    model = with_hooks(build(base, "lora"), "lora")
    peft_hooks.save(model, tmp_path / "model")
    assert_refused(tmp_path / "model", tmp_path / "rank", edit(ADAPTER, r=10**8), "its r is")
    assert_refused(tmp_path / "model", tmp_path / "alpha", edit(ADAPTER, lora_alpha=1e400), "lora_alpha")


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory, build: Any) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    with quiet():
        model = build(base)
        put_second(model)
        peft_hooks.save(with_hooks(model), folder)
    return folder


def put_second(model: Any) -> None:
    from ..tools.methods import METHODS, backbone_of

    backbone_of(model).add_adapter("second", METHODS["prompt_tuning"](model, num_virtual_tokens=6))


def swap_words(at: Path) -> None:
    content = json.loads((at / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["unused3"], words["unused4"] = words["unused4"], words["unused3"]
    (at / "tokenizer.json").write_text(json.dumps(content))


def scale_second(at: Path) -> None:
    held = load_file(at / "second" / WEIGHTS)
    save_file({name: value * 1.01 for name, value in held.items()}, at / "second" / WEIGHTS)


POOLING = "1_Pooling/config.json"
OTHER: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (weights(lambda rows: rows * 1.001), f"{WEIGHTS}: it was changed since"),
    "weights of another adapter": (scale_second, f"second/{WEIGHTS}: it was changed since"),
    "words that no text has": (swap_words, r"tokenizer\.json: it was changed since"),
    "a setting that was measured": (
        lambda at: edit(
            "peft_hooks.json",
            transformers=[
                {**one, "settings": {"num_hidden_layers": 1}}
                for one in json.loads((at / "peft_hooks.json").read_text())["transformers"]
            ],
        )(at),
        "peft_hooks.json: .*peft_hooks.save.* changed",
    ),
    "the default prompt": (
        edit("config_sentence_transformers.json", default_prompt_name="passage"),
        r"config_sentence_transformers\.json: .*changed.* embeddings of a few texts",
    ),
    "another activation": (
        edit("2_Dense/config.json", activation_function="torch.nn.modules.activation.ReLU"),
        r"2_Dense/config\.json: it was changed since",
    ),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_makes_another_model_is_refused_by_name(saved: Path, tmp_path: Path, what: str) -> None:
    assert_refused(saved, tmp_path / "model", *OTHER[what])


HARMLESS: dict[str, Callable[[Path], None]] = {
    "the card": lambda at: (at / "README.md").write_text("mine"),
    "no card": lambda at: (at / "README.md").unlink(),
    "a prompt of another name": edit("config_sentence_transformers.json", prompts={"query": "search query : "}),
    "the ends of lines": lambda at: (at / "tokenizer.json").write_bytes(
        (at / "tokenizer.json").read_bytes().replace(b"\n", b"\r\n")
    ),
    "where the base is": edit(ADAPTER, base_model_name_or_path="nowhere"),
    "an option": edit("peft_hooks.json", options={"virtual_tokens": "auto", "log": True}),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_changes_no_embedding_may_be_changed(saved: Path, tmp_path: Path, base: Path, what: str) -> None:
    shutil.copytree(saved, tmp_path / "model")
    truth = vectors(peft_hooks.load(tmp_path / "model", device="cpu"))
    HARMLESS[what](tmp_path / "model")
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), truth) < 1e-6


@pytest.mark.parametrize(
    "options", [{"virtual_tokens": "strip"}, {"adapter_name": "second"}], ids=["options", "adapter"]
)
def test_what_was_asked_for_is_no_change(saved: Path, options: dict[str, Any]) -> None:
    peft_hooks.load(saved, device="cpu", **options)


def test_a_model_without_an_embedding_of_its_own_is_saved(base: Path, tmp_path: Path, build: Any) -> None:
    """Multitask prompt tuning with no task chosen: there is nothing to compare."""
    model = build(base, None)
    put_adapter(model, "multitask_prompt_tuning")
    peft_hooks.register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "peft_hooks.json").read_text())["embeddings"] == {}
    peft_hooks.load(tmp_path / "model", device="cpu", task_id=1)
