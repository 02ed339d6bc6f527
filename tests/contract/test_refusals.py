"""What cannot be right is refused by name when the hooks are attached, and nothing stays on the model after it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_hooks import (
    HookError,
    UnsupportedModelError,
    check_padding_invariance,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    remove_prompt_adapter,
)
from peft_hooks.compat.sentence_transformers import put_backbone
from peft_hooks.testing import assert_padding_invariant

from ..tools.checks import (
    RELEASE,
    TEXTS,
    assert_right,
    distance,
    encoded,
    expected,
    needs,
    refused,
    snapshot,
    unchanged,
)
from ..tools.methods import VIRTUAL_TOKENS, backbone_of, prompt_tuning, put_adapter
from ..tools.wording import assert_says

ATTACH = pytest.mark.parametrize("attach", ["register", "block"])


def attach_hooks(attach: str, model: Any, **options: Any) -> None:
    """Attach as one of the two calls does."""
    if attach == "register":
        register_prompt_mask_hooks(model, **options)
    else:
        with prompt_mask_hooks(model, **options):
            raise AssertionError("the block ran")


# --- what is no model with an adapter -------------------------------------------------------------------------------


@ATTACH
@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        ("all-MiniLM-L6-v2", "the str 'all-MiniLM-L6-v2'"),
        (None, "got None"),
        (["a", "b"], "got a list: give one model"),
        (Path("x"), "load it first, SentenceTransformer('x')"),
    ],
)
def test_a_name_none_or_a_list_is_a_type_error_that_says_to_load_the_model(attach: str, thing: Any, shown: str) -> None:
    """The message shows what was given."""
    with pytest.raises(TypeError) as caught:
        attach_hooks(attach, thing)
    assert shown in str(caught.value)
    assert "expected a SentenceTransformer" in str(caught.value)


@ATTACH
def test_a_peft_model_itself_is_refused_in_favour_of_the_sentence_transformer(attach: str, adapted: Any) -> None:
    """Its Pooling could not be reached."""
    peft_model = backbone_of(adapted())
    message = ("got a PeftModelForFeatureExtraction", "no Transformer module", "the SentenceTransformer itself")
    with refused(peft_model, UnsupportedModelError, *message):
        attach_hooks(attach, peft_model)


def test_any_other_module_is_refused() -> None:
    """A module with no Sentence Transformers in it."""
    module = torch.nn.Linear(1, 1)
    with refused(module, UnsupportedModelError, "got a Linear, which has no Transformer module"):
        register_prompt_mask_hooks(module)


@ATTACH
def test_a_model_without_an_adapter_is_refused_naming_what_puts_one_on(attach: str, plain: Any) -> None:
    """It does not pretend to have done something."""
    model = plain()
    with refused(model, UnsupportedModelError, "no PEFT adapter", "peft_hooks.add_prompt_adapter(model, "):
        attach_hooks(attach, model)


@pytest.fixture(scope="session")
def stray_model(plain: Any) -> Any:
    """Return what makes it."""

    def make() -> Any:
        from peft import get_peft_model

        needs(RELEASE >= (5, 4), "auto_model is what the forward runs, so assigning to it is right")
        model = plain()
        model[0].auto_model = get_peft_model(backbone_of(model), prompt_tuning(model))
        return model

    return make


@ATTACH
def test_an_adapter_on_auto_model_that_the_forward_never_calls_is_refused_naming_model(
    attach: str, stray_model: Any
) -> None:
    """Since 5.4 it does nothing, without a word."""
    model = stray_model()
    message = (
        "PeftModelForFeatureExtraction was assigned to model[0].auto_model",
        "does nothing",
        "model[0].model = adapter",
    )
    with refused(model, UnsupportedModelError, *message):
        attach_hooks(attach, model)


def test_what_the_message_about_auto_model_says_to_run_puts_it_right(stray_model: Any) -> None:
    """The call that mends it is in the message, and mends it."""
    model = stray_model()
    with pytest.raises(UnsupportedModelError) as caught:
        register_prompt_mask_hooks(model)
    (code,) = re.findall("`(.*)`", str(caught.value))
    exec(code, {"model": model})
    with prompt_mask_hooks(model):
        assert_right(model)


def test_an_adapter_assigned_to_auto_model_is_right_where_the_forward_runs_it(plain: Any) -> None:
    """Before 5.4."""
    from peft import get_peft_model

    needs(RELEASE < (5, 4), "auto_model is never called")
    model = plain()
    model[0].auto_model = get_peft_model(model[0].auto_model, prompt_tuning(model)).eval()
    with prompt_mask_hooks(model):
        assert_right(model)


# --- adapters that the backbone cannot have -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "name"), [("prefix_tuning", "PREFIX_TUNING"), ("cartridge", "CARTRIDGE")])
@pytest.mark.parametrize("architecture", ["fnet", "mobilebert"])
def test_a_prefix_that_the_backbone_ignores_or_rejects_is_refused_by_name(
    architecture: str, method: str, name: str, adapted: Any
) -> None:
    """The message names the method, the backbone and what to use."""
    model = adapted(architecture, method)
    message = (
        f"the {name} adapter 'default'",
        f"the backbone {architecture!r}",
        "PROMPT_TUNING or P_TUNING",
        "or LORA",
    )
    with refused(model, UnsupportedModelError, *message):
        register_prompt_mask_hooks(model)


def test_the_probe_of_a_prefix_leaves_a_model_in_training_as_it_was(adapted: Any) -> None:
    """Modes of training, the active adapter and gradients are as before, whether it is refused or not."""
    for architecture in ("bert", "mpnet", "fnet"):
        model = adapted(architecture, "prefix_tuning").train()
        backbone_of(model).base_model.eval()
        modes = [module.training for module in model.modules()]
        with unchanged(model):
            try:
                register_prompt_mask_hooks(model).remove()
            except UnsupportedModelError:
                assert architecture == "fnet"
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_peft_model_of_no_task_with_a_prompt_is_refused_because_it_passes_the_prompt_by(plain: Any) -> None:
    """``task_type=None`` makes a PeftModel whose forward is the backbone's own."""
    from peft import PeftModel

    model = plain()
    config = prompt_tuning(model)
    config.task_type = None
    put_backbone(model[0], PeftModel(backbone_of(model), config))
    message = (
        "PROMPT_TUNING adapter 'default'",
        "PeftModel.forward skips the prompt",
        'task_type="FEATURE_EXTRACTION"',
    )
    with refused(model, UnsupportedModelError, *message):
        register_prompt_mask_hooks(model)


def test_lora_of_no_task_is_not_refused(plain: Any) -> None:
    """It changes weights, so it needs no forward of its own."""
    from peft import LoraConfig, get_peft_model

    model = plain()
    put_backbone(
        model[0],
        get_peft_model(backbone_of(model), LoraConfig(target_modules=["query"], init_lora_weights=False)).eval(),
    )
    with prompt_mask_hooks(model):
        assert_right(model)


# --- compiled models ------------------------------------------------------------------------------------------------


def compiled_model(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: Any) -> Any:
    torch.nn.Module.compile(model, backend="eager")
    return model


def transformer_in_place(model: Any) -> Any:
    model[0].compile(backend="eager")
    return model


def transformer_replaced(model: Any) -> Any:
    model._modules["0"] = torch.compile(model[0], backend="eager")
    return model


def pooling_in_place(model: Any) -> Any:
    model[1].compile(backend="eager")
    return model


def backbone_in_place(model: Any) -> Any:
    backbone_of(model).base_model.compile(backend="eager")
    return model


COMPILED = [
    compiled_model,
    compiled_in_place,
    transformer_in_place,
    transformer_replaced,
    pooling_in_place,
    backbone_in_place,
]


@ATTACH
@pytest.mark.parametrize("compiled", COMPILED, ids=lambda how: how.__name__)
def test_a_model_that_is_compiled_already_is_refused_saying_to_attach_first(
    compiled: Any, attach: str, adapted: Any
) -> None:
    """PyTorch leaves out hooks that are attached after compiling."""
    model = compiled(adapted())
    with refused(model, HookError, "is compiled already", "first, then compile"):
        attach_hooks(attach, model)


# --- lengths --------------------------------------------------------------------------------------------------------


def test_flattened_inputs_are_refused_naming_the_switch(adapted: Any) -> None:
    """There is no padding, and no place for virtual tokens before every text but the first."""
    needs(RELEASE >= (5, 4), "flattens no inputs")
    model = adapted()
    try:
        model[0].can_flatten_inputs = True
    except AttributeError:
        model[0]._can_flatten_inputs = True
    assert model[0].can_flatten_inputs
    with refused(model, UnsupportedModelError, "inputs are flattened", "`model[0].unpad_inputs = False`"):
        register_prompt_mask_hooks(model)


LONG = " ".join(TEXTS * 3)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize(
    ("architecture", "positions", "room"), [("bert", 30, 26), ("roberta", 32, 26), ("gpt2", 30, 26)]
)
def test_max_seq_length_is_lowered_with_a_warning_and_put_back(
    architecture: str, positions: int, room: int, method: str, adapted: Any
) -> None:
    """Text and virtual tokens together have the backbone's positions, and a very long text encodes."""
    key = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    model = adapted(architecture, method, max_seq_length=28, **{key: positions})
    before = snapshot(model)
    with pytest.warns(UserWarning, match="max_seq_length is lowered") as caught:
        handle = register_prompt_mask_hooks(model)
    assert_says(
        str(caught[0].message),
        f"max_seq_length | from 28 to {room} | {architecture!r} | {room + VIRTUAL_TOKENS} positions",
        f"{VIRTUAL_TOKENS} of them | virtual tokens",
    )
    assert caught[0].filename == __file__
    assert model.max_seq_length == model[0].max_seq_length == room
    assert_right(model, [LONG, *TEXTS])
    handle.remove()
    assert model.max_seq_length == 28
    assert snapshot(model) == before


def test_the_warning_of_a_block_points_at_the_block(adapted: Any) -> None:
    """And the length is put back after it."""
    model = adapted("bert", max_seq_length=28, max_position_embeddings=30)
    lowered = pytest.warns(UserWarning, match="max_seq_length is lowered from 28 to 26")
    with unchanged(model), lowered as caught, prompt_mask_hooks(model):
        assert model.max_seq_length == 26
    assert caught[0].filename == __file__
    assert model.max_seq_length == 28


def test_a_max_seq_length_that_was_set_meanwhile_is_kept(adapted: Any) -> None:
    """``remove()`` puts back only what the hooks have set."""
    model = adapted("bert", max_seq_length=28, max_position_embeddings=30)
    with pytest.warns(UserWarning, match="max_seq_length is lowered"):
        handle = register_prompt_mask_hooks(model)
    model.max_seq_length = 7
    handle.remove()
    assert model.max_seq_length == 7


def test_a_max_seq_length_that_fits_is_left_without_a_warning(adapted: Any) -> None:
    """The twin: 26 tokens and 4 virtual tokens have 30 positions. T5 has no positions to exceed."""
    for model in (adapted("bert", max_seq_length=26, max_position_embeddings=30), adapted("t5")):
        length = model.max_seq_length
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            handle = register_prompt_mask_hooks(model)
        assert model.max_seq_length == length
        handle.remove()


@pytest.mark.parametrize("virtual", [30, 40])
def test_more_virtual_tokens_than_positions_are_refused(virtual: int, adapted: Any) -> None:
    """There is no room for text."""
    model = adapted("bert", max_position_embeddings=30, adapter={"num_virtual_tokens": virtual})
    message = (f"{virtual} virtual tokens leave no room for text", "has 30 positions", "Use fewer")
    with refused(model, UnsupportedModelError, *message):
        register_prompt_mask_hooks(model)


def test_the_lowered_length_is_put_back_when_attaching_fails_after_it(adapted: Any) -> None:
    """Whether virtual tokens can be shared is found out after the positions are fitted."""
    model = adapted("bert", max_seq_length=28, max_position_embeddings=30)
    with refused(model, UnsupportedModelError, "share_prompt=True, but"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        register_prompt_mask_hooks(model, share_prompt=True)
    assert model.max_seq_length == 28


# --- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "lora"])
@pytest.mark.parametrize("architecture", ["t5", "mpnet", "deberta-v2", "distilbert", "modernbert", "albert", "roberta"])
def test_left_padding_is_right_whatever_the_backbone_measures_over_it(
    architecture: str, method: str, adapted: Any
) -> None:
    """Distances (T5, MPNet, DeBERTa), windows (ModernBERT), positions that no one can give (DistilBERT)."""
    model = adapted(architecture, method, padding_side="left")
    with prompt_mask_hooks(model):
        assert_right(model)


def test_the_padding_side_may_change_while_the_hooks_are_on(adapted: Any) -> None:
    model = adapted("t5")
    with prompt_mask_hooks(model):
        for side in ("left", "right"):
            model.tokenizer.padding_side = side
            assert_right(model)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("modernbert", {"local_attention": 16}),
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8}),
    ],
)
def test_left_padding_is_right_where_an_attention_window_is_shorter_than_a_text(
    architecture: str, config: dict[str, int], adapted: Any
) -> None:
    """Padding between virtual tokens and text would push them out of the window."""
    model = adapted(architecture, padding_side="left", **config)
    with prompt_mask_hooks(model):
        assert_right(model)


@pytest.mark.parametrize(
    ("architecture", "layer"), [("bert", "query"), ("gpt2", "c_attn"), ("roberta", "query"), ("llama", "q_proj")]
)
def test_lora_by_add_adapter_on_left_padded_positions_is_right(
    architecture: str, layer: str, plain: Any, add_adapter: Any
) -> None:
    """Its layers sit in the backbone, and learned positions see padding that stands before the text."""
    from peft import LoraConfig

    needs(RELEASE >= (3, 3), "has no add_adapter")
    model = plain(architecture, padding_side="left")
    add_adapter(model, LoraConfig(target_modules=[layer], init_lora_weights=False))
    if architecture in ("bert", "gpt2"):
        assert not check_padding_invariance(model, TEXTS)
    with prompt_mask_hooks(model):
        assert_padding_invariant(model)


# --- options --------------------------------------------------------------------------------------------------------


@ATTACH
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
def test_a_task_for_an_adapter_without_tasks_is_refused(attach: str, method: str, adapted: Any) -> None:
    """Nothing would read it."""
    model = adapted("bert", method)
    with refused(model, ValueError, "task_id=1", "no adapter has tasks", "MULTITASK_PROMPT_TUNING"):
        attach_hooks(attach, model, task_id=1)


def test_a_task_for_an_adapter_without_tasks_is_refused_inside_a_block_too(adapted: Any) -> None:
    """The hooks of the outer block stay."""
    model = adapted()
    with prompt_mask_hooks(model):
        with refused(model, ValueError, "no adapter has tasks"), prompt_mask_hooks(model, task_id=1):
            pass
        assert_right(model)


@ATTACH
@pytest.mark.parametrize("task", [-1, 1.0, "0", True])
def test_a_task_that_is_no_whole_number_from_zero_is_refused(attach: str, task: Any, adapted: Any) -> None:
    """Also where the adapter has tasks."""
    model = adapted("bert", "multitask_prompt_tuning")
    with refused(model, ValueError, f"task_id={task!r} is not a task: give a whole number from 0"):
        attach_hooks(attach, model, task_id=task)


def test_a_task_that_the_adapter_does_not_have_is_refused_when_attaching(adapted: Any) -> None:
    """The adapter has three."""
    model = adapted("bert", "multitask_prompt_tuning")
    with refused(model, ValueError, "task_id=3", "the tasks 0 to 2"):
        register_prompt_mask_hooks(model, task_id=3)


@ATTACH
@pytest.mark.parametrize("policy", ["Auto", "stripped", "", None])
def test_a_misspelt_policy_is_refused_listing_the_four(attach: str, policy: Any, adapted: Any) -> None:
    """Before anything is attached."""
    model = adapted()
    with refused(model, ValueError, f"virtual_tokens={policy!r} is not a policy", "'auto', 'pool', 'ignore', 'strip'"):
        attach_hooks(attach, model, virtual_tokens=policy)


@ATTACH
def test_a_misspelt_option_is_a_type_error_that_names_it(attach: str, adapted: Any) -> None:
    """As of any function."""
    model = adapted()
    with refused(model, TypeError, "virtual_token"):
        attach_hooks(attach, model, virtual_token="strip")


@pytest.mark.parametrize(
    ("options", "kind"), [({"virtual_tokens": "stripped"}, ValueError), ({"virtual_token": "strip"}, TypeError)]
)
def test_a_misspelt_option_of_an_inner_block_leaves_the_outer_hooks_in_force(
    options: dict[str, Any], kind: type[Exception], adapted: Any
) -> None:
    """The twin with hooks on."""
    model = adapted()
    with prompt_mask_hooks(model):
        with refused(model, kind), prompt_mask_hooks(model, **options):
            pass
        assert_right(model)


def test_after_a_refusal_the_mended_model_can_have_the_hooks(adapted: Any) -> None:
    """A refusal is not remembered."""
    model = adapted("mpnet", "prefix_tuning")
    backbone_of(model).peft_config["default"].num_layers = 3
    for _ in range(2):
        with pytest.raises(UnsupportedModelError):
            register_prompt_mask_hooks(model)
    remove_prompt_adapter(model)
    put_adapter(model, "prompt_tuning")
    with register_prompt_mask_hooks(model):
        assert distance(encoded(model), expected(model)) <= 1e-4


def test_one_refused_adapter_of_two_refuses_the_model_by_its_name(adapted: Any) -> None:
    """It could be switched to at any time."""
    model = adapted("fnet", "prefix_tuning", adapter={"adapter_name": "first"})
    with refused(model, UnsupportedModelError, "PREFIX_TUNING adapter 'first'"):
        register_prompt_mask_hooks(model)
