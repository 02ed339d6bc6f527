"""``export_onnx``: the graph gives what the hooked model gives, in other batches and lengths, padded on either side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import peft_hooks
from peft_hooks import UnsupportedModelError, export_onnx, prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.cli.main import main
from peft_hooks.testing import POOLING_MODES, assert_no_hooks_left
from peft_hooks.testing.models import pipeline_modules

from ..tools import cross
from ..tools.checks import OTHERS, RELEASE, TASK, needs, options_for
from ..tools.matrix import broken_in_peft
from ..tools.methods import Unavailable
from ..tools.wording import assert_says

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.slow


def run(folder: Path, texts: Sequence[Any], side: str = "right", **more: Any) -> Any:
    """Use the files as a process without PyTorch does."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(**{**tokenizer.padding, "direction": side})
    session = ort.InferenceSession(str(next(folder.rglob("*.onnx"))))
    encodings = tokenizer.encode_batch(list(texts))
    tensors = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
        **more,
    }
    return session.run(None, {node.name: tensors[node.name] for node in session.get_inputs()})[0]


def far(folder: Path, model: Any, texts: Sequence[str]) -> float:
    """Return the largest difference over batches of all, of one, of two and of many, padded left and right."""
    batches = [list(texts), list(texts[:1]), list(texts[1:3]), list(texts) * 5]
    return max(
        float(abs(run(folder, batch, side) - model.encode(batch, batch_size=len(batch))).max())
        for batch in batches
        for side in ("right", "left")
    )


@pytest.mark.parametrize(
    ("architecture", "method", "pooling", "side"),
    [
        ("bert", "prompt_tuning", "mean", "right"),
        ("bert", "prefix_tuning", "cls", "right"),
        ("bert", "cartridge", "max", "left"),
        ("roberta", "p_tuning", "cls", "left"),
        ("mpnet", "prompt_tuning", "weightedmean", "right"),
        ("deberta-v2", "prompt_tuning", "mean", "left"),
        ("modernbert", "p_tuning_lstm", ("mean", "max"), "right"),
        ("t5", "prompt_tuning", "mean", "right"),
        ("gpt2", "prefix_tuning", "lasttoken", "right"),
        ("llama", "multitask_prompt_tuning", "lasttoken", "left"),
        ("qwen3", "prefix_tuning_projection", "lasttoken", "left"),
        ("gemma3_text", "prefix_tuning", "mean", "right"),
        ("gemma3_text", "prompt_tuning", "mean", "left"),
    ],
)
def test_a_graph_is_the_hooked_model_on_shapes_that_it_never_saw(
    architecture: str, method: str, pooling: Any, side: str, tmp_path: Path, adapted: Any
) -> None:
    model = adapted(architecture, method, pooling=pooling, padding_side=side)
    needs(not broken_in_peft(architecture, method), f"PEFT itself cannot put a prefix on {architecture}")
    with prompt_mask_hooks(model, **options_for(method)):
        report = export_onnx(model, tmp_path / "model.onnx")
        texts = [text for text in OTHERS if text or architecture != "gpt2"]  # to whose tokenizer it is no token
        assert far(tmp_path, model, texts) < 1e-5
    assert report.largest_difference < 1e-5
    assert report.outputs == ("sentence_embedding",)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "tokenizer.json"}


@pytest.mark.parametrize("policy", ["pool", "ignore", "strip"])
def test_a_graph_keeps_to_the_policy_in_every_pooling(policy: Any, tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prompt_tuning", pooling=POOLING_MODES, padding_side="left")
    export_onnx(model, tmp_path / "model.onnx", virtual_tokens=policy)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert far(tmp_path, model, OTHERS) < 1e-5
    with prompt_mask_hooks(model, virtual_tokens="auto"):
        assert far(tmp_path, model, OTHERS) > 1e-3


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_prompt_that_is_left_out_is_told_to_the_graph(method: str, tmp_path: Path, adapted: Any) -> None:
    """Texts with prompts of different lengths, and with none, may be in one batch."""
    model = adapted("bert", method, include_prompt=False)
    model.prompts = {"query": "query : ", "long": "task search for passage : "}
    with prompt_mask_hooks(model):
        report = export_onnx(model, tmp_path / "model.onnx")
        about = json.loads(ort.InferenceSession(str(report.path)).get_modelmeta().custom_metadata_map["peft_hooks"])
        lengths = about["prompt_lengths"]
        assert report.inputs[-1] == "prompt_length"
        assert lengths == {"query": 3, "long": 6}
        texts = ["query : a cat", "task search for passage : the moon", "rain falls"]
        found = run(tmp_path, texts, prompt_length=np.array([lengths["query"], lengths["long"], 0]))
        for row, (text, prompt) in zip(found, [("a cat", "query : "), ("the moon", model.prompts["long"])]):
            assert abs(row - model.encode(text, prompt=prompt)).max() < 1e-5
        assert abs(found[2] - model.encode("rain falls")).max() < 1e-5


def test_a_prompt_that_cannot_be_left_out_is_refused_with_the_numbers(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prefix_tuning", pooling="weightedmean", include_prompt=False)
    try:
        export_onnx(model, tmp_path / "model.onnx")
    except UnsupportedModelError as error:
        assert "differs by" in str(error)
        assert "include_prompt=True" in str(error)
        assert not list(tmp_path.iterdir())
    else:  # before 6.2 the positions count from the first one in any case
        assert (tmp_path / "model.onnx").is_file()


def test_what_follows_pooling_is_in_the_graph(tmp_path: Path, adapted: Any) -> None:
    from sentence_transformers import SentenceTransformer

    modules, model = pipeline_modules(), adapted("bert", "prompt_tuning")
    dense = modules.Dense(32, 16)
    longer = SentenceTransformer(modules=[model[0], model[1], dense, modules.Normalize()], device="cpu")
    longer.truncate_dim = 8
    register_prompt_mask_hooks(longer)
    export_onnx(longer, tmp_path / "model.onnx")
    assert run(tmp_path, OTHERS).shape == (len(OTHERS), 8)
    assert far(tmp_path, longer, OTHERS) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "method", "labels"),
    [("bert", "prompt_tuning", 1), ("roberta", "prefix_tuning", 3), ("llama", "prompt_tuning", 3)],
)
def test_a_cross_encoder_gives_the_scores_of_predict(
    architecture: str, method: str, labels: int, tmp_path: Path
) -> None:
    try:
        model = cross.tiny_cross_encoder(architecture, num_labels=labels)
        cross.put_adapter(model, method)
    except Unavailable as error:
        pytest.skip(str(error))
    pairs = list(cross.PAIRS)
    try:
        report = export_onnx(model, tmp_path / "model.onnx")
    except UnsupportedModelError as error:  # transformers 4: RoBERTa's classifier does not pass a prefix on
        needs((architecture, method) != ("roberta", "prefix_tuning") or RELEASE >= (5, 4), str(error))
        raise
    with prompt_mask_hooks(model):
        right = model.predict(pairs, batch_size=len(pairs))
    assert report.outputs == ("scores",)
    for side in ("right", "left"):
        assert abs(run(tmp_path, pairs, side) - right).max() < 1e-5


@pytest.mark.skipif(RELEASE < (5, 0), reason="SparseEncoder came with Sentence Transformers 5.0")
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_sparse_encoder_gives_a_weight_for_each_word_where_its_length_is_no_constant(
    method: str, tmp_path: Path, sparse: Any, put_sparse: Any
) -> None:
    """SpladePooling goes over the positions in a loop of Python's in some releases, which makes their number one."""
    model = sparse("bert")
    put_sparse(model[0], method)
    try:
        export_onnx(model, tmp_path / "model.onnx")
    except UnsupportedModelError as error:
        assert "cannot export the backbone 'bert'" in str(error)
        assert "static shape" in str(error)
        assert not list(tmp_path.iterdir())
        return
    texts = list(OTHERS)
    with prompt_mask_hooks(model):
        right = model.encode(texts, batch_size=len(texts), convert_to_sparse_tensor=False).numpy()
    for side in ("right", "left"):
        assert abs(run(tmp_path, texts, side) - right).max() < 1e-5
    model.max_active_dims = 8
    with pytest.raises(UnsupportedModelError, match="max_active_dims=8 cannot be part of a graph"):
        export_onnx(model, tmp_path / "other.onnx")


@pytest.mark.skipif(RELEASE < (6, 0), reason="MultiVectorEncoder came with Sentence Transformers 6.0")
def test_a_multi_vector_encoder_is_refused(tmp_path: Path, multi_vector: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"MultiVectorEncoder .* serve it with peft_hooks\.load"):
        export_onnx(multi_vector(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_routes_are_refused(tmp_path: Path, adapted: Any, routed: Any) -> None:
    one, other = adapted("bert", "prompt_tuning"), adapted("bert", "prompt_tuning")
    model = routed([], [one[1]], query=[one[0]], document=[other[0]])
    with pytest.raises(UnsupportedModelError, match=r"a Router.* by the task of a text"):
        export_onnx(model, tmp_path / "model.onnx")


def test_a_folder_is_made_of_sentence_embeddings_only(tmp_path: Path) -> None:
    model = cross.tiny_cross_encoder("bert")
    cross.put_adapter(model, "prompt_tuning")
    with pytest.raises(UnsupportedModelError, match=r"only a SentenceTransformer can become a folder.* a file"):
        export_onnx(model, tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_a_default_prompt_is_the_callers_to_put_before_a_text(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prompt_tuning")
    model.prompts, model.default_prompt_name = {"query": "query : "}, "query"
    report = export_onnx(model, tmp_path / "model.onnx")
    about = json.loads(ort.InferenceSession(str(report.path)).get_modelmeta().custom_metadata_map["peft_hooks"])
    assert (about["default_prompt"], about["prompts"]) == ("query", {"query": "query : "})
    with prompt_mask_hooks(model):
        right = model.encode(["a cat", "the moon and the stars"])
    assert abs(run(tmp_path, ["query : a cat", "query : the moon and the stars"]) - right).max() < 1e-5


def test_the_command_says_what_was_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], adapted: Any) -> None:
    model = adapted("bert", "prefix_tuning", path=tmp_path / "base")
    handle = register_prompt_mask_hooks(model, virtual_tokens="ignore")
    peft_hooks.save(model, tmp_path / "tuned")
    (tmp_path / "out").mkdir()
    assert main(["export", str(tmp_path / "tuned"), str(tmp_path / "out" / "model.onnx")]) == 0
    said = capsys.readouterr()
    assert_says(said.out, "6 texts | 64 tokens | 8 batches")
    assert f"Wrote {tmp_path / 'out' / 'model.onnx'}" in said.err
    assert far(tmp_path / "out", model, OTHERS) < 1e-5
    handle.remove()
    assert main(["export", str(tmp_path / "base"), str(tmp_path / "out" / "base.onnx")]) == 2
    assert not (tmp_path / "out" / "base.onnx").exists()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything that is on a model and its modules, tensors by identity and version."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_forward") and "hooks" in name:
                value = list(value)
            elif name in ("_parameters", "_buffers"):
                value = {key: (id(each), getattr(each, "_version", 0)) for key, each in value.items()}
            elif name == "_modules":
                value = {key: id(each) for key, each in value.items()}
            elif not isinstance(value, (int, float, str, bool, type(None))):
                value = id(value)
            found[f"{path}.{name}"] = value
        config = getattr(module, "config", None)
        if hasattr(config, "to_dict"):
            found[f"{path} config"] = config.to_dict()
    return found


def rules_of(model: Any) -> dict[str, Any]:
    """Return what a model's tokenizer does, but for where it cuts and pads, which every call of encode sets anew."""
    rules: dict[str, Any] = json.loads(model.tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in rules.items() if name not in ("padding", "truncation")}


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_model_stays_as_it_was(architecture: str, hooked: bool, tmp_path: Path, adapted: Any) -> None:
    model = adapted(architecture, "prefix_tuning").train()
    model[1].eval()
    if hooked:
        register_prompt_mask_hooks(model)
    tokenizer = rules_of(model)
    before = state_of(model)
    export_onnx(model, tmp_path / "model.onnx")
    assert state_of(model) == before
    assert rules_of(model) == tokenizer
    if not hooked:
        assert_no_hooks_left(model)


class Breaks(nn.Module):
    """Runs, and cannot be exported: it looks at a value."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        if float(features["sentence_embedding"].sum()) > 1e9:
            raise ValueError
        return features


def test_what_cannot_be_exported_is_refused_in_words_and_leaves_nothing(tmp_path: Path, adapted: Any) -> None:
    from sentence_transformers import SentenceTransformer

    inner = adapted("bert", "prompt_tuning")
    model = SentenceTransformer(modules=[inner[0], inner[1], Breaks()], device="cpu").train()
    register_prompt_mask_hooks(model)
    before = state_of(model)
    with pytest.raises(UnsupportedModelError, match=r"cannot export .*'bert' of transformers"):
        export_onnx(model, tmp_path / "new" / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert state_of(model) == before


def test_a_tokenizer_that_no_file_says_is_refused_by_the_comparison(tmp_path: Path, adapted: Any) -> None:
    """Texts are lowered before the tokenizer by a module of old releases, or by a wrapper of one's own."""
    model = adapted("bert", "prompt_tuning")
    model.tokenizer.backend_tokenizer.normalizer = None  # the vocabulary has no capitals

    name = "preprocess" if hasattr(model[0], "preprocess") else "tokenize"
    original = getattr(model[0], name)
    setattr(model[0], name, lambda texts, *more, **named: original([str(t).lower() for t in texts], *more, **named))
    with pytest.raises(UnsupportedModelError, match=r"not the hooked model.* sentence_embedding differs by"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_only_what_an_export_wrote_is_replaced(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prompt_tuning")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(peft_hooks.SaveError, match=r"tokenizer\.json: .*not written by peft_hooks\.export_onnx"):
        export_onnx(model, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    (tmp_path / "tokenizer.json").unlink()
    export_onnx(model, tmp_path / "model.onnx")
    model.tokenizer.padding_side = "left"
    export_onnx(model, tmp_path / "model.onnx")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).padding["direction"] == "left"


def test_a_folder_has_all_that_sentence_transformers_reads(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prompt_tuning", pooling=("mean", "max"))
    model.prompts = {"query": "query : "}
    with prompt_mask_hooks(model):
        report = export_onnx(model, tmp_path / "served")
        found = run(tmp_path / "served", OTHERS)
        assert abs(found - model.encode(list(OTHERS))).max() < 1e-5
    assert report.path == tmp_path / "served" / "onnx" / "model.onnx"
    assert report.outputs == ("sentence_embedding", "last_hidden_state")
    pooling = json.loads((tmp_path / "served" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 64
    assert json.loads((tmp_path / "served" / "config_sentence_transformers.json").read_text())["prompts"] == {
        "query": "query : "
    }


def test_multitask_prompt_tuning_needs_a_task(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "multitask_prompt_tuning")
    export_onnx(model, tmp_path / "model.onnx", task_id=TASK)
    with prompt_mask_hooks(model, task_id=TASK):
        assert far(tmp_path, model, OTHERS) < 1e-5
    with prompt_mask_hooks(model, task_id=0):
        assert far(tmp_path, model, OTHERS) > 1e-3


def test_half_precision_that_onnx_runtime_cannot_run_is_refused_in_words(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prompt_tuning").to(torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match=r"weights are torch\.bfloat16 .*model\.float\(\)"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
