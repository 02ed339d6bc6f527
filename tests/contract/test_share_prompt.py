"""The virtual tokens of a causal decoder are computed once per forward, and nothing else changes."""

from __future__ import annotations

import contextlib
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peft_hooks
from peft_hooks import (
    Call,
    Hook,
    HookRegistry,
    UnsupportedModelError,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    trace_shapes,
)
from peft_hooks.prompts.sharing_probe import why_not_shared
from peft_hooks.testing import assert_no_hooks_left

from ..tools.checks import (
    RELEASE,
    TEXTS,
    assert_right,
    distance,
    encoded,
    expected,
    forward,
    interrupt,
    needs,
    options_for,
    refused,
    unchanged,
    with_pooling,
)
from ..tools.matrix import POOLINGS
from ..tools.methods import VIRTUAL_TOKENS, backbone_of
from ..tools.sharing import BATCH, DECODERS, EVERY_ROW, METHODS, ONCE, layers_of, look, put_second, remark, runs
from ..tools.wording import assert_says

# --- the same embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_embeddings_are_those_made_by_hand_with_the_virtual_tokens_computed_once(
    architecture: str, side: str, method: str, shared: Any
) -> None:
    """In one batch and each text alone, left- and right-padded, grouped-query attention among them."""
    model, options = shared(architecture, side, method), options_for(method)
    with prompt_mask_hooks(model, **options) as handle:
        with runs(model) as seen:
            encoded(model)
        assert seen == ONCE
        assert_says(remark(handle), "Transformer '0' | once for all rows")
        assert_right(model, tolerance=1e-5, task_id=options.get("task_id"))


@pytest.mark.parametrize("policy", ["auto", "pool", "ignore", "strip"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_and_policy_is_right(pooling: str, policy: str, shared: Any) -> None:
    """The hidden states of the virtual tokens are there for whatever pools them."""
    model = with_pooling(shared("qwen2", "left", "prompt_tuning"), pooling)
    with prompt_mask_hooks(model, virtual_tokens=policy, share_prompt=True):
        assert_right(model, pooling=pooling, virtual_tokens=policy)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_either_attention_is_right(architecture: str, attention: str, adapted: Any) -> None:
    """With and without padding in the batch: without, newer releases make no mask."""
    model = adapted(architecture, attn_implementation=attention)
    with prompt_mask_hooks(model, share_prompt=True):
        assert_right(model)
        assert_right(model, ["a cat", "rain falls"])


@pytest.mark.parametrize("window", [6, 12, 64])
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_sliding_window_is_kept(architecture: str, window: int, adapted: Any) -> None:
    """The probe is longer than the window of a small backbone, so that all texts share, also those beyond it.

    But Gemma 3 where its cache takes no text beyond a window, in transformers 4.50 to 4.52: there none do.
    """
    model = adapted(architecture, sliding_window=window)
    with prompt_mask_hooks(model) as handle:
        assert_right(model)
        with runs(model) as seen:
            encoded(model)
        shared_here = "share:0" in handle.registry
    assert seen == (ONCE if shared_here else EVERY_ROW)
    assert shared_here or (architecture == "gemma3_text" and RELEASE < (5, 0))


def test_beyond_a_window_that_no_probe_can_afford_every_row_is_computed(
    monkeypatch: pytest.MonkeyPatch, adapted: Any
) -> None:
    """There nothing was proven; shorter texts share."""
    monkeypatch.setattr("peft_hooks.prompts.probes._BUDGET", 1)
    model = adapted("mistral", sliding_window=12)
    texts = ["a cat", "the dog sleeps"]
    with prompt_mask_hooks(model):
        assert_right(model)
        with runs(model) as seen:
            encoded(model)
        assert seen == EVERY_ROW
        with runs(model, length=model.tokenize(texts)["input_ids"].shape[1]) as seen:
            encoded(model, texts)
        assert len(seen) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shares_and_stays_as_near(dtype: torch.dtype, adapted: Any) -> None:
    """No farther from the truth than every row by itself, but for rounding."""
    model = adapted("qwen2", padding_side="left")
    truth = expected(model)
    model.to(dtype)
    apart = []
    for share in (False, True):
        with prompt_mask_hooks(model, share_prompt=share), runs(model) as seen:
            apart.append(distance(encoded(model).float(), truth))
        assert seen == (ONCE if share else EVERY_ROW)
    assert apart[1] <= 2 * apart[0] + 1e-3


@pytest.mark.skipif((3, 2) <= RELEASE <= (4, 1), reason="GPT-2 of transformers 4.45 to 4.51 cannot mask in float64")
def test_float64_is_the_reference_to_its_own_rounding(adapted: Any) -> None:
    """Where the backbone computes all of it in float64."""
    model = adapted("gpt2", padding_side="left").double()
    with prompt_mask_hooks(model, share_prompt=True):
        assert_right(model, tolerance=1e-7)


# --- the same output --------------------------------------------------------------------------------------------------


def output_of(model: Any, share: bool, **given: Any) -> Any:
    """Return what comes out of the backbone in a forward of the whole model."""
    kept: list[Any] = []

    def put_in(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return args, {**kwargs, **given}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output)

    # As if transformers had put them on for itself: for those of others sharing steps aside.
    put_in.__module__ = keep.__module__ = "transformers.utils"
    base = backbone_of(model).base_model
    features = model.tokenize(list(TEXTS))
    with prompt_mask_hooks(model, share_prompt=share), runs(model) as seen:
        handles = [
            base.register_forward_pre_hook(put_in, with_kwargs=True, prepend=True),
            base.register_forward_hook(keep),
        ]
        with contextlib.suppress(Exception):  # what comes after the backbone may not like what it was asked for
            forward(model, features)
        for handle in handles:
            handle.remove()
    return kept[0], seen


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert distance(one, other) <= 1e-5
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for mine, its in zip(one, other):
            same(mine, its)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif hasattr(one, "get_seq_length"):
        assert one.get_seq_length() == other.get_seq_length()
    else:
        assert one == other


@pytest.mark.parametrize("hidden", [None, True])
@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("cache", [None, False])
def test_the_backbone_gives_what_it_gives_without(
    cache: bool | None, as_dict: bool, hidden: bool | None, shared: Any
) -> None:
    """The same type, keys, shapes and values: hidden states of every layer, and keys and values where it gives them."""
    model = shared("llama", "left", "prompt_tuning")
    given = {"use_cache": cache, "return_dict": as_dict, "output_hidden_states": hidden}
    (plain, before), (ours, after) = (output_of(model, share, **given) for share in (False, True))
    assert (before, after) == (EVERY_ROW, ONCE)
    same(ours, plain)


@pytest.mark.parametrize("given", ["use_cache", "output_attentions", "position_ids", "past_key_values"])
def test_it_steps_aside_for_what_it_cannot_cut_in_two(given: str, adapted: Any) -> None:
    """Keys and values that the caller gives or asks for, attentions, position ids that are not ours."""
    model = adapted("llama", attn_implementation="eager")
    long = model.tokenize(list(TEXTS))["input_ids"].shape[1] + VIRTUAL_TOKENS

    def asked() -> Any:
        from transformers import DynamicCache

        made = {"position_ids": torch.arange(long).expand(BATCH, -1), "past_key_values": DynamicCache()}
        return made.get(given, True)

    (plain, before), (ours, after) = (output_of(model, share, **{given: asked()}) for share in (False, True))
    assert before == after == EVERY_ROW
    same(ours, plain)


def test_hidden_states_of_every_layer_reach_the_features(adapted: Any) -> None:
    """Losses on layers read them; with "strip" they have the text's rows."""
    model = adapted("qwen2", padding_side="left")
    backbone_of(model).base_model.config.output_hidden_states = True
    features = model.tokenize(list(TEXTS))
    for policy in ("auto", "strip"):
        found = []
        for share in (False, True):
            with prompt_mask_hooks(model, virtual_tokens=policy, share_prompt=share):
                found.append(forward(model, dict(features))["all_layer_embeddings"])
        same(tuple(found[1]), tuple(found[0]))


# --- training ---------------------------------------------------------------------------------------------------------


def gradients(model: Any, share: Any, **options: Any) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """Return the gradient of every parameter in training, and what ran."""
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad = True
    features = model.tokenize(list(TEXTS))
    with prompt_mask_hooks(model, share_prompt=share, **options), runs(model) as seen:
        embedding = model(features)["sentence_embedding"]
        embedding.sin().sum().backward()
    model.eval()
    named = model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}, seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("architecture", "side"), [("qwen2", "left"), ("llama", "right"), ("gpt_neox", "left")])
def test_gradients_of_prompt_and_backbone_are_the_plain_ones(
    architecture: str, side: str, method: str, adapted: Any
) -> None:
    """They flow through what all rows share, in one forward per step."""
    model = adapted(architecture, method, padding_side=side)
    plain, before = gradients(model, False, **options_for(method))
    ours, after = gradients(model, True, **options_for(method))
    assert (before, after) == (EVERY_ROW, ONCE)
    assert list(ours) == list(plain)
    assert any("prompt_encoder" in name for name in ours)
    for name, gradient in plain.items():
        assert distance(ours[name], gradient) <= 1e-5 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize(
    ("architecture", "config"),
    [("qwen2", {"attention_dropout": 0.1}), ("gpt2", {"resid_pdrop": 0.1}), ("opt", {"layerdrop": 0.1, "dropout": 0})],
)
def test_with_dropout_it_steps_aside_in_training_only(
    architecture: str, config: dict[str, float], adapted: Any
) -> None:
    """Each row has its own dropout, which PEFT's way gives virtual tokens too."""
    others = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} if architecture == "gpt2" else {}
    model = adapted(architecture, **{**others, **config})
    torch.manual_seed(0)  # where OPT leaves out every layer, transformers itself raises, once in a hundred times
    _, seen = gradients(model, "auto")
    assert seen in (EVERY_ROW, [])  # layerdrop may leave the first layer out
    with prompt_mask_hooks(model), runs(model) as seen:
        encoded(model)
    assert seen == ONCE


def test_with_gradient_checkpointing_it_steps_aside(adapted: Any) -> None:
    """The layers run again in the backward pass, where a cache would be filled twice."""
    model = adapted("llama")
    backbone_of(model).base_model.gradient_checkpointing_enable()
    plain, _ = gradients(model, False)
    ours, seen = gradients(model, "auto")
    assert seen[0] == EVERY_ROW[0]
    assert all(distance(ours[name], plain[name]) <= 1e-6 for name in plain)


# --- nothing to share -------------------------------------------------------------------------------------------------


def test_one_row_has_nothing_to_share(shared: Any) -> None:
    """It runs as without."""
    model = shared("qwen2", "left", "prompt_tuning")
    with prompt_mask_hooks(model, share_prompt=True), runs(model, length=2) as seen:
        encoded(model, ["a cat"])
    assert [rows for rows, _ in seen] == [1]


def test_empty_texts_and_no_texts_are_right(shared: Any) -> None:
    """A batch of texts without any token is virtual tokens alone, in every row."""
    model = shared("gpt2", "left", "prompt_tuning")
    with prompt_mask_hooks(model, share_prompt=True):
        assert len(model.encode([])) == 0
        some, none = encoded(model, ["", "a cat", ""]), encoded(model, ["", "a cat"])
        assert torch.isfinite(some).all()
        assert distance(some[:2], none) <= 1e-6


@pytest.mark.parametrize("method", ["prefix_tuning", "lora"])
def test_adapters_without_virtual_tokens_have_nothing_to_share(method: str, shared: Any) -> None:
    """They get no hook of this kind, and no remark."""
    model = shared("llama", "left", method)
    with prompt_mask_hooks(model) as handle:
        assert "share:0" not in handle.registry
        assert handle.describe().remarks == ()


# --- what cannot be shared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet", "t5"])
def test_encoders_compute_every_row_and_say_so(architecture: str, shared: Any) -> None:
    """Their virtual tokens see the text."""
    model = shared(architecture, "right", "prompt_tuning")
    with prompt_mask_hooks(model) as handle:
        assert "share:0" not in handle.registry
        assert not [name for name in handle.registry if name.startswith("text:")]
        assert_says(remark(handle), "Transformer '0' | for every row")
        assert remark(handle) in str(handle.describe())


def test_demanded_where_it_is_not_exact_it_is_refused(shared: Any) -> None:
    """The message gives the reason and the way out, and the model stays as it was."""
    model = shared("bert", "right", "prompt_tuning")
    with refused(model, UnsupportedModelError) as caught:
        register_prompt_mask_hooks(model, share_prompt=True)
    assert_says(caught.value, "Transformer '0' | share_prompt=True | bert attends to both sides | \"auto\"")


def test_a_decoder_whose_layers_were_switched_to_both_sides_is_refused(adapted: Any) -> None:
    """As LLM2Vec and its kin do. Where nothing reads the flag, in older releases, it changes nothing."""
    model = adapted("llama")
    found = []
    for causal in (True, False):
        layers_of(model)[1].self_attn.is_causal = causal
        found.append(plain_rows(model))
    needs(distance(*found) > 1e-4, "reads no is_causal")
    # Alone it looks ahead; in a padded batch transformers makes it a causal mask. PEFT and hooks change nothing of it.
    with refused(model, UnsupportedModelError, "'llama' reads padding"):
        register_prompt_mask_hooks(model)


def plain_rows(model: Any) -> Tensor:
    """Return the rows of one text from the backbone alone."""
    ids = model.tokenizer(TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        rows: Tensor = backbone_of(model).get_base_model()(**ids)[0]
    return rows


@pytest.mark.parametrize("flag", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_a_decoder_whose_config_says_both_sides_is_never_shared(flag: dict[str, bool], adapted: Any) -> None:
    """Also when it is switched while the hooks are on."""
    model = adapted("llama")
    with prompt_mask_hooks(model):
        vars(backbone_of(model).base_model.config).update(flag)
        with runs(model) as seen:
            encoded(model)
        assert seen == EVERY_ROW
    with prompt_mask_hooks(model) as handle:
        assert "llama attends to both sides" in remark(handle)


class SeesAhead(nn.Module):
    """Stands for attention over both sides that nothing declares: adds the mean of all positions."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + hidden.mean(dim=1, keepdim=True)


def test_a_decoder_that_looks_ahead_unseen_is_found_by_the_probe(adapted: Any) -> None:
    """The hidden state of a token must not change with those after it."""
    model = adapted("llama")
    mlp = layers_of(model)[0].mlp
    mlp.down_proj = nn.Sequential(mlp.down_proj, SeesAhead())
    assert_says(why_not_shared(model[0]), "llama attends to both sides")
    with refused(model, UnsupportedModelError, "'llama' reads padding"):  # the mean is over padding, too
        register_prompt_mask_hooks(model)


class CountsPositions(nn.Module):
    """Stands for a backbone that is wrong after a cache: adds the index among the positions that it is given."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.arange(hidden.shape[1]).view(1, -1, 1) / 4


def test_a_decoder_that_is_wrong_after_a_cache_is_found_by_the_probe(adapted: Any) -> None:
    """It is used as it is, every row by itself."""
    model = adapted("llama")
    mlp = layers_of(model)[0].mlp
    mlp.down_proj = nn.Sequential(mlp.down_proj, CountsPositions())
    with prompt_mask_hooks(model) as handle:
        assert_says(remark(handle), "llama | other hidden states after a cache")
        with runs(model) as seen:
            encoded(model)
        assert seen == EVERY_ROW


# --- the option -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["yes", 1, None])
def test_an_unknown_choice_is_an_error(choice: Any, shared: Any) -> None:
    """Four are known."""
    model = shared("llama", "left", "prompt_tuning")
    with refused(model, ValueError) as caught:
        register_prompt_mask_hooks(model, share_prompt=choice)
    assert_says(caught.value, f"share_prompt={choice!r} | 'auto', 'keep', True, False")


def test_switched_off_every_row_is_computed(shared: Any) -> None:
    """And the remark says by what."""
    model = shared("llama", "left", "prompt_tuning")
    with prompt_mask_hooks(model, share_prompt=False) as handle, runs(model) as seen:
        encoded(model)
        assert remark(handle).endswith("computed for every row: share_prompt=False")
    assert seen == EVERY_ROW


def test_it_can_be_switched_for_a_block_and_other_blocks_prove_nothing_again(adapted: Any) -> None:
    """The proof is a small forward; an inner block with other options runs none."""
    model = adapted("llama")
    register_prompt_mask_hooks(model)
    with runs(model) as seen:
        with prompt_mask_hooks(model, virtual_tokens="strip"):
            assert seen == []
            encoded(model)
        assert seen == ONCE
        with prompt_mask_hooks(model, share_prompt=False):
            encoded(model)
        assert seen == [*ONCE, *EVERY_ROW]
    assert_right(model)


def test_it_is_saved_and_loaded(tmp_path: Any, adapted: Any) -> None:
    """The option is one of those that travel with the model, and the loaded model shares."""
    model = adapted("llama", path=tmp_path / "base")
    register_prompt_mask_hooks(model, share_prompt=True)
    peft_hooks.save(model, tmp_path / "tuned")
    again = peft_hooks.load(tmp_path / "tuned", device="cpu")
    assert register_prompt_mask_hooks(again, share_prompt=True).options.share_prompt is True
    with runs(again) as seen:
        assert distance(encoded(again), encoded(model)) <= 1e-6
    assert seen == ONCE
    other = peft_hooks.load(tmp_path / "tuned", device="cpu", share_prompt=False)
    with runs(other) as seen:
        encoded(other)
    assert seen == EVERY_ROW


# --- life -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_shares_by_itself(how: Any, adapted: Any) -> None:
    """And its handle says so."""
    model = adapted("llama", padding_side="left")
    register_prompt_mask_hooks(model)
    copied = how(model)
    with runs(copied) as seen:
        assert torch.equal(encoded(copied), encoded(model))
    assert seen == ONCE
    handle = register_prompt_mask_hooks(copied)
    assert "computed once for all rows of a batch" in remark(handle)
    handle.remove()
    assert_no_hooks_left(copied, foreign=True)


def test_attaching_and_removing_leaves_no_trace(adapted: Any) -> None:
    """The probe runs without gradients, in eval mode, and leaves every module as it was."""
    model = adapted("llama").train()
    with unchanged(model):
        with prompt_mask_hooks(model, share_prompt=True):
            assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())


class Raises(nn.Module):
    """Raises when it is called for the nth time."""

    def __init__(self, inner: nn.Module, at: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.inner, self.left = inner, at
        self.error = error or RuntimeError("in the middle")

    def forward(self, hidden: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.inner(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [1, 2])
def test_an_error_in_either_run_leaves_nothing_behind(at: int, adapted: Any) -> None:
    """In that of the virtual tokens, and in that of the text."""
    model = adapted("llama")
    truth = expected(model)
    with prompt_mask_hooks(model, share_prompt=True):
        mlp = layers_of(model)[1].mlp
        inner = mlp.down_proj
        mlp.down_proj = Raises(inner, at)
        with pytest.raises(RuntimeError, match="in the middle"):
            encoded(model)
        mlp.down_proj = inner
        with runs(model) as seen:
            assert distance(encoded(model), truth) <= 1e-4
        assert seen == ONCE
    assert_no_hooks_left(model)


@pytest.mark.parametrize("at", [1, 2])
def test_after_ctrl_c_a_backbone_that_is_called_by_itself_sees_all_its_rows(at: int, adapted: Any) -> None:
    """PyTorch runs no hook after a KeyboardInterrupt, and here no row is like another: none may be taken for all."""
    model = adapted("llama", padding_side="left")
    backbone = backbone_of(model).base_model
    torch.manual_seed(0)
    length = model.tokenize(list(TEXTS))["input_ids"].shape[1]
    given = {"inputs_embeds": torch.randn(BATCH, length + 3, 32), "attention_mask": torch.ones(BATCH, length + 3)}
    with torch.no_grad():
        truth = backbone(**given).last_hidden_state
        with prompt_mask_hooks(model, share_prompt=True):
            mlp = layers_of(model)[1].mlp
            inner = mlp.down_proj
            mlp.down_proj = Raises(inner, at, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                encoded(model)
            mlp.down_proj = inner
            assert distance(backbone(**given).last_hidden_state, truth) <= 1e-5
            with runs(model) as seen:
                assert_right(model)
            assert seen[:2] == ONCE


def test_after_ctrl_c_a_network_that_is_called_by_itself_sees_all_its_rows(shared: Any) -> None:
    model = shared("bert", "right", "prefix_tuning_projection")
    encoder = backbone_of(model).prompt_encoder["default"]
    indices = torch.arange(BATCH).remainder(VIRTUAL_TOKENS).unsqueeze(1)
    truth = encoder(indices)
    with prompt_mask_hooks(model):
        layer = next(module for module in backbone_of(model).base_model.modules() if isinstance(module, nn.LayerNorm))
        with layer.register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
            encoded(model)
        assert torch.equal(encoder(indices), truth)


def test_a_backbone_that_is_called_by_itself_runs_as_without(shared: Any) -> None:
    """Only inside of a Transformer is it known how long the text is."""
    model = shared("llama", "left", "prompt_tuning")
    features = model.tokenize(list(TEXTS))
    given = {key: features[key] for key in ("input_ids", "attention_mask")}
    with prompt_mask_hooks(model, share_prompt=True), runs(model) as seen, torch.no_grad():
        encoded(model)
        backbone_of(model)(**given)
    assert seen == [*ONCE, *EVERY_ROW]


def test_adapters_of_other_lengths_may_be_switched(adapted: Any) -> None:
    """How many there are is measured in the forward; switched off, there are none."""
    model = adapted("qwen2", padding_side="left")
    put_second(model)
    with prompt_mask_hooks(model, share_prompt=True):
        for name, virtual in (("second", 7), ("default", VIRTUAL_TOKENS), ("second", 7)):
            backbone_of(model).set_adapter(name)
            with runs(model) as seen:
                assert_right(model)
            assert seen[0] == (1, virtual)
        with peft_hooks.without_adapter(model), runs(model) as seen:
            encoded(model)
        assert seen == [(BATCH, 0)]


def test_a_prompt_over_lora_layers_is_right(adapted: Any) -> None:
    """The layers are in the backbone, and run in both."""
    from peft import LoraConfig, inject_adapter_in_model

    model = adapted("llama", padding_side="left")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, backbone_of(model).base_model)
    model.eval()
    found = []
    for share in (False, True):
        with prompt_mask_hooks(model, share_prompt=share):
            found.append(encoded(model))
    assert distance(*found) <= 1e-5


def test_threads_share_each_its_own(shared: Any) -> None:
    """What is noted of a text belongs to the thread that it runs in."""
    model = shared("llama", "left", "prompt_tuning")
    batches = [model.tokenize(list(TEXTS[:number])) for number in range(1, BATCH + 1)]
    with prompt_mask_hooks(model, share_prompt=True), ThreadPoolExecutor(4) as pool:
        truth = [forward(model, dict(given))["sentence_embedding"] for given in batches]
        found = list(pool.map(lambda given: forward(model, dict(given))["sentence_embedding"], batches * 4))
    for number, embedding in enumerate(found):
        assert distance(embedding, truth[number % BATCH]) <= 1e-6


def test_a_replica_shares_by_itself(adapted: Any) -> None:
    """``DataParallel`` copies modules with their hooks."""
    model = adapted("llama")
    truth = expected(model)
    register_prompt_mask_hooks(model, share_prompt=True)
    features = dict(model.tokenize(list(TEXTS)))
    with torch.no_grad(), runs(model) as seen:
        assert distance(nn.DataParallel(model)(features)["sentence_embedding"], truth) <= 1e-4
    assert seen == ONCE


# --- hooks of others --------------------------------------------------------------------------------------------------


class Watches(Hook):
    """A hook of one's own."""

    def after(self, call: Call, output: Any) -> None:
        return None


def puts_forward_hook(model: Any) -> Any:
    return layers_of(model)[1].mlp.register_forward_hook(look).remove


def puts_pre_hook(model: Any) -> Any:
    return backbone_of(model).base_model.register_forward_pre_hook(look).remove


def puts_backward_hook(model: Any) -> Any:
    return layers_of(model)[0].register_full_backward_hook(look).remove


def puts_global_hook(model: Any) -> Any:
    return nn.modules.module.register_module_forward_hook(look).remove


def puts_module_with_a_hook(model: Any) -> Any:
    """Put in a module that had its hook before, so that PyTorch registers none now."""
    layer = layers_of(model)[0]
    former, layer.mlp = layer.mlp, hooked_copy(layer.mlp)
    return lambda: setattr(layer, "mlp", former)


def hooked_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module)
    copied.register_forward_hook(look)
    return copied


def puts_own_hook(model: Any) -> Any:
    registry = HookRegistry(model)
    registry.attach(Watches(), to=layers_of(model)[0])
    return registry.clear


ONLOOKERS = (
    puts_forward_hook,
    puts_pre_hook,
    puts_backward_hook,
    puts_global_hook,
    puts_module_with_a_hook,
    puts_own_hook,
)


@pytest.mark.parametrize("put", ONLOOKERS)
def test_where_others_watch_the_backbone_sharing_steps_aside_and_says_so(put: Any, adapted: Any) -> None:
    """Their hooks see what they would with PEFT's own way; sharing goes on when they go."""
    model = adapted("llama", padding_side="left")
    with prompt_mask_hooks(model, share_prompt="auto") as handle, runs(model) as seen:
        encoded(model)
        take_off = put(model)
        encoded(model)
        assert "computed for every row: a " in remark(handle)
        assert "would see the layers run twice" in remark(handle)
        take_off()
        encoded(model)
        assert "computed once for all rows of a batch" in remark(handle)
    assert seen == [*ONCE, *EVERY_ROW, *ONCE]


def test_the_remark_names_the_hook_and_its_module(adapted: Any) -> None:
    model = adapted("llama")
    layer = layers_of(model)[1]
    path = next(path for path, module in model.named_modules() if module is layer)
    with prompt_mask_hooks(model) as handle, layer.register_forward_hook(look):
        assert_says(
            remark(handle),
            f"Transformer '0' | for every row | a foreign forward hook | {type(layer).__name__} {path!r}",
        )


def test_hooks_outside_of_the_backbone_change_nothing(adapted: Any) -> None:
    """On the Transformer, on Pooling and on the prompt's own modules."""
    model = adapted("llama")
    places = (model, model[0], model[1], backbone_of(model).prompt_encoder["default"].embedding)
    with prompt_mask_hooks(model) as handle, runs(model) as seen, contextlib.ExitStack() as stack:
        for module in places:
            stack.enter_context(module.register_forward_hook(look))
        encoded(model)
        assert "computed once for all rows of a batch" in remark(handle)
    assert seen == ONCE


def test_hooks_that_transformers_puts_on_for_itself_are_no_ones(adapted: Any) -> None:
    """Newer releases hand out hidden states by hooks on the layers, and leave them there."""
    model = adapted("qwen2", padding_side="left")
    base = backbone_of(model).base_model
    base.config.output_hidden_states = True
    with prompt_mask_hooks(model), runs(model) as seen:
        encoded(model)
        base.config.output_hidden_states = False
        encoded(model)
    assert seen == [*ONCE, *ONCE]


@pytest.mark.parametrize("share", ["auto", True, False])
def test_a_trace_shows_one_forward_with_the_virtual_tokens(share: Any, adapted: Any) -> None:
    """The same rows, with sharing and without: that of a layer has the virtual tokens, in every row of the batch."""
    model = adapted("llama")
    with prompt_mask_hooks(model, share_prompt=share), runs(model) as seen:
        with trace_shapes(model) as trace:
            encoded(model)
        assert seen == EVERY_ROW
        assert trace.failure is None
        long = model.tokenize(list(TEXTS))["input_ids"].shape[1] + VIRTUAL_TOKENS
        found = [str(row.outputs[0]) for row in trace.rows if row.path.endswith("layers.1.mlp")]
        assert found == [f"output f32[{BATCH},{long},32]"]
        assert_right(model)


def test_dimensions_that_are_asserted_inside_the_backbone_are_those_of_one_forward(adapted: Any) -> None:
    """A promise about a layer holds with sharing as it does without."""
    model = adapted("llama")
    norm = next(path for path, module in model.named_modules() if path.endswith("layers.0.input_layernorm"))
    contracts = {"0": ({"input_ids": "batch _"}, {"token_embeddings": "batch all _"}), norm: ({}, {"": "batch all 32"})}
    with prompt_mask_hooks(model, share_prompt=True), runs(model) as seen:
        with peft_hooks.assert_dimensions(model, contracts) as registry:
            encoded(model)
            assert [row.calls for row in registry.describe() if norm in row.module] == [1]
        encoded(model)
        assert seen == [*EVERY_ROW, *ONCE]


# --- prompts made by a network ----------------------------------------------------------------------------------------

NETWORKS = ("p_tuning", "p_tuning_lstm", "multitask_prompt_tuning", "prefix_tuning_projection", "prefix_tuning")


def rows_of_network(model: Any, share: Any, **options: Any) -> tuple[list[int], Tensor]:
    """Return how many rows go through the prompt's embedding, and the embeddings of the texts."""
    seen: list[int] = []
    encoder = backbone_of(model).prompt_encoder["default"].embedding
    handle = encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    try:
        with prompt_mask_hooks(model, share_prompt=share, **options):
            found = encoded(model)
    finally:
        handle.remove()
    return seen, found


@pytest.mark.parametrize("method", NETWORKS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_network_runs_on_one_row(architecture: str, method: str, shared: Any) -> None:
    """On encoders too: PEFT gives it the same indices for each row, of some methods in every release."""
    model, options = shared(architecture, "right", method), options_for(method)
    before, plain = rows_of_network(model, False, **options)
    after, ours = rows_of_network(model, "auto", **options)
    assert before[-1] in ((BATCH,) if method[:2] in ("mu", "pr") else (1, BATCH))
    assert after[-1] == 1
    assert distance(ours, plain) <= 1e-6


@pytest.mark.parametrize("method", ["multitask_prompt_tuning", "prefix_tuning_projection", "p_tuning_lstm"])
def test_a_networks_gradients_are_the_plain_ones(method: str, adapted: Any) -> None:
    """Of an encoder, where nothing else is shared."""
    model = adapted("bert", method, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    found = []
    for share in (False, "auto"):
        model.train()
        model.zero_grad()
        with prompt_mask_hooks(model, share_prompt=share, **options_for(method)):
            model(model.tokenize(list(TEXTS)))["sentence_embedding"].sin().sum().backward()
        encoder = backbone_of(model).prompt_encoder["default"]
        found.append({name: weight.grad.clone() for name, weight in encoder.named_parameters()})
    for name, gradient in found[0].items():
        assert distance(found[1][name], gradient) <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_a_network_with_dropout_is_left_alone_in_training(adapted: Any) -> None:
    """It gives each row a prompt of its own, where PEFT runs it on each: then the backbone shares nothing either."""
    model = adapted("llama", "multitask_prompt_tuning")
    backbone_of(model).prompt_encoder["default"].dropout = nn.Dropout(0.5)
    _, seen = gradients(model, "auto", **options_for("multitask_prompt_tuning"))
    assert seen == EVERY_ROW


def test_a_network_that_is_called_by_itself_sees_all_its_rows(shared: Any) -> None:
    """As saving does: only inside of a Transformer's forward are the rows known to be the same."""
    model = shared("bert", "right", "prefix_tuning_projection")
    encoder = backbone_of(model).prompt_encoder["default"]
    indices = torch.tensor([[0, 1], [2, 3]])
    truth = encoder(indices)
    with prompt_mask_hooks(model):
        encoded(model)
        assert torch.equal(encoder(indices), truth)
