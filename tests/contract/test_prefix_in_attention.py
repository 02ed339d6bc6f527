"""Contract: a prefix on encoders that keep no keys and values is what it is on those that do, put in by hooks alone."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import (
    HookError,
    PutPrefixInAttention,
    UnsupportedModelError,
    add_prompt_adapter,
    check_padding_invariance,
    diagnose,
    load,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    save,
    without_adapter,
)
from peft_hooks.prompts.prefix_probe import places_of_prefix
from peft_hooks.prompts.prefix_proof import put_in

from ..tools.attention_by_hand import rows_behind
from ..tools.checks import (
    RELEASE,
    TEXTS,
    assert_right,
    break_graph,
    distance,
    encoded,
    expected,
    interrupt,
    needs,
    refused,
)
from ..tools.methods import NO_CACHE, VIRTUAL_TOKENS, backbone_of, prefix_tuning, put_backbone
from ..tools.miswired import Reversed, Swapped
from ..tools.reference import float64_by_default, key_values, plain_backbone
from ..tools.training import weights
from ..tools.wording import assert_says

METHODS = ("prefix_tuning", "prefix_tuning_projection", "cartridge")


# --- right, whatever the config ---------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "one layer": ("mpnet", {"num_hidden_layers": 1}),
    "three layers": ("distilbert", {"n_layers": 3}),
    "a layer that all share, three times": ("albert", {"num_hidden_layers": 3}),
    "a layer that all share, once": ("albert", {"num_hidden_layers": 1}),
    "positions projected as keys are": ("deberta-v2", {"share_att_key": True}),
    "positions of three texts' length": ("deberta-v2", {"share_att_key": True, "max_relative_positions": 8}),
    "a window shorter than a text": ("modernbert", {"local_attention": 8, "num_hidden_layers": 4}),
    "a window shorter than the prefix": ("modernbert", {"local_attention": 4, "num_hidden_layers": 4}),
    "heads narrower than the rows": ("t5", {"d_kv": 4}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefix_is_right_in_any_size(name: str, adapted: Any) -> None:
    """Alone and in a batch, as computed by hand."""
    architecture, config = CONFIGS[name]
    model = adapted(architecture, "prefix_tuning", **config)
    with prompt_mask_hooks(model):
        assert_right(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", NO_CACHE)
def test_every_prefix_is_right_in_training_too(architecture: str, method: str, adapted: Any) -> None:
    """``train()`` of a backbone without dropout, with gradients on."""
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
    model = adapted(architecture, method, **drop, **({"dropout_rate": 0.0} if architecture == "t5" else {}))
    truth = expected(model)
    with prompt_mask_hooks(model):
        found = model.train()(dict(model.tokenize(list(TEXTS))))["sentence_embedding"]
    assert found.requires_grad
    assert distance(found.detach(), truth) <= 1e-4


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_where_there_is_a_cache_hooks_would_give_the_same(architecture: str, adapted: Any) -> None:
    """What is put in by hooks and what PEFT hands over as a cache are one thing."""
    model = adapted(architecture, "prefix_tuning")
    with prompt_mask_hooks(model) as handle:
        truth = encoded(model)
        assert not [name for name in handle.registry if name.startswith("prefix:")]
    backbone = backbone_of(model).base_model
    from peft_hooks.prompts.prefix_places import find_places

    with prompt_mask_hooks(model), put_in(backbone, find_places(backbone, 2)):
        assert distance(encoded(model), truth) <= 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", NO_CACHE)
def test_attention_that_is_switched_later_is_right(architecture: str, attention: str, adapted: Any) -> None:
    """A way to compute it is no part of what was measured."""
    model = adapted(architecture, "prefix_tuning")
    backbone = backbone_of(model).base_model
    needs(hasattr(backbone, "set_attn_implementation"), "transformers cannot switch it")
    with prompt_mask_hooks(model):
        try:
            backbone.set_attn_implementation(attention)
        except ValueError as error:
            pytest.skip(str(error))
        assert_right(model)


# --- what comes out beside the rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", NO_CACHE)
def test_hidden_states_attentions_and_what_is_pooled_are_the_texts(architecture: str, adapted: Any) -> None:
    """As many rows as tokens everywhere; an attention has columns for the prefix."""
    model = adapted(architecture, "prefix_tuning")
    peft_model = backbone_of(model)
    tokens = model.tokenizer([TEXTS[1]], return_tensors="pt")
    given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    length = given["input_ids"].size(1)
    with prompt_mask_hooks(model), torch.no_grad():
        asked = {"output_hidden_states": True}
        if getattr(peft_model.config, "_attn_implementation", "eager") == "eager":
            asked["output_attentions"] = True
        output = peft_model(**given, **asked)
    assert output.last_hidden_state.shape[1] == length
    assert [state.shape[1] for state in output.hidden_states] == [length] * 3
    if architecture != "modernbert":  # of which the last one was not normed up to 4.57
        assert distance(output.hidden_states[-1], output.last_hidden_state) <= 1e-6
    for attention in output.get("attentions") or ():
        assert attention.shape[2:] == (length, length + VIRTUAL_TOKENS)
    if output.get("pooler_output") is not None:
        pooler = peft_model.base_model.pooler
        again = pooler(output.last_hidden_state[:, 0] if architecture == "albert" else output.last_hidden_state)
        assert distance(output.pooler_output, again.tanh() if architecture == "albert" else again) <= 1e-6


# --- gradients --------------------------------------------------------------------------------------------------------


def by_hand_gradients(model: Any, texts: list[str]) -> list[Tensor]:
    """Return the gradients of a loss in the keys and values of each layer, by hand: ``[virtual, width]`` each."""
    wrapped = backbone_of(model)
    backbone = plain_backbone(wrapped).requires_grad_(False)
    flat = [part[0].transpose(0, 1).flatten(1) for pair in key_values(wrapped) for part in pair]
    leaves = [part.clone().requires_grad_() for part in flat]
    pairs = list(zip(leaves[::2], leaves[1::2]))
    with float64_by_default():
        rows = [rows_behind(backbone, torch.tensor(model.tokenizer(text)["input_ids"]), pairs) for text in texts]
    return list(torch.autograd.grad(loss_of([row.mean(0) for row in rows]), leaves))


def loss_of(embeddings: Any) -> Tensor:
    """Return something to which every component of every text's embedding adds otherwise."""
    return sum(((number + 1) * embedding.pow(2).cumsum(0)).sum() for number, embedding in enumerate(embeddings))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", NO_CACHE)
def test_gradients_of_a_prefix_are_those_by_hand(architecture: str, side: str, adapted: Any) -> None:
    """In float64, of a padded batch, against one text at a time with S queries and V + S keys."""
    model = adapted(architecture, "prefix_tuning", padding_side=side).double()
    weight = backbone_of(model).prompt_encoder["default"].embedding.weight
    truth = torch.cat(by_hand_gradients(model, list(TEXTS)), dim=1)
    with prompt_mask_hooks(model), float64_by_default():
        loss_of(model(dict(model.tokenize(list(TEXTS))))["sentence_embedding"]).backward()
    assert weight.grad is not None
    # Some backbones compute norms, rotations and biases in float32 whatever their dtype.
    exact = architecture in ("mpnet", "distilbert", "albert")
    assert float((weight.grad - truth).abs().max() / truth.abs().max()) <= (1e-12 if exact else 1e-5)


@pytest.mark.parametrize("method", ["prefix_tuning", "prefix_tuning_projection", "cartridge"])
@pytest.mark.parametrize("architecture", ["mpnet", "distilbert"])
def test_training_moves_the_prefix_and_nothing_else_and_what_is_saved_is_loaded(
    architecture: str, method: str, tmp_path: Path, plain: Any, adapted: Any, make_trainer: Any
) -> None:
    """A whole run of the trainer, with dropout; the folder gives the same embeddings."""
    needs(RELEASE >= (3, 0), "has no trainer")
    pytest.importorskip("datasets")
    from peft_hooks import PromptTrainer

    model = adapted(architecture, method)
    register_prompt_mask_hooks(model)
    before, frozen = weights(model), weights(model, trained=False)
    make_trainer(PromptTrainer, model, tmp_path / "run").train()
    assert all(not torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    assert all(torch.equal(frozen[name], tensor) for name, tensor in weights(model, trained=False).items())
    assert_right(model.eval())
    plain(architecture).save(str(tmp_path / "base"))
    save(model, str(tmp_path / "saved"))
    again = load(str(tmp_path / "saved"), base_model=str(tmp_path / "base"))
    assert distance(encoded(again), encoded(model)) <= 1e-6
    assert_right(again)


def test_gradient_checkpointing_is_refused_by_name(adapted: Any) -> None:
    """A layer that runs again for the backward has no prefix any more."""
    for architecture in NO_CACHE:
        model = adapted(architecture, "prefix_tuning")
        backbone = backbone_of(model).base_model
        try:
            backbone.gradient_checkpointing_enable()
        except ValueError:  # on some releases an architecture has none
            continue
        with prompt_mask_hooks(model):
            assert_right(model)  # not in training
            with pytest.raises(UnsupportedModelError, match="gradient checkpointing throws away in training"):
                model.train()(dict(model.tokenize(list(TEXTS))))
            model.eval()
            assert_right(model)


# --- along with the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("architecture", ["mpnet", "albert", "modernbert"])
def test_hooks_travel_with_a_copy(architecture: str, copied: Any, adapted: Any) -> None:
    """A copy is right, knows its hooks, and can do without the first one."""
    model = adapted(architecture, "prefix_tuning")
    handle = register_prompt_mask_hooks(model)
    other = copied(model)
    handle.remove()
    assert_right(other)
    own = register_prompt_mask_hooks(other)
    (remark,) = own.describe().remarks
    assert_says(remark, "prefix | Transformer '0' | attention of 2 layers | in front of the text")
    assert_right(other)
    own.refresh()
    assert_right(other)
    own.remove()


@pytest.mark.parametrize("architecture", NO_CACHE)
def test_threads_do_not_see_each_others_prefix(architecture: str, adapted: Any) -> None:
    """Each has texts of other lengths. (In a replica of ``DataParallel`` PEFT itself makes no prefix.)"""
    model = adapted(architecture, "prefix_tuning")
    parts = [list(TEXTS[:2]), list(TEXTS[2:4]), list(TEXTS[4:])] * 4

    def run(texts: list[str]) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(dict(model.tokenize(texts)))["sentence_embedding"]
            return found

    with prompt_mask_hooks(model), ThreadPoolExecutor(4) as pool:
        found = torch.cat(list(pool.map(run, parts)))
    assert distance(found, expected(model).repeat(4, 1)) <= 1e-4


@pytest.mark.parametrize("architecture", ["mpnet", "distilbert", "t5", "modernbert"])
def test_under_autocast_it_is_what_keys_in_front_are(architecture: str, adapted: Any) -> None:
    """To the precision of bfloat16."""
    model = adapted(architecture, "prefix_tuning")
    with prompt_mask_hooks(model), torch.autocast("cpu", torch.bfloat16):
        found = encoded(model)
    truth = expected(model)
    assert float((found.double() - truth).norm() / truth.norm()) <= 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("architecture", NO_CACHE)
def test_other_dtypes_are_measured_and_right(architecture: str, dtype: torch.dtype, adapted: Any) -> None:
    """The probes hold in half precision."""
    model = adapted(architecture, "prefix_tuning")
    truth = expected(model)
    model.to(dtype)
    context = float64_by_default() if dtype == torch.float64 else torch.no_grad()
    with context, prompt_mask_hooks(model):
        found = encoded(model)
    assert float((found.double() - truth).norm() / truth.norm()) <= 0.05


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("architecture", NO_CACHE)
def test_a_compiled_model_gives_what_it_gives_uncompiled(architecture: str, broken: bool, adapted: Any) -> None:
    """In one graph, or where it breaks in the middle of the backbone."""
    model = adapted(architecture, "prefix_tuning")
    tokens = model.tokenize(list(TEXTS))
    features = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    linears = [module for module in backbone_of(model).base_model.modules() if isinstance(module, nn.Linear)]
    handle = register_prompt_mask_hooks(model)
    if broken:
        linears[2].register_forward_hook(break_graph)
    with torch.no_grad():
        eager = model(dict(features))["sentence_embedding"]
        compiled = torch.compile(model, backend="eager")
        assert distance(compiled(dict(features))["sentence_embedding"], eager) <= 1e-6
        shorter = {key: value[:3] for key, value in features.items()}
        assert distance(compiled(dict(shorter))["sentence_embedding"], eager[:3]) <= 1e-5
    handle.remove()


# --- adapters that come and go ----------------------------------------------------------------------------------------


def test_a_second_adapter_of_another_length_is_right_when_it_is_active(adapted: Any) -> None:
    """How many rows stand in front is what PEFT hands over."""
    model = adapted("mpnet", "prefix_tuning")
    handle = register_prompt_mask_hooks(model)
    add_prompt_adapter(model, prefix_tuning_config(7), "second")
    model.eval()
    for name in ("second", "default", "second"):
        backbone_of(model).set_adapter(name)
        assert_right(model)
    assert not handle.describe().never_fired


def prefix_tuning_config(virtual: int) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(num_virtual_tokens=virtual)


@pytest.mark.parametrize("architecture", NO_CACHE)
def test_without_its_adapter_and_without_hooks_the_backbone_is_plain(
    architecture: str, plain: Any, adapted: Any
) -> None:
    """Inside ``without_adapter``, and after the adapter was taken off."""
    from peft_hooks import remove_prompt_adapter

    truth = encoded(plain(architecture))
    model = adapted(architecture, "prefix_tuning")
    register_prompt_mask_hooks(model)
    with without_adapter(model):
        assert distance(encoded(model), truth) <= 1e-6
    assert_right(model)
    remove_prompt_adapter(model)
    assert torch.equal(encoded(model), truth)


@pytest.mark.parametrize("policy", ["auto", "pool", "ignore", "strip"])
def test_policies_change_nothing_as_there_are_no_rows_of_its_own(policy: Any, adapted: Any) -> None:
    """Block or not."""
    model = adapted("distilbert", "prefix_tuning")
    with prompt_mask_hooks(model), prompt_mask_hooks(model, virtual_tokens=policy):
        assert_right(model)


def test_the_table_the_doctor_and_the_check_know_the_hook(adapted: Any) -> None:
    """They say what happens, with hooks and without."""
    model = adapted("mpnet", "prefix_tuning")
    without = diagnose(model, TEXTS)
    one = next(found for found in without.findings if found.code == "PH010")
    assert "does not use without hooks" in one.sentence
    assert one.fixed
    assert one.fix == "peft_hooks.register_prompt_mask_hooks(model)"
    with prompt_mask_hooks(model) as handle:
        assert check_padding_invariance(model, TEXTS).ok
        assert diagnose(model, TEXTS).ok
        assert not handle.describe().never_fired
        assert "put into the attention of 2 layers" in str(handle.describe())
        assert any(isinstance(attached.hook, PutPrefixInAttention) for attached in handle.registry.state.hooks.values())
    assert str(places_of_prefix(model[0])) != "None"


def test_attaching_in_inference_mode_measures_the_same(adapted: Any) -> None:
    """Gradients that a probe takes are its own."""
    model = adapted("mpnet", "prefix_tuning")
    with torch.inference_mode():
        handle = register_prompt_mask_hooks(model)
    with handle:
        assert_right(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_after_ctrl_c_the_backbone_by_itself_gets_no_prefix(adapted: Any) -> None:
    """What an interrupt leaves of a forward is not of the next one."""
    model = adapted("mpnet", "prefix_tuning")
    body = backbone_of(model).base_model
    tokens = model.tokenizer(["a cat"], return_tensors="pt")
    truth = body(**tokens).last_hidden_state.detach()
    with prompt_mask_hooks(model):
        with body.encoder.layer[1].register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
            encoded(model)
        with torch.no_grad():
            assert distance(body(**tokens).last_hidden_state, truth) <= 1e-6
            layer = body.encoder.layer[0]
            rows = body.embeddings(tokens["input_ids"])
            assert layer(rows)[0].shape[-2:] == rows.shape[-2:]
        assert_right(model)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["fnet", "mobilebert"])
def test_an_encoder_without_places_for_keys_and_values_is_refused_by_name(architecture: str, adapted: Any) -> None:
    """FNet mixes all rows, and MobileBERT the words beside each other before any attention."""
    model = adapted(architecture, "prefix_tuning")
    message = (
        "the PREFIX_TUNING adapter 'default'",
        f"the backbone {architecture!r}",
        "cannot put the prefix into its attention",
        "PROMPT_TUNING or P_TUNING",
        "or LORA",
    )
    with refused(model, UnsupportedModelError, *message):
        register_prompt_mask_hooks(model)


@pytest.mark.parametrize("kind", [Swapped, Reversed])
@pytest.mark.parametrize("architecture", ["mpnet", "albert", "modernbert"])
def test_keys_and_values_that_peft_mixes_up_are_refused(architecture: str, kind: Any, plain: Any) -> None:
    """Also while they are all alike, as of an adapter that is not trained yet."""
    model = plain(architecture)
    wrapped = kind(backbone_of(model), prefix_tuning(model)).eval()
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.zero_()
    put_backbone(model, wrapped)
    with refused(model, UnsupportedModelError, "PREFIX_TUNING adapter 'default'", "a text's rows are off by"):
        register_prompt_mask_hooks(model)


class Unpadded(nn.Linear):
    """Gives the rows of all texts as one, as attention without padding does."""

    def forward(self, given: Tensor) -> Tensor:
        return super().forward(given).flatten(0, 1)


def test_attention_that_runs_without_padding_is_refused_when_attaching(adapted: Any) -> None:
    """There are no rows of a text to overwrite."""
    model = adapted("distilbert", "prefix_tuning")
    for layer in backbone_of(model).base_model.transformer.layer:
        layer.attention.k_lin.__class__ = Unpadded
    with refused(model, UnsupportedModelError, "no row for each token", "PROMPT_TUNING"):
        register_prompt_mask_hooks(model)


def test_attention_that_runs_without_padding_later_is_refused_in_the_forward(adapted: Any) -> None:
    """Never an embedding without its prefix."""
    model = adapted("distilbert", "prefix_tuning")
    with prompt_mask_hooks(model):
        layers = backbone_of(model).base_model.transformer.layer
        layers[1].attention.v_lin.__class__ = Unpadded
        with pytest.raises(HookError, match=r"without padding has no room"):
            encoded(model)
        layers[1].attention.v_lin.__class__ = nn.Linear
        assert_right(model)


def test_a_projection_that_is_replaced_is_refused_until_the_hooks_are_refreshed(adapted: Any) -> None:
    """Never an embedding with a part of its prefix."""
    model = adapted("mpnet", "prefix_tuning")
    handle = register_prompt_mask_hooks(model)
    attention = backbone_of(model).base_model.encoder.layer[1].attention.attn
    attention.k = copy.deepcopy(attention.k)
    for hooks in (attention.k._forward_hooks, attention.k._forward_pre_hooks):
        hooks.clear()
    with pytest.raises(HookError, match=r"none of the hooks .*other modules"):
        encoded(model)
    handle.refresh()
    assert_right(model)


@pytest.mark.parametrize("wrong", [{"num_layers": 3}, {"token_dim": 64}])
def test_an_adapter_of_another_size_is_refused_and_says_which(wrong: dict[str, int], plain: Any) -> None:
    """Of more layers, or of wider keys, than the backbone has."""
    model = plain("mpnet")
    from peft import get_peft_model

    config = prefix_tuning(model)
    for name, value in wrong.items():
        setattr(config, name, value)
    put_backbone(model, get_peft_model(backbone_of(model), config).eval())
    with refused(model, UnsupportedModelError, "the PREFIX_TUNING adapter 'default'", "hooks cannot put the prefix"):
        register_prompt_mask_hooks(model)


@pytest.mark.parametrize("architecture", ["mpnet", "distilbert"])
def test_sparse_models_are_put_right_through_their_head(architecture: str, sparse: Any, put_sparse: Any) -> None:
    """A masked-language model hands no cache on: its layers get the prefix all the same."""
    needs(RELEASE >= (5, 0), "has no SparseEncoder")
    model = sparse(architecture)
    put_sparse(model[0], "prefix_tuning")
    with prompt_mask_hooks(model):
        report = check_padding_invariance(model, TEXTS)
    assert report.ok, str(report)
