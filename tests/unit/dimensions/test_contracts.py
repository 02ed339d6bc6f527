"""Ready-made contracts, on Sentence Transformers' own modules in real pipelines of any release."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import DimensionError, assert_dimensions, contract_of, prompt_mask_hooks
from peft_hooks.compat.st_modules import KINDS, kind_of, steps_of
from peft_hooks.dimensions.contracts import checks
from peft_hooks.testing import TEXTS, assert_no_hooks_left, tiny_model
from peft_hooks.testing.models import pipeline_modules

from ...tools.checks import RELEASE, needs
from ...tools.wording import assert_says

BATCH, WIDTH = len(TEXTS), 32


def own(name: str) -> Any:
    """Return one of Sentence Transformers' classes, or skip where the release does not have it."""
    for home in ("sparse_encoder.modules", "sparse_encoder.models", "multi_vector_encoder.modules"):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(f"sentence_transformers.{home}"), name, None)
            if found is not None:
                return found
    found = getattr(pipeline_modules(), name, None)
    return found if found is not None else pytest.skip(f"this release has no {name}")


def built(*modules: nn.Module) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=list(modules), device="cpu").eval()


class Put(nn.Module):
    """Puts tensors into the features, as a module that is wrong would."""

    def __init__(self, **tensors: Any) -> None:
        super().__init__()
        self.tensors = tensors

    def forward(self, features: Any) -> Any:
        features.update({name: make(features) if callable(make) else make for name, make in self.tensors.items()})
        return features


class Broken:
    """Changes what a module returns while a block runs, before the checks see it."""

    def __init__(self, module: nn.Module, **changes: Any) -> None:
        self.module, self.changes = module, changes

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        for name, change in self.changes.items():
            if change is None:
                del output[name]
            else:
                output[name] = change(output[name])

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        handle = self.module.register_forward_hook(self)
        try:
            yield
        finally:
            handle.remove()


def encode(model: Any) -> Tensor:
    return torch.as_tensor(model.encode(list(TEXTS), convert_to_tensor=True, batch_size=BATCH))


def seq_of(model: Any) -> int:
    return int(model.tokenize(list(TEXTS))["input_ids"].size(1))


def message(model: Any, **fault: Any) -> str:
    """Return what a fault in the pipeline is told as; ``at`` is the number of the module that it befalls."""
    with contextlib.ExitStack() as stack:
        if fault:
            stack.enter_context(Broken(model[fault.pop("at")], **fault).on())
        stack.enter_context(assert_dimensions(model))
        with pytest.raises(DimensionError) as caught:
            encode(model)
    assert_no_hooks_left(model)
    return str(caught.value)


def right(model: Any, width: int) -> None:
    """Assert that nothing is found in a pipeline that is right, and that its embeddings stay the same."""
    bare = encode(model)
    assert bare.shape == (BATCH, width)
    with assert_dimensions(model):
        for _ in range(2):
            assert torch.equal(encode(model), bare)
    assert_no_hooks_left(model)


# -- Transformer and Pooling -------------------------------------------------------------------------------------------


def test_a_token_that_a_transformer_drops_is_told_with_its_mask() -> None:
    model = tiny_model()
    right(model, WIDTH)
    seq = seq_of(model)
    assert_says(
        message(model, at=0, token_embeddings=lambda x: x[:, 1:]),
        f"Transformer '0' output | attention_mask | [{BATCH}, {seq}] | seq = {seq - 1}",
        f"token_embeddings [{BATCH}, {seq - 1}, {WIDTH}] | 1 more",
    )


def test_a_row_that_a_transformer_loses_is_told() -> None:
    model = tiny_model()
    fault = {"token_embeddings": lambda x: x[1:], "attention_mask": lambda x: x[1:]}
    assert_says(
        message(model, at=0, **fault),
        f"Transformer '0' output | input_ids | [{BATCH}, {seq_of(model)}] | batch = {BATCH - 1}",
        f"token_embeddings [{BATCH - 1}, {seq_of(model)}, {WIDTH}] | 1 more",
    )


@pytest.mark.parametrize("modes", ["mean", "cls", ("cls", "max", "mean")])
def test_a_pooling_returns_one_part_for_each_mode(modes: Any) -> None:
    model = tiny_model(pooling=modes)
    count = 1 if isinstance(modes, str) else len(modes)
    right(model, count * WIDTH)
    assert_says(
        message(model, at=1, sentence_embedding=lambda x: x[:, 1:]),
        f"Pooling '1' output | sentence_embedding | [{BATCH}, {count * WIDTH - 1}]",
        f"{count} mode | {WIDTH} | {count * WIDTH}",
    )


def test_a_declared_width_that_no_weight_has_is_no_fault() -> None:
    """A pipeline of Sentence Transformers' own tests: a Pooling declared 16 wide behind a CNN that gives 48."""
    transformer, _ = tiny_model()
    right(built(transformer, own("CNN")(WIDTH, 16, [1, 3, 5]), own("Pooling")(16)), 48)
    model = built(transformer, own("Pooling")(WIDTH), own("Dense")(WIDTH, 16), own("LayerNorm")(16))
    model[2].in_features = model[2].out_features = model[3].dimension = 99
    right(model, 16)


def test_a_mode_that_is_added_while_the_checks_are_on_is_no_fault() -> None:
    model = tiny_model(pooling="mean")
    with assert_dimensions(model):
        encode(model)
        model[1] = tiny_model(pooling=("max", "mean"))[1]
        with assert_dimensions(model):
            assert encode(model).shape == (BATCH, 2 * WIDTH)
            change_modes(model[1])
            assert encode(model).shape == (BATCH, WIDTH)


def change_modes(pooling: Any) -> None:
    if hasattr(pooling, "pooling_mode_max_tokens"):
        pooling.pooling_mode_max_tokens = False
    else:
        pooling.pooling_mode = "mean"


def test_a_pooling_that_is_given_other_tokens_is_told() -> None:
    transformer, pooling = tiny_model()
    seq = seq_of(built(transformer, pooling))
    mask = Put(attention_mask=lambda features: features["attention_mask"][:, 1:])
    assert_says(
        message(built(transformer, mask, pooling)),
        f"Pooling '2' input | attention_mask | [{BATCH}, {seq - 1}]",
        f"seq = {seq} | token_embeddings [{BATCH}, {seq}, {WIDTH}]",
        "1 fewer",
    )
    whole = Put(token_embeddings=lambda features: features["token_embeddings"].long())
    assert_says(
        message(built(transformer, whole, pooling)),
        f"Pooling '2' input | token_embeddings | i64 [{BATCH}, {seq}, {WIDTH}] | be float",
    )


def test_features_of_flash_attention_are_laid_out_otherwise_and_not_checked() -> None:
    needs(RELEASE >= (5, 4), "has no such layout")
    _, pooling = tiny_model()
    lengths = torch.tensor([0, 3, 7], dtype=torch.int32)
    features = {"token_embeddings": torch.randn(1, 7, WIDTH), "cu_seq_lens_q": lengths}
    model = built(tiny_model()[0], pooling)
    with assert_dimensions(model):
        found = model[1]({**features, "seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1, 1]])})
    assert found["sentence_embedding"].shape == (2, WIDTH)


def test_virtual_tokens_are_named_as_the_cause(plain: Any, put: Any) -> None:
    model = plain()
    put(model, "prompt_tuning", num_virtual_tokens=3)
    if (3, 3) <= RELEASE < (6, 2):
        with assert_dimensions(model):
            encode(model)  # the release extends the mask itself
        return
    assert_says(
        message(model),
        "3 fewer | 3 = num_virtual_tokens | PROMPT_TUNING | 'default'",
        "peft_hooks.register_prompt_mask_hooks(model)",
    )


# -- after Pooling -----------------------------------------------------------------------------------------------------


def test_dense_takes_and_returns_its_declared_widths() -> None:
    modules = pipeline_modules()
    transformer, pooling = tiny_model()
    model = built(transformer, pooling, modules.Dense(WIDTH, 16), modules.Dense(16, 8), modules.Normalize())
    right(model, 8)
    assert_says(
        message(built(transformer, pooling, modules.Dense(WIDTH + 1, 16))),
        f"Dense '2' input | sentence_embedding | [{BATCH}, {WIDTH}] | in_features = {WIDTH + 1}",
    )
    assert_says(
        message(model, at=2, sentence_embedding=lambda x: x.T),
        f"Dense '2' output | sentence_embedding | [16, {BATCH}] | batch = {BATCH}",
        f"token_embeddings [{BATCH}, {seq_of(model)}, {WIDTH}] | Transformer '0' | {16 - BATCH} more",
    )
    assert_says(message(model, at=1, sentence_embedding=None), "Dense '2' input | 'sentence_embedding'")


def test_dense_names_what_is_there_when_its_feature_is_not() -> None:
    transformer, _ = tiny_model()
    model = built(transformer, pipeline_modules().Dense(WIDTH, 16))
    found = message(model)
    assert_says(found, "Dense '1' input | 'sentence_embedding'")
    assert f"token_embeddings [{BATCH}, {seq_of(model)}, {WIDTH}]" in found


def test_dense_on_tokens_keeps_their_number() -> None:
    needs(RELEASE >= (5, 4), "Dense takes sentence embeddings only")
    modules = pipeline_modules()
    transformer, _ = tiny_model()
    dense = modules.Dense(WIDTH, 8, module_input_name="token_embeddings")
    model = built(transformer, dense, modules.Pooling(8))
    right(model, 8)
    seq = seq_of(model)
    assert_says(
        message(model, at=1, token_embeddings=lambda x: x[:, :-1]),
        f"Dense '1' output | [{BATCH}, {seq - 1}, 8] | seq = {seq} | token_embeddings [{BATCH}, {seq}, {WIDTH}]",
        "Transformer '0' | 1 fewer",
    )


@pytest.mark.parametrize("name", ["Normalize", "Dropout", "LayerNorm"])
def test_what_keeps_the_width_is_held_to_it(name: str) -> None:
    model = built(*tiny_model(), own(name)(WIDTH) if name == "LayerNorm" else own(name)())
    right(model, WIDTH)
    known = (
        "dimension = 32"
        if name == "LayerNorm"
        else (f"width = {WIDTH} | sentence_embedding [{BATCH}, {WIDTH}] | 1 fewer")
    )
    assert_says(
        message(model, at=2, sentence_embedding=lambda x: x[:, 1:]),
        f"{name} '2' output | sentence_embedding | [{BATCH}, {WIDTH - 1}] | {known}",
    )


# -- between Transformer and Pooling -----------------------------------------------------------------------------------


def test_a_cnn_keeps_the_number_of_tokens() -> None:
    transformer, _ = tiny_model()
    cnn, pooling = own("CNN")(WIDTH, 4, [1, 3]), own("Pooling")(8)
    right(built(transformer, cnn, pooling), 8)
    model = built(transformer, own("CNN")(WIDTH, 8, [2]), pooling)  # an even kernel loses a token
    seq = seq_of(model)
    assert_says(
        message(model),
        f"CNN '1' output | [{BATCH}, {seq - 1}, 8] | seq = {seq}",
        f"token_embeddings [{BATCH}, {seq}, {WIDTH}] | Transformer '0'",
        "1 fewer",
    )
    assert_says(
        message(built(transformer, own("CNN")(16, 8, [1]), pooling)),
        f"CNN '1' input | token_embeddings | [{BATCH}, {seq}, {WIDTH}] | in_channels = 16",
    )


def lengths(features: Any) -> Tensor:
    return features["attention_mask"].sum(dim=1)


def test_an_lstm_needs_the_lengths_of_the_texts() -> None:
    transformer, _ = tiny_model()
    lstm, pooling = own("LSTM")(WIDTH, 5), own("Pooling")(10)
    right(built(transformer, Put(sentence_lengths=lengths), lstm, pooling), 10)
    found = message(built(transformer, lstm, pooling))
    assert_says(found, "LSTM '1' input | 'sentence_lengths'")
    short = Put(sentence_lengths=lambda features: lengths(features) - 1)
    model = built(transformer, short, lstm, pooling)
    seq = seq_of(model)
    assert_says(
        message(model),
        f"LSTM '2' output | [{BATCH}, {seq - 1}, 10] | seq = {seq}",
        f"token_embeddings [{BATCH}, {seq}, {WIDTH}] | 1 fewer",
    )


def test_word_weights_need_an_id_for_every_row() -> None:
    transformer, pooling = tiny_model()
    weights = own("WordWeights")([str(number) for number in range(79)], {"3": 2.0})
    model = built(transformer, weights, pooling)
    right(model, WIDTH)
    seq = seq_of(model)
    ids = Put(input_ids=lambda features: features["input_ids"][:, 1:])
    assert_says(
        message(built(transformer, ids, weights, pooling)),
        f"WordWeights '2' input | input_ids | [{BATCH}, {seq - 1}]",
        f"seq = {seq} | token_embeddings [{BATCH}, {seq}, {WIDTH}]",
        "1 fewer",
    )
    assert_says(
        message(model, at=1, token_weights_sum=lambda x: x[1:]),
        f"WordWeights '1' output | token_weights_sum | [{BATCH - 1}] | batch = {BATCH}",
        f"token_embeddings [{BATCH}, {seq}, {WIDTH}] | Transformer '0' | 1 fewer",
    )


def layered(layers: int, start: int = 1, hidden: bool = True) -> Any:
    """Return a pipeline with a weighted mean of the hidden states: of the embeddings and two layers there are."""
    transformer, pooling = tiny_model(output_hidden_states=hidden)
    weighted = own("WeightedLayerPooling")(WIDTH, num_hidden_layers=layers, layer_start=start)
    return built(transformer, weighted, pooling)


def test_weighted_layer_pooling_takes_its_declared_number_of_layers() -> None:
    right(layered(2), WIDTH)
    model = layered(4)
    seq = seq_of(model)
    assert_says(
        message(model),
        f"WeightedLayerPooling '1' input | all_layer_embeddings | 3 x [{BATCH}, {seq}, {WIDTH}] | layers = 5",
    )


def test_weighted_layer_pooling_without_layers_is_no_weighted_mean() -> None:
    """Since 5.4 it lets the last layer pass without a word."""
    found = message(layered(2, hidden=False))
    assert_says(found, "WeightedLayerPooling '1' input | 'all_layer_embeddings'")


def test_word_embeddings_begin_a_pipeline() -> None:
    from sentence_transformers.models.tokenizer import WhitespaceTokenizer

    words = sorted({word for text in TEXTS for word in text.split()})
    tokenizer = WhitespaceTokenizer(words, stop_words=[], do_lower_case=True)
    embeddings = own("WordEmbeddings")(tokenizer, torch.randn(len(words), 6))
    model = built(embeddings, own("LSTM")(6, 4), own("Pooling")(8))
    right(model, 8)
    assert_says(
        message(model, at=0, sentence_lengths=lambda x: x[1:]),
        f"WordEmbeddings '0' output | sentence_lengths | [{BATCH - 1}] | batch = {BATCH} | input_ids",
    )


# -- SPLADE, multi-vector ----------------------------------------------------------------------------------------------


def test_splade_pooling_returns_one_number_for_each_word_of_the_vocabulary() -> None:
    transformer, _ = tiny_model()
    splade = own("SpladePooling")()
    model = built(transformer, splade)
    right(model, WIDTH)
    assert contract_of(splade) == (
        {"token_embeddings!": "float: batch seq ?vocabulary", "attention_mask": "batch seq"},
        {"sentence_embedding": "float: batch ?vocabulary"},
    )
    fresh = built(transformer, own("SpladePooling")())
    assert_says(
        message(fresh, at=1, sentence_embedding=lambda x: x[:, 1:]),
        f"SpladePooling '1' output | sentence_embedding | [{BATCH}, 31] | vocabulary = 32",
        f"token_embeddings [{BATCH}, {seq_of(model)}, 32] | 1 fewer",
    )


def test_a_multi_vector_mask_fits_its_tokens() -> None:
    mask = own("MultiVectorMask")()
    transformer, pooling = tiny_model()
    model = built(transformer, mask, pooling)
    right(model, WIDTH)
    seq = seq_of(model)
    assert_says(
        message(model, at=1, attention_mask=lambda x: x[:, 1:]),
        f"MultiVectorMask '1' output | attention_mask | [{BATCH}, {seq - 1}] | seq = {seq}",
        f"token_embeddings [{BATCH}, {seq}, {WIDTH}] | Transformer '0' | 1 fewer",
    )


# -- Router ------------------------------------------------------------------------------------------------------------


def routed(query: int, document: int) -> Any:
    needs(RELEASE >= (5, 0), "has no Router")
    dense = own("Dense")
    transformer, pooling = tiny_model()
    router = own("Router")({"query": [dense(WIDTH, query)], "document": [dense(WIDTH, 4), dense(4, document)]})
    return built(transformer, pooling, router)


def test_every_route_is_checked_and_the_router_by_what_its_routes_agree_on() -> None:
    model = routed(8, 8)
    right(model, 8)
    with assert_dimensions(model):
        for task in ("query", "document", "query"):
            assert model.encode(list(TEXTS), task=task).shape == (BATCH, 8)
    assert contract_of(model[2]) == ({}, {"sentence_embedding": "float: batch ?out_features=8"})
    assert_says(
        message(model, at=2, sentence_embedding=lambda x: x[1:]),
        f"Router '2' output | sentence_embedding | [{BATCH - 1}, 8] | batch = {BATCH} | token_embeddings",
    )


def test_a_router_whose_routes_differ_has_no_contract_of_its_own() -> None:
    model = routed(8, 6)
    assert contract_of(model[2]) is None
    with assert_dimensions(model):
        assert model.encode(list(TEXTS), task="query").shape == (BATCH, 8)
        assert model.encode(list(TEXTS), task="document").shape == (BATCH, 6)


def test_routes_with_pipelines_of_their_own_are_forwards_of_their_own() -> None:
    """One route after the other, with another number of texts."""
    needs(RELEASE >= (5, 0), "has no Router")
    routes = {"query": list(tiny_model()), "document": list(tiny_model(num_hidden_layers=1))}
    model = built(own("Router")(routes), own("Normalize")())
    with assert_dimensions(model):
        for task, count in (("query", 3), ("document", 2), ("query", 1)):
            assert model.encode(list(TEXTS[:count]), task=task).shape == (count, WIDTH)
    assert [path for path, _ in steps_of(model)] == [
        "0.sub_modules.query.0",
        "0.sub_modules.query.1",
        "0.sub_modules.document.0",
        "0.sub_modules.document.1",
        "1",
    ]


# -- which modules -----------------------------------------------------------------------------------------------------


def test_a_subclass_has_the_contract_while_it_has_the_forward() -> None:
    dense = own("Dense")

    class Same(dense):  # type: ignore[misc,valid-type]
        pass

    class Other(dense):  # type: ignore[misc,valid-type]
        def forward(self, features: Any) -> Any:
            return features

    assert contract_of(Same(4, 2)) == contract_of(dense(4, 2))
    assert contract_of(Other(4, 2)) is None
    assert kind_of(Other(4, 2)) is None


def test_what_is_not_of_sentence_transformers_has_none() -> None:
    class Pooling(nn.Module):
        def forward(self, features: Any) -> Any:
            return features

    assert contract_of(Pooling()) is None
    assert contract_of(nn.LayerNorm(4)) is None


def test_every_kind_has_a_contract() -> None:
    from peft_hooks.dimensions.contracts import _CONTRACTS

    assert set(_CONTRACTS) == KINDS


def test_a_module_of_an_unknown_kind_may_change_any_dimension() -> None:
    class Halves(nn.Module):
        def forward(self, features: Any) -> Any:
            return {
                key: value[:, ::2] for key, value in features.items() if key in ("token_embeddings", "attention_mask")
            }

    transformer, pooling = tiny_model()
    right(built(transformer, Halves(), pooling), WIDTH)


def test_a_forward_begins_with_the_first_module_and_every_transformer() -> None:
    model = tiny_model(normalize=True)
    assert [(path, hook._starts, hook._ends) for path, _, hook in checks(model)] == [
        ("0", True, False),
        ("1", False, False),
        ("2", False, False),
    ]


def test_modules_that_are_called_alone_are_forwards_of_their_own() -> None:
    model = tiny_model()
    with assert_dimensions(model):
        encode(model)
        for batch in (2, 3):
            features = {"token_embeddings": torch.zeros(batch, 5, WIDTH), "attention_mask": torch.ones(batch, 5)}
            assert model[1](features)["sentence_embedding"].shape == (batch, WIDTH)


# -- with the mask hooks -----------------------------------------------------------------------------------------------


def test_the_mask_hooks_check_every_module_that_has_a_contract(plain: Any, put: Any) -> None:
    model = plain(normalize=True)
    put(model, "prompt_tuning", num_virtual_tokens=3)
    with prompt_mask_hooks(model) as handle:
        assert [name for name in handle.registry if name.startswith("check:")] == ["check:0", "check:1", "check:2"]
        encode(model)
    with Broken(model[2], sentence_embedding=lambda x: x[:, 1:]).on(), prompt_mask_hooks(model):
        with pytest.raises(DimensionError) as caught:
            encode(model)
    assert str(caught.value).startswith("Normalize '2' output: sentence_embedding is ")


def test_the_mask_hooks_check_nothing_when_told_so(plain: Any, put: Any) -> None:
    model = plain()
    put(model, "prompt_tuning")
    with prompt_mask_hooks(model, check=False) as handle:
        assert not [name for name in handle.registry if name.startswith("check:")]


@pytest.mark.parametrize("policy", ["auto", "pool", "ignore", "strip"])
def test_weighted_layers_hold_with_virtual_tokens_where_there_are_layers(policy: Any, put: Any) -> None:
    """On some releases PEFT keeps the layers back: then the last one would pass for their mean without a word."""
    model = layered(2)
    put(model, "prompt_tuning", num_virtual_tokens=3)
    try:
        with prompt_mask_hooks(model, virtual_tokens=policy):
            assert encode(model).shape == (BATCH, WIDTH)
    except DimensionError as error:
        assert RELEASE >= (5, 1)
        assert_says(str(error), "WeightedLayerPooling '1' input | 'all_layer_embeddings'")
