"""What a merged model writes: a folder that releases from 2.7 on and other engines read, whatever wrote it."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import merge_and_unload
from peft_hooks.checkpoints.rope import with_flat_rope
from peft_hooks.testing.models import pipeline_modules

from ...tools.checks import RELEASE, distance, encoded, needs, with_pooling
from ...tools.methods import VIRTUAL_TOKENS
from ...tools.tokenizers import model_with, trained

OLD = "sentence_transformers.models."


def saved(model: Any, folder: Path) -> Path:
    """Encode, which leaves its marks on a tokenizer, merge and save."""
    merged = merge_and_unload(model)
    merged.encode(["a cat", "the dog sleeps"])
    merged.save_pretrained(str(folder))
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_modules_are_where_every_release_finds_them(tmp_path: Path, adapted: Any) -> None:
    """By the paths that they had before 5.4, with the options that they had."""
    model = adapted("bert")
    modules = pipeline_modules()
    dense = modules.Dense(32, 12, activation_function=nn.Tanh())
    kind: Any = type(model)
    model = kind(modules=[model[0], model[1], dense, modules.LayerNorm(12), modules.Normalize()], device="cpu")
    folder = saved(model, tmp_path / "merged")
    listed = read(folder / "modules.json")
    names = ["Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"]
    if RELEASE >= (3, 0):  # 2.7 has a module for each class: `models.Dense` with the class inside
        assert [entry["type"] for entry in listed] == [OLD + name for name in names]
    pooling = read(folder / listed[1]["path"] / "config.json")
    assert pooling["word_embedding_dimension"] == 32 and pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False and "pooling_mode" not in pooling
    assert set(read(folder / listed[2]["path"] / "config.json")) == {
        "in_features",
        "out_features",
        "bias",
        "activation_function",
    }
    options = read(folder / "sentence_bert_config.json")
    assert options == {"max_seq_length": 64 + VIRTUAL_TOKENS, "do_lower_case": False}
    for entry in listed[2:4]:
        assert (folder / entry["path"] / "pytorch_model.bin").is_file()
    again = kind(str(folder), device="cpu")
    assert distance(encoded(again), encoded(merge_and_unload(model))) <= 1e-6


def test_a_tokenizer_says_nothing_of_where_to_cut_and_how_to_pad(tmp_path: Path, adapted: Any) -> None:
    """Other engines obey what its last call had set: a text's embedding depended on it."""
    folder = saved(adapted("llama", padding_side="left"), tmp_path / "merged")
    state, settings = read(folder / "tokenizer.json"), read(folder / "tokenizer_config.json")
    assert state["truncation"] is None and state["padding"] is None
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "backend" not in settings
    assert settings["model_max_length"] == 64 + VIRTUAL_TOKENS and settings["padding_side"] == "left"
    assert read(folder / "special_tokens_map.json")["pad_token"] == "[PAD]"


def test_merges_are_written_as_tokenizers_before_0_20_read_them(tmp_path: Path, put: Any) -> None:
    """Later ones write pairs, which earlier ones cannot read, and read both."""

    model = model_with("gpt2", trained("byte-level"), "mean")
    put(model, "prompt_tuning")
    folder = saved(model, tmp_path / "merged")
    merges = read(folder / "tokenizer.json")["model"]["merges"]
    assert merges and all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "phi3"])
def test_a_rotary_theta_is_where_transformers_4_looks(architecture: str, tmp_path: Path, adapted: Any) -> None:
    """It takes a default else, and the embeddings are others without a word."""
    import transformers

    of_5 = int(transformers.__version__.split(".")[0]) >= 5
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}} if of_5 else {"rope_theta": 500.0}
    model = adapted(architecture, **theta)
    folder = saved(model, tmp_path / "merged")
    assert read(folder / "config.json")["rope_theta"] == 500.0
    kind: Any = type(model)
    assert distance(encoded(kind(str(folder), device="cpu")), encoded(merge_and_unload(model))) <= 1e-6


def test_flat_rope_of_every_shape() -> None:
    """One for all layers, scaled, of a part of each head; one for each kind of layer."""
    one = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 2.0, "factor": 4.0, "partial_rotary_factor": 0.5}}
    flat = with_flat_rope(one)
    assert flat["rope_theta"] == 2.0 and flat["partial_rotary_factor"] == 0.5
    assert flat["rope_scaling"]["rope_type"] == "yarn" and flat["rope_scaling"]["factor"] == 4.0
    assert flat["rope_parameters"] == one["rope_parameters"]
    full, local = {"rope_type": "default", "rope_theta": 3.0}, {"rope_type": "default", "rope_theta": 5.0}
    by_layer = with_flat_rope({"rope_parameters": {"full_attention": full, "sliding_attention": local}})
    assert by_layer["rope_theta"] == by_layer["global_rope_theta"] == 3.0
    assert by_layer["rope_local_base_freq"] == by_layer["local_rope_theta"] == 5.0
    assert with_flat_rope({"rope_theta": 7.0, "rope_parameters": full})["rope_theta"] == 7.0
    assert with_flat_rope({"hidden_size": 4}) == {"hidden_size": 4}


def test_several_poolings_in_an_order_of_their_own_stay(tmp_path: Path, adapted: Any) -> None:
    """Flags have no order; those in the usual one are flags."""
    folder = saved(with_pooling(adapted("bert"), ("mean", "lasttoken")), tmp_path / "usual")
    config = read(folder / "1_Pooling" / "config.json")
    assert config["pooling_mode_mean_tokens"] and config["pooling_mode_lasttoken"] and "pooling_mode" not in config
    needs(RELEASE >= (5, 4), "modes have no order before 5.4")
    base = adapted("bert")
    kind: Any = type(base)
    other = kind(modules=[base[0], pipeline_modules().Pooling(32, ("lasttoken", "mean"))], device="cpu")
    folder = saved(other, tmp_path / "other")
    assert read(folder / "1_Pooling" / "config.json")["pooling_mode"] == ["lasttoken", "mean"]
    assert distance(encoded(kind(str(folder), device="cpu")), encoded(merge_and_unload(other))) <= 1e-6


def test_a_merged_model_can_be_pickled_and_copied(adapted: Any) -> None:
    """As a SentenceTransformer, which a process without this library reads; a copy is saved as it is."""
    model = adapted("bert")
    merged = merge_and_unload(model)
    again = pickle.loads(pickle.dumps(merged))
    assert torch.equal(encoded(again), encoded(merged))
    assert type(again) is type(model)
    assert type(merged).__name__ == type(model).__name__ and isinstance(merged, type(model))
    copied = copy.deepcopy(merged)
    assert type(copied) is type(merged) and torch.equal(encoded(copied), encoded(merged))
