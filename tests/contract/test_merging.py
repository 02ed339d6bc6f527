"""Contract: a merged model is plain, and gives what the hooked one gives; what cannot be so is refused by name."""

from __future__ import annotations

import contextlib
import copy
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import (
    Hook,
    HookRegistry,
    UnsupportedModelError,
    add_prompt_adapter,
    merge_and_unload,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
)
from peft_hooks.testing import TEXTS
from peft_hooks.testing.models import make_pooling, pipeline_modules

from ..tools.checks import (
    RELEASE,
    distance,
    encode_in_processes,
    encoded,
    needs,
    options_for,
    refused,
    unchanged,
    with_pooling,
)
from ..tools.methods import ROW_METHODS, VIRTUAL_TOKENS, backbone_of
from ..tools.tokenizers import model_with, post_processors, trained

LONG = (*TEXTS, "", " ".join(TEXTS * 4))
POLICIES = ("auto", "pool", "ignore", "strip")

pytestmark = [
    pytest.mark.slow,  # two models each: on the oldest release, the newest, and where modules moved
    pytest.mark.filterwarnings("ignore:the plain model pads on the right", "ignore:max_seq_length is lowered"),
]


def apart(model: Any, merged: Any, **options: Any) -> float:
    """Return how far a merged model is from the hooked one: in a batch, alone, with a prompt."""
    texts = [text for text in LONG if len(model.tokenizer(text)["input_ids"])]
    with prompt_mask_hooks(model, **options):
        truth = [encoded(model, texts), *(encoded(model, [text])[0] for text in texts)]
        truth.append(encoded(model, texts, prompt="query : "))
    found = [encoded(merged, texts), *(encoded(merged, [text])[0] for text in texts)]
    found.append(encoded(merged, texts, prompt="query : "))
    return max(distance(one, other) for one, other in zip(found, truth, strict=True))


def assert_plain(merged: Any) -> None:
    """Assert that nothing of PEFT and no hook is in a model."""
    for module in merged.modules():
        assert type(module).__module__.partition(".")[0] != "peft"
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, name)
    assert not hasattr(backbone_of(merged), "peft_config")
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not merged.training


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ROW_METHODS)
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "t5", "llama", "gemma3_text", "gpt2"])
def test_it_is_plain_and_gives_what_the_hooked_one_gives(
    architecture: str, method: str, side: str, adapted: Any
) -> None:
    """With every method whose virtual tokens are words to the backbone, and the model itself stays as it is."""
    model = adapted(architecture, method, padding_side=side)
    moved = method == "p_tuning_lstm" and RELEASE < (5, 4)  # whose encode() moves a model, and an LSTM with it
    with contextlib.nullcontext() if moved else unchanged(model):
        merged = merge_and_unload(model, **options_for(method))
    assert_plain(merged)
    assert type(merged).__name__ == "SentenceTransformer" and isinstance(merged, type(model))
    assert apart(model, merged, **options_for(method)) <= 1e-5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", ("cls", "mean", "lasttoken")])
def test_every_policy_and_pooling_is_exact_or_refused(
    pooling: str | tuple[str, ...], policy: Any, adapted: Any
) -> None:
    """Only a maximum and a weighted mean cannot leave virtual tokens out."""
    model = with_pooling(adapted("bert"), pooling)
    if policy in ("ignore", "strip") and pooling in ("max", "weightedmean"):
        with refused(model, UnsupportedModelError, f"Pooling '1' is {pooling}", repr(policy), "export_onnx"):
            merge_and_unload(model, virtual_tokens=policy)
        return
    merged = merge_and_unload(model, virtual_tokens=policy)
    assert apart(model, merged, virtual_tokens=policy) <= 1e-5


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "albert", "distilbert"])
def test_cls_is_exact_where_learned_positions_are_added_to_the_words(architecture: str, adapted: Any) -> None:
    """The text's own first token stands before the virtual ones, and is what it was behind them."""
    model = with_pooling(adapted(architecture), "cls")
    merged = merge_and_unload(model)
    assert apart(model, merged) <= 1e-5
    ids = merged.tokenizer("a cat")["input_ids"]
    assert (
        ids[0] > max(ids[1 : 1 + VIRTUAL_TOKENS])
        and ids[1 + VIRTUAL_TOKENS :] == model.tokenizer("a cat")["input_ids"][1:]
    )


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2", "modernbert", "llama", "opt"])
def test_cls_is_refused_elsewhere_with_what_to_use(architecture: str, adapted: Any) -> None:
    """Where positions are relative, rotary, or a token does not see those behind it."""
    model = with_pooling(adapted(architecture), "cls")
    with refused(model, UnsupportedModelError, 'virtual_tokens="pool"', "mean", "peft_hooks.export_onnx"):
        merge_and_unload(model)
    assert apart(model, merge_and_unload(model, virtual_tokens="pool"), virtual_tokens="pool") <= 1e-5


def test_no_special_token_in_front_of_a_text_is_named(adapted: Any) -> None:
    """A GPT-2 tokenizer puts none there, so that cls is a word of the text."""
    model = with_pooling(adapted("gpt2"), "cls")
    with refused(model, UnsupportedModelError, "puts no special token there"):
        merge_and_unload(model)


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_left_padding_that_moves_a_text_is_replaced_and_said(architecture: str, adapted: Any) -> None:
    """Where the backbone counts positions from the first column, padding or not."""
    model = adapted(architecture, padding_side="left")
    with pytest.warns(UserWarning, match="pads on the right: its backbone's own left padding shifts a text"):
        merged = merge_and_unload(model)
    assert merged.tokenizer.padding_side == "right" and model.tokenizer.padding_side == "left"


@pytest.mark.parametrize("architecture", ["llama", "t5", "roberta", "qwen2"])
def test_left_padding_stays_where_it_is_right(architecture: str, adapted: Any) -> None:
    """And there is nothing to say."""
    model = adapted(architecture, padding_side="left", pooling="lasttoken")
    merged = merge_and_unload(model)
    assert merged.tokenizer.padding_side == "left"
    assert apart(model, merged) <= 1e-5


@pytest.mark.parametrize("pooling", ["weightedmean", "cls"])
def test_pooling_that_counts_columns_pads_on_the_right(pooling: str, adapted: Any) -> None:
    """As releases before this one count from the first column, whatever this one does."""
    model = with_pooling(adapted("roberta", padding_side="left"), pooling)
    assert merge_and_unload(model).tokenizer.padding_side == "right"


def test_what_the_hooks_on_the_model_were_asked_for_holds(adapted: Any) -> None:
    """Their policy and task, unless others are given; the hooks stay."""
    model = adapted("bert", "multitask_prompt_tuning")
    handle = register_prompt_mask_hooks(model, task_id=2, virtual_tokens="ignore")
    before = encoded(model)
    merged = merge_and_unload(model)
    assert distance(encoded(merged), before) <= 1e-5
    assert handle.active and handle.options.task_id == 2
    assert torch.equal(encoded(model), before)
    assert apart(model, merge_and_unload(model, task_id=0), task_id=0) <= 1e-5
    assert distance(encoded(merge_and_unload(model, virtual_tokens="auto")), before) > 1e-3


def test_a_task_has_to_be_named(adapted: Any) -> None:
    """One of those that there are."""
    model = adapted("bert", "multitask_prompt_tuning")
    with refused(model, ValueError, "each of its 3 tasks", "task_id=0"):
        merge_and_unload(model)
    with refused(model, ValueError, "task_id=3"):
        merge_and_unload(model, task_id=3)
    single = adapted("bert")
    with refused(single, ValueError, "task_id=0", "no adapter has tasks"):
        merge_and_unload(single, task_id=0)
    with refused(single, ValueError, "virtual_tokens='all' is not a policy"):
        merge_and_unload(single, virtual_tokens="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["prefix_tuning", "prefix_tuning_projection", "cartridge"])
def test_keys_and_values_are_no_words(method: str, adapted: Any) -> None:
    """They are refused by name, with what serves them."""
    model = adapted("bert", method)
    name = "CARTRIDGE" if method == "cartridge" else "PREFIX_TUNING"
    with refused(model, UnsupportedModelError, name, "which no word embedding can do", "peft_hooks.export_onnx"):
        merge_and_unload(model)


def test_what_is_not_a_prompt_is_refused(plain: Any, adapted: Any) -> None:
    """LoRA, no adapter, no model, no values."""
    lora = adapted("bert", "lora")
    with refused(lora, UnsupportedModelError, "the adapter is LORA", "PeftModel.merge_and_unload()"):
        merge_and_unload(lora)
    none = plain("bert")
    with refused(none, UnsupportedModelError, "no PEFT adapter", "already plain"):
        merge_and_unload(none)
    with pytest.raises(TypeError, match="expected a SentenceTransformer"):
        merge_and_unload("minilm")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="has no Transformer module"):
        merge_and_unload(nn.Linear(2, 2))


def test_a_pooling_that_leaves_the_prompt_out_is_refused(adapted: Any) -> None:
    """It would leave the virtual tokens out with it."""
    model = with_pooling(adapted("bert"), "mean", include_prompt=False)
    for policy in POLICIES:
        with refused(model, UnsupportedModelError, "include_prompt=False"):
            merge_and_unload(model, virtual_tokens=policy)  # type: ignore[arg-type]


def test_a_slow_tokenizer_is_refused(adapted: Any) -> None:
    """It has no post-processor."""
    from transformers import CanineTokenizer

    model = adapted("bert")
    setattr(model[0], "processor" if RELEASE >= (5, 4) else "tokenizer", CanineTokenizer())
    with pytest.raises(UnsupportedModelError, match="CanineTokenizer is a slow one"):
        merge_and_unload(model)


class Larger(Hook):
    """Doubles what a Transformer gives."""

    def after(self, call: Any, output: Any) -> Any:
        return {**output, "token_embeddings": output["token_embeddings"] * 2}


def test_what_differs_is_refused_with_the_numbers(adapted: Any) -> None:
    """A hook of the user's own changes the embeddings, which no plain model does; everything is left as it was."""
    model = adapted("bert")
    registry = HookRegistry(model)
    registry.attach(Larger(), to="transformer")
    with refused(model, UnsupportedModelError, "largest difference", "allowed", "alone", "in a batch", "cut at 64"):
        merge_and_unload(model)
    registry.clear()
    assert apart(model, merge_and_unload(model)) <= 1e-5


def test_an_exception_leaves_the_model_as_it_was(adapted: Any) -> None:
    """Wherever it is raised: here in the model's own forward, the third time."""
    model = adapted("bert").train()
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the third")

    handle = model[1].register_forward_hook(fail)
    with unchanged(model), pytest.raises(RuntimeError, match="the third"):
        merge_and_unload(model)
    handle.remove()
    assert model.training and model[0].training


def test_lengths_have_room_for_the_virtual_tokens(adapted: Any) -> None:
    """``max_seq_length`` and ``model_max_length``: a text is cut where it was."""
    model = adapted("bert", max_seq_length=20)
    merged = merge_and_unload(model)
    assert merged.max_seq_length == 20 + VIRTUAL_TOKENS
    assert merged.tokenizer.model_max_length >= 20 + VIRTUAL_TOKENS
    assert model.max_seq_length == 20
    assert apart(model, merged) <= 1e-5


def test_positions_that_virtual_tokens_take_are_not_there_for_text(adapted: Any) -> None:
    """A text is cut where the hooks cut it: the backbone has 132 positions."""
    model = adapted("bert", max_seq_length=132)
    with pytest.warns(UserWarning, match=r"max_seq_length .*from 132 to 128"):
        merged = merge_and_unload(model)
    assert merged.max_seq_length == 132 == model.max_seq_length


def test_what_follows_pooling_and_all_settings_stay(adapted: Any) -> None:
    """Modules, prompts, similarity, truncation of embeddings, the card."""
    model = adapted("bert")
    modules = pipeline_modules()
    dense = modules.Dense(32, 12, bias=True, activation_function=nn.Tanh())
    prompts = {"query": "query : ", "passage": "passage : "}
    kind: Any = type(model)
    model = kind(modules=[model[0], model[1], dense, modules.Normalize()], prompts=prompts, device="cpu")
    model.default_prompt_name = "passage"
    model.truncate_dim = 5 if RELEASE >= (2, 7) else None
    if RELEASE >= (3, 0):
        model.similarity_fn_name = "dot"
        model.model_card_data.license = "apache-2.0"
    merged = merge_and_unload(model)
    assert [type(module).__name__ for module in merged] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert merged.prompts == model.prompts and merged.default_prompt_name == "passage"
    assert apart(model, merged) <= 1e-6
    assert merged.encode("a cat").shape == (5,)
    if RELEASE >= (3, 0):
        assert merged.similarity_fn_name == "dot" and merged.model_card_data.license == "apache-2.0"
        assert merged.model_card_data is not model.model_card_data


def test_word_weights_of_ones_own_know_the_new_tokens(adapted: Any) -> None:
    """They weigh what unknown words weigh; nothing where virtual tokens do not count."""
    base = adapted("bert")
    names = list(base.tokenizer.get_vocab())
    for policy, weight in (("auto", 0.5), ("ignore", 0.0)):
        weights = pipeline_modules().WordWeights(names, {"cat": 3.0}, 0.5)
        kind: Any = type(base)
        model = kind(modules=[base[0], weights, base[1]], device="cpu")
        merged = merge_and_unload(model, virtual_tokens=policy)  # type: ignore[arg-type]
        assert merged[1].emb_layer.weight[-VIRTUAL_TOKENS:].unique().tolist() == [weight]
        assert len(model[1].vocab) == len(names)
        assert apart(model, merged, virtual_tokens=policy) <= 1e-5


def test_hidden_layers_are_merged_too(adapted: Any) -> None:
    """A module that weighs layers is given the virtual tokens' rows in each."""
    needs(RELEASE >= (3, 0), "WeightedLayerPooling needs a config that keeps hidden states")
    base = adapted("bert", output_hidden_states=True)
    layers = pipeline_modules().WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
    kind: Any = type(base)
    model = kind(modules=[base[0], layers, base[1]], device="cpu")
    assert apart(model, merge_and_unload(model)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_numbers(dtype: torch.dtype, adapted: Any) -> None:
    """The rows are rounded to them, as the hooked model does."""
    model = adapted("bert").to(dtype)
    merged = merge_and_unload(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    with prompt_mask_hooks(model):
        truth = encoded(model)
    assert distance(encoded(merged), truth) <= 4 * torch.finfo(dtype).eps * float(truth.abs().max())


def test_embeddings_that_are_multiplied_are_divided(adapted: Any) -> None:
    """Gemma 3's module multiplies its rows by the root of its width, and not what is given as embeddings."""
    model = adapted("gemma3_text")
    rows = backbone_of(model).prompt_encoder["default"].embedding.weight.detach()
    weight: Tensor = backbone_of(merge_and_unload(model)).get_input_embeddings().weight
    assert torch.allclose(weight[-VIRTUAL_TOKENS:] * 32**0.5, rows, rtol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "kind", "post", "of_class"),
    [
        ("bert", "wordpiece", "template", "BertTokenizerFast"),
        ("roberta", "byte-level", "roberta", "RobertaTokenizerFast"),
        ("xlm-roberta", "unigram", "template", "XLMRobertaTokenizerFast"),
        ("t5", "unigram", "template of the last", "T5TokenizerFast"),
        ("llama", "byte-fallback", "template of the first", "LlamaTokenizerFast"),
        ("llama", "byte-level-whole-words", "sequence with a template", None),
        ("qwen2", "byte-level", "template of the last", "Qwen2TokenizerFast"),
        ("gpt2", "byte-level", "byte-level", "GPT2TokenizerFast"),
        ("gemma3_text", "byte-fallback", "template of the first", "GemmaTokenizerFast"),
    ],
)
def test_real_tokenizers_of_each_kind(
    architecture: str, kind: str, post: str, of_class: str | None, tmp_path: Path, put: Any
) -> None:
    """Merged, saved and loaded, as the class that writes a post-processor of its own when it is loaded."""
    tokenizer = trained(kind)
    tokenizer.post_processor = dict(post_processors())[post]
    try:
        model = model_with(architecture, tokenizer, "mean", of_class)
    except ValueError as error:
        pytest.skip(str(error))
    put(model, "prompt_tuning")
    merged = merge_and_unload(model)
    assert apart(model, merged) <= 1e-5
    merged.save_pretrained(str(tmp_path / "merged"))
    kind_of_model: Any = type(model)
    assert apart(model, kind_of_model(str(tmp_path / "merged"), device="cpu")) <= 1e-5


def test_it_is_saved_and_loaded_without_peft_and_this_library(tmp_path: Path, adapted: Any) -> None:
    """In a process in which neither can be imported."""
    model = adapted("bert")
    merged = merge_and_unload(model)
    merged.save_pretrained(str(tmp_path / "merged"))
    torch.save(encoded(merged), tmp_path / "truth.pt")
    code = (
        "import sys; sys.modules['peft'] = sys.modules['peft_hooks'] = None\n"
        "import torch\nfrom sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(tmp_path / 'merged')!r}, device='cpu')\n"
        f"found = model.encode({list(TEXTS)!r}, convert_to_tensor=True)\n"
        f"print(float((found - torch.load({str(tmp_path / 'truth.pt')!r})).abs().max()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert float(run.stdout.split()[-1]) <= 1e-6


def test_processes_are_given_it_as_it_is(adapted: Any) -> None:
    """By ``encode(device=["cpu", "cpu"])``, or the pool that the release has: there are no hooks to go along."""
    model = adapted("bert")
    merged = merge_and_unload(model)
    found = torch.as_tensor(encode_in_processes(merged, list(LONG)))
    with prompt_mask_hooks(model):
        assert distance(found, encoded(model, LONG)) <= 1e-6


def test_copies_and_a_second_prompt(adapted: Any) -> None:
    """A merged model can be copied, and tuned and merged again."""
    model = adapted("bert")
    merged = copy.deepcopy(merge_and_unload(model))
    assert apart(model, merged) <= 1e-5
    from peft import PromptTuningConfig

    add_prompt_adapter(merged, PromptTuningConfig(num_virtual_tokens=2))
    again = merge_and_unload(merged)
    assert apart(merged, again) <= 1e-5
    assert again.max_seq_length == model.max_seq_length + VIRTUAL_TOKENS + 2


def test_the_random_state_stays(adapted: Any) -> None:
    """Growing the vocabulary draws numbers for rows that are then replaced."""
    model = adapted("bert")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    merge_and_unload(model)
    assert torch.equal(torch.rand(3), expected)


def test_one_of_a_router_is_merged_alone(adapted: Any) -> None:
    """Two Transformers have two tokenizers, and each is a model of its own."""
    needs(RELEASE >= (5, 0), "Router came with 5.0")
    router = getattr(pipeline_modules(), "Router", None)
    if router is None:
        router = importlib.import_module("sentence_transformers.base.modules").Router
    one, other = adapted("bert"), adapted("bert")
    kind: Any = type(one)
    modules = [
        router({"query": [one[0]], "document": [other[0]]}, default_route="query"),
        make_pooling(32, "mean", True),
    ]
    with pytest.raises(UnsupportedModelError, match="one route at a time"):
        merge_and_unload(kind(modules=modules, device="cpu"))
