"""The hooks' life on a model: attached, switched, copied, sent to workers, run in threads, and gone without a trace."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from peft_hooks import (
    DimensionError,
    HookError,
    UnsupportedModelError,
    add_prompt_adapter,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
)
from peft_hooks.testing import assert_no_hooks_left

from ..tools.checks import (
    RELEASE,
    TASK,
    TEXTS,
    assert_right,
    distance,
    encode_in_processes,
    encoded,
    expected,
    forward,
    needs,
    options_for,
    refused,
    snapshot,
    unchanged,
    with_pooling,
)
from ..tools.matrix import broken_in_peft
from ..tools.methods import METHODS, VIRTUAL_TOKENS, backbone_of, fill_adapter
from ..tools.wording import assert_says

every_method = pytest.mark.parametrize("method", METHODS)


LONG = " ".join(TEXTS * 3)


class GoneError(Exception):
    """Raised in a block on purpose."""


def raise_after(work: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
    """Do the work, then raise."""
    work(*args, **kwargs)
    raise GoneError


# --- one handle -----------------------------------------------------------------------------------------------------


def test_registering_twice_with_the_same_options_gives_the_same_handle(adapted: Any) -> None:
    """And attaches nothing twice."""
    model = adapted()
    handle = register_prompt_mask_hooks(model, virtual_tokens="strip")
    with unchanged(model):
        assert register_prompt_mask_hooks(model, virtual_tokens="strip") is handle
    assert register_prompt_mask_hooks(model, virtual_tokens="strip", task_id=None, check=True, log=False) is handle


def test_registering_twice_with_other_options_is_an_error_that_says_how_to_replace(adapted: Any) -> None:
    """The hooks that are on stay on."""
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    with refused(model, HookError) as caught:
        register_prompt_mask_hooks(model, virtual_tokens="strip")
    assert_says(
        caught.value,
        "other options | HookHandle(virtual_tokens='auto', task_id=None, check=True, log=False, share_prompt=",
        f"{len(handle.registry)} hooks",
        "`.remove()` | `with prompt_mask_hooks(model, ...)`",
    )
    assert_right(model)
    handle.remove()
    with register_prompt_mask_hooks(model, virtual_tokens="strip") as other:
        assert other is not handle
        assert_right(model, virtual_tokens="strip")


@every_method
def test_remove_leaves_every_module_as_it_was_found(method: str, plain: Any, adapted: Any) -> None:
    """The hook dicts of PyTorch included, after forwards too."""
    model = adapted("bert", method)
    encoded(plain("bert"))  # nothing of a first encode is put down to the hooks
    with unchanged(model):
        handle = register_prompt_mask_hooks(model, **options_for(method))
        assert handle.active
        encoded(model)
        handle.remove()
        assert not handle.active
        handle.remove()


@every_method
def test_a_block_leaves_every_module_as_it_was_found_also_when_it_raises(method: str, adapted: Any) -> None:
    """In the block's own code, and in a forward inside it."""
    model = adapted("bert", method)
    with unchanged(model), prompt_mask_hooks(model, **options_for(method)):
        encoded(model)
    with unchanged(model), pytest.raises(GoneError), prompt_mask_hooks(model, **options_for(method)):
        raise GoneError
    with unchanged(model), pytest.raises((IndexError, RuntimeError)), prompt_mask_hooks(model, **options_for(method)):
        forward(model, {"input_ids": torch.full((1, 3), 10**6), "attention_mask": torch.ones(1, 3, dtype=torch.int64)})
    with prompt_mask_hooks(model, **options_for(method)):
        assert_right(model, **options_for(method))


def test_a_handle_is_a_context_manager_that_removes_the_hooks_also_when_the_block_raises(adapted: Any) -> None:
    """As ``with register_prompt_mask_hooks(model):``."""
    model = adapted()
    with unchanged(model), pytest.raises(GoneError), register_prompt_mask_hooks(model) as handle:
        raise_after(assert_right, model)
    assert not handle.active


def foreign_hooks(model: Any) -> list[Any]:
    """Put hooks of someone else on the modules that ours go on."""
    handles = []
    for module in (model, model[0], model[1], backbone_of(model), backbone_of(model).base_model):
        handles.append(module.register_forward_hook(lambda module, args, output: None))
        handles.append(module.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True))
    return handles


def test_hooks_of_others_stay_whether_they_came_before_or_after(adapted: Any) -> None:
    """Only what was attached is removed."""
    model = adapted()
    before = foreign_hooks(model)
    with unchanged(model):
        register_prompt_mask_hooks(model).remove()
        with pytest.raises(GoneError), prompt_mask_hooks(model):
            raise_after(encoded, model)
    handle = register_prompt_mask_hooks(model)
    after = foreign_hooks(model)
    assert_right(model)
    handle.remove()
    for module in (model[0], model[1], backbone_of(model).base_model):
        assert len(module._forward_hooks) == len(module._forward_pre_hooks) == 2
    for foreign in (*before, *after):
        foreign.remove()
    assert_no_hooks_left(model, foreign=True)


def test_the_handle_does_not_keep_the_model_alive(adapted: Any) -> None:
    """Nor does the library."""
    bare, model = adapted(), adapted()
    handle = register_prompt_mask_hooks(model)
    gone, as_bare = weakref.ref(model), weakref.ref(bare)
    del bare, model
    gc.collect()
    needs(as_bare() is None, "does not let go of a model without hooks either")  # on Python 3.13
    assert gone() is None
    handle.remove()


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_an_inner_block_has_other_options_and_the_former_come_back_after_it(adapted: Any) -> None:
    """Three deep, exact after each, also when one raises."""
    model = adapted()
    with unchanged(model), prompt_mask_hooks(model) as outer:
        assert_right(model)
        with unchanged(model), prompt_mask_hooks(model, virtual_tokens="strip") as inner:
            assert inner is outer
            assert_right(model, virtual_tokens="strip")
            with unchanged(model), pytest.raises(GoneError), prompt_mask_hooks(model, virtual_tokens="ignore"):
                raise_after(assert_right, model, virtual_tokens="ignore")
            assert inner.options.virtual_tokens == "strip"
            assert_right(model, virtual_tokens="strip")
        assert outer.options.virtual_tokens == "auto"
        assert_right(model)
    assert not outer.active


def test_a_block_on_a_registered_model_leaves_the_registered_hooks(adapted: Any) -> None:
    """Those not given stay as they are, and the registered handle is still the handle."""
    model = adapted("bert", "multitask_prompt_tuning")
    handle = register_prompt_mask_hooks(model, task_id=TASK)
    with unchanged(model):
        with prompt_mask_hooks(model, virtual_tokens="strip"):
            assert_right(model, virtual_tokens="strip", task_id=TASK)
        with prompt_mask_hooks(model):
            assert_right(model, task_id=TASK)
    assert_right(model, task_id=TASK)
    assert register_prompt_mask_hooks(model, task_id=TASK) is handle
    assert handle.active


def test_each_block_has_its_task(adapted: Any) -> None:
    """Per call for a block, as well as for the model."""
    model = adapted("bert", "multitask_prompt_tuning")
    with prompt_mask_hooks(model, task_id=0):
        first = encoded(model)
        for task in (1, 2):
            with prompt_mask_hooks(model, task_id=task):
                assert_right(model, task_id=task)
        assert torch.equal(encoded(model), first)
        assert_right(model, task_id=0)


def test_without_a_task_the_forward_says_how_to_give_one(adapted: Any) -> None:
    """The hooks may be attached without, as a block may choose."""
    model = adapted("bert", "multitask_prompt_tuning")
    with prompt_mask_hooks(model):
        with pytest.raises(ValueError, match="multitask prompt tuning needs a task") as caught:
            encoded(model)
        message = str(caught.value)
        assert "register_prompt_mask_hooks(model, task_id=0)" in message
        assert "`with prompt_mask_hooks(model, task_id=0)`" in message
        with prompt_mask_hooks(model, task_id=TASK):
            assert_right(model, task_id=TASK)


# --- copies ---------------------------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("how", COPIES)
@every_method
def test_a_copied_model_has_hooks_that_work_and_a_handle_of_its_own(method: str, how: str, adapted: Any) -> None:
    """Removing one's hooks leaves the other's."""
    model = adapted("llama", method, padding_side="left")
    options = options_for(method)
    handle = register_prompt_mask_hooks(model, **options)
    truth = encoded(model)
    copied = COPIES[how](model)
    assert torch.equal(encoded(copied), truth)
    other = register_prompt_mask_hooks(copied, **options)
    assert other is not handle
    assert len(other.registry) == len(handle.registry)
    assert register_prompt_mask_hooks(copied, **options) is other
    other.remove()
    assert_no_hooks_left(copied, foreign=True)
    assert handle.active
    assert torch.equal(encoded(model), truth)
    handle.remove()


@pytest.mark.parametrize("how", COPIES)
def test_removing_the_originals_hooks_leaves_the_copys(how: str, adapted: Any) -> None:
    """The twin: the copy's hooks are attached, checked and switched without the original."""
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    copied = COPIES[how](model)
    handle.remove()
    del model
    gc.collect()
    assert_right(copied)
    with prompt_mask_hooks(copied, virtual_tokens="strip"):
        assert_right(copied, virtual_tokens="strip")
    with pytest.raises(HookError, match="other options"):
        register_prompt_mask_hooks(copied, virtual_tokens="strip")
    assert not register_prompt_mask_hooks(copied).describe().never_fired


def test_a_copy_of_a_model_whose_length_was_lowered_keeps_that_length(adapted: Any) -> None:
    """A copy cannot know the former one, and the lowered one is always right; the original's is put back."""
    model = adapted("bert", max_seq_length=28, max_position_embeddings=30)
    with pytest.warns(UserWarning, match="max_seq_length is lowered"):
        handle = register_prompt_mask_hooks(model)
    copied = copy.deepcopy(model)
    assert_right(copied, ["the cat", LONG])
    register_prompt_mask_hooks(copied).remove()
    handle.remove()
    assert (model.max_seq_length, copied.max_seq_length) == (28, 26)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_that_is_made_in_a_block_has_the_blocks_options(how: str, adapted: Any) -> None:
    """Not those of the block around it, whose hooks are set aside."""
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    with prompt_mask_hooks(model, virtual_tokens="strip"):
        copied = COPIES[how](model)
    assert_right(copied, virtual_tokens="strip")
    assert register_prompt_mask_hooks(copied, virtual_tokens="strip").options.virtual_tokens == "strip"
    with pytest.raises(HookError, match="other options, HookHandle\\(virtual_tokens='strip'"):
        register_prompt_mask_hooks(copied)
    assert register_prompt_mask_hooks(model) is handle
    assert_right(model)


def test_a_model_that_shares_a_module_with_a_hooked_one_is_refused_until_those_hooks_go(adapted: Any) -> None:
    """Its Pooling has none of them, and would read virtual tokens."""
    model = adapted()
    other = with_pooling(model, "cls")
    handle = register_prompt_mask_hooks(model)
    for attach in (register_prompt_mask_hooks, lambda model: prompt_mask_hooks(model).__enter__()):
        with refused(other, HookError, "the hooks of another", repr(handle), "`.remove()`"):
            attach(other)
    handle.remove()
    with prompt_mask_hooks(other):
        assert_right(other, pooling="cls")


def test_a_model_whose_transformer_has_hooks_of_its_own_is_refused_until_they_go(adapted: Any) -> None:
    """And the other way round: the Transformer alone, with the whole model's hooks on it."""
    model = adapted()
    for first, second in ((model[0], model), (model, model[0])):
        with register_prompt_mask_hooks(first), refused(model, HookError, "the hooks of another"):
            register_prompt_mask_hooks(second)
    with prompt_mask_hooks(model):
        assert_right(model)


def test_a_copied_transformer_in_another_pipeline_gets_the_hooks_of_that_pipeline(adapted: Any) -> None:
    """What came along with the copy is replaced."""
    model = adapted()
    with prompt_mask_hooks(model, virtual_tokens="strip"):
        transformer = copy.deepcopy(model[0])
    other = with_pooling([transformer], "cls")
    handle = register_prompt_mask_hooks(other)
    assert_right(other, pooling="cls")
    handle.remove()
    assert_no_hooks_left(other, foreign=True)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_model_is_read_once_when_hooks_are_attached(architecture: str, adapted: Any) -> None:
    """``named_modules()`` of the model is walked at most twice, whatever is refused, planned and attached."""
    model = adapted(architecture)
    walks, code = 0, nn.Module.named_modules.__code__

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal walks
        started = event == "call" and frame.f_code is code and frame.f_lasti <= 4  # a generator is resumed as well
        walks += started and frame.f_locals["self"] is model and not frame.f_locals["prefix"]

    sys.setprofile(seen)
    try:
        register_prompt_mask_hooks(model)
    finally:
        sys.setprofile(None)
    assert 1 <= walks <= 2


def test_a_wrapped_model_has_the_handle_of_the_model_inside(adapted: Any) -> None:
    """``DataParallel`` and ``torch.compile`` wrap, and the hooks are inside."""
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert register_prompt_mask_hooks(wrapped) is handle
    with pytest.raises(HookError, match="other options"):
        register_prompt_mask_hooks(nn.DataParallel(model), virtual_tokens="strip")


def test_half_a_pipeline_can_be_copied_and_keeps_its_hooks(adapted: Any) -> None:
    """A Transformer module alone, as training code does."""
    model = adapted()
    features = dict(model.tokenize(list(TEXTS)))
    with prompt_mask_hooks(model):
        transformer = copy.deepcopy(model[0])
    with torch.no_grad():
        found = transformer(features)
    assert found["attention_mask"].shape == found["token_embeddings"].shape[:2]


# --- workers and threads --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prompt_tuning", "multitask_prompt_tuning"])
def test_spawned_workers_have_the_hooks(method: str, adapted: Any) -> None:
    """``encode(device=["cpu", "cpu"])`` pickles the model, hooks and all."""
    model = adapted("llama", method, padding_side="left")
    with prompt_mask_hooks(model, **options_for(method)):
        found = torch.as_tensor(encode_in_processes(model, list(TEXTS)))
    assert distance(found, expected(model, **options_for(method))) <= 1e-4


def test_threads_may_run_forwards_at_once(adapted: Any) -> None:
    """Batches of other lengths and sizes at the same time: each is as it is alone."""
    model = adapted("gpt2", padding_side="left")
    batches = [list(TEXTS[:size]) for size in range(1, 7)] + [list(TEXTS[size:]) for size in range(1, 6)]
    features = [model.tokenize(batch) for batch in batches]
    with prompt_mask_hooks(model) as handle, ThreadPoolExecutor(4) as pool:
        truth = [forward(model, dict(given))["sentence_embedding"] for given in features]
        found = list(pool.map(lambda given: forward(model, dict(given))["sentence_embedding"], features * 8))
        assert not handle.describe().never_fired
    for number, embedding in enumerate(found):
        assert distance(embedding, truth[number % len(truth)]) <= 1e-6


def test_one_threads_error_is_no_matter_to_the_others(adapted: Any) -> None:
    """What is bound in a failed forward stays in its thread."""
    model = adapted()
    good = dict(model.tokenize(list(TEXTS)))
    bad = {**good, "input_ids": torch.full_like(good["input_ids"], 10**6)}

    def run(number: int) -> torch.Tensor | None:
        if number % 3:
            return forward(model, dict(good))["sentence_embedding"]
        with pytest.raises((IndexError, RuntimeError)):
            forward(model, dict(bad))
        return None

    with prompt_mask_hooks(model), ThreadPoolExecutor(4) as pool:
        truth = forward(model, dict(good))["sentence_embedding"]
        found = [embedding for embedding in pool.map(run, range(60)) if embedding is not None]
    assert len(found) == 40
    assert all(distance(embedding, truth) <= 1e-6 for embedding in found)


# --- adapters -------------------------------------------------------------------------------------------------------


def add_second(model: Any, method: str, name: str, **config: Any) -> None:
    """Put another adapter beside the first by PEFT's own means."""
    peft_model = backbone_of(model)
    active = peft_model.active_adapter
    peft_model.add_adapter(name, METHODS[method](model, **config))
    peft_model.set_adapter(name)
    with torch.no_grad():
        fill_adapter(peft_model, name, 3, 1.0)
    peft_model.set_adapter(active)


def test_adapters_of_different_lengths_may_be_switched_between_calls(adapted: Any) -> None:
    """The number of virtual tokens is measured in every forward."""
    model = adapted("llama", padding_side="left")
    add_second(model, "prompt_tuning", "long", num_virtual_tokens=7)
    with prompt_mask_hooks(model):
        for name in ("long", "default", "long"):
            backbone_of(model).set_adapter(name)
            assert_right(model)


def test_an_adapter_that_is_added_by_hand_after_attaching_is_right_too(adapted: Any) -> None:
    """The hooks look at the active adapter."""
    model = adapted()
    with prompt_mask_hooks(model):
        assert_right(model)
        add_second(model, "prompt_tuning", "long", num_virtual_tokens=9)
        backbone_of(model).set_adapter("long")
        assert_right(model)


def disabled(model: Any) -> Any:
    """Switch the adapter off, or skip where PEFT cannot."""
    block = backbone_of(model).disable_adapter()
    try:
        block.__enter__()
    except UnboundLocalError as error:
        pytest.skip(f"PEFT cannot switch this adapter off on this release of transformers: UnboundLocalError: {error}")
    return block


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
def test_a_model_whose_adapter_is_switched_off_gives_the_backbones_embedding(
    method: str, pooling: str, plain: Any, adapted: Any
) -> None:
    """3.4 and 4.1 extend the mask all the same."""
    without = encoded(with_pooling(plain(), pooling))
    model = with_pooling(adapted("bert", method), pooling)
    with prompt_mask_hooks(model):
        block = disabled(model)
        try:
            assert distance(encoded(model), without) <= 1e-5
        finally:
            block.__exit__(None, None, None)
        assert_right(model, pooling=pooling)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet", "llama"])
def test_lora_is_left_as_it_is(architecture: str, pooling: str, shared: Any) -> None:
    """Right-padded, the hooks change no bit that a text's embedding shows."""
    model = with_pooling(shared(architecture, "right", "lora"), pooling)
    without = encoded(model)
    with prompt_mask_hooks(model):
        assert distance(encoded(model), without) <= 1e-6


def test_lora_put_in_by_sentence_transformers_itself_is_left_as_it_is(plain: Any, add_adapter: Any) -> None:
    """``model.add_adapter`` makes no PeftModel."""
    from peft import LoraConfig

    needs(RELEASE >= (3, 3), "has no add_adapter")
    model = plain()
    config = LoraConfig(target_modules=["query"], init_lora_weights=False, task_type="FEATURE_EXTRACTION")
    add_adapter(model, config)
    model.eval()
    without = encoded(model)
    with unchanged(model), prompt_mask_hooks(model):
        assert distance(encoded(model), without) <= 1e-6


# --- describe -------------------------------------------------------------------------------------------------------


@every_method
def test_before_a_forward_every_hook_says_that_nothing_ran_and_after_it_every_hook_has_fired(
    method: str, adapted: Any
) -> None:
    """On one model as right after registering, on the other after one encode."""
    model = adapted("bert", method)
    with prompt_mask_hooks(model, **options_for(method)) as handle:
        before = handle.describe()
        assert len(before.never_fired) == len(before) > 0
        assert {row.note for row in before} == {"never fired: no hooked module ran yet"}
        encoded(model)
        after = handle.describe()
        assert not after.never_fired
        assert all(row.calls >= 1 and not row.note for row in after)
        assert "mask:0" in str(after)
        assert "ExtendPromptMask" in repr(handle.registry)


# --- add_prompt_adapter ---------------------------------------------------------------------------------------------


def bare_config(method: str, **more: Any) -> Any:
    """Return a config that says nothing of the backbone."""
    import peft

    names = {
        "prompt_tuning": "PromptTuningConfig",
        "p_tuning": "PromptEncoderConfig",
        "multitask_prompt_tuning": "MultitaskPromptTuningConfig",
        "prefix_tuning": "PrefixTuningConfig",
        "cartridge": "CartridgeConfig",
    }
    if not hasattr(peft, names[method]):
        pytest.skip(f"peft {peft.__version__} has no {names[method]}")
    extra = {"num_tasks": 3, "num_ranks": 2} if method == "multitask_prompt_tuning" else {}
    return getattr(peft, names[method])(**{"num_virtual_tokens": VIRTUAL_TOKENS, **extra, **more})


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "multitask_prompt_tuning"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "albert", "electra", "t5", "gpt2", "llama"])
def test_add_prompt_adapter_fills_in_what_the_config_does_not_say(architecture: str, method: str, plain: Any) -> None:
    """``token_dim`` of DistilBERT, ALBERT and T5, which PEFT does not find or finds wrongly; the task type."""
    more = {"embedding_size": 16} if architecture == "electra" else {}
    model = plain(architecture, **more)
    config = bare_config(method)
    handle = add_prompt_adapter(model, config, **options_for(method))
    assert (config.token_dim, config.num_layers, config.task_type) == (None, None, None)
    model.eval()
    assert_right(model, **options_for(method))
    assert not handle.describe().never_fired


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ["prefix_tuning", "cartridge"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_add_prompt_adapter_gives_a_prefix_the_shape_of_the_key_value_heads(
    architecture: str, method: str, side: str, plain: Any
) -> None:
    """Grouped queries, and heads that are wider than ``hidden_size / heads``."""
    model = plain(architecture, padding_side=side)
    config = bare_config(method)
    try:
        add_prompt_adapter(model, config)
    except UnsupportedModelError as error:
        needs(not broken_in_peft(architecture, method), f"PEFT itself: {error}")
        raise
    model.eval()
    with torch.no_grad():
        fill_adapter(backbone_of(model), "default", 0, 1.0)
    assert_right(model)


def test_what_a_config_says_is_kept(plain: Any) -> None:
    """The twin: nothing given is overwritten, and PEFT's refusal of a wrong one leaves the model as it was."""
    model = plain()
    add_prompt_adapter(model, bare_config("prompt_tuning", token_dim=32, num_layers=1, num_attention_heads=2))
    config = backbone_of(model).active_peft_config
    assert (config.token_dim, config.num_layers, config.num_attention_heads) == (32, 1, 2)


def test_add_prompt_adapter_puts_lora_on_as_well(plain: Any) -> None:
    """With the hooks, which leave it as it is."""
    from peft import LoraConfig

    model = plain()
    add_prompt_adapter(model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    model.eval()
    assert_right(model)


def test_a_second_adapter_stands_beside_the_first_and_is_active(plain: Any) -> None:
    """The handle is the same; either can be switched to."""
    model = plain()
    handle = add_prompt_adapter(model, bare_config("prompt_tuning"), "first")
    second = add_prompt_adapter(model, bare_config("prompt_tuning", num_virtual_tokens=7), "second")
    assert second is handle
    assert handle.active
    model.eval()
    assert backbone_of(model).active_adapter == "second"
    for name in ("second", "first", "second"):
        backbone_of(model).set_adapter(name)
        assert_right(model)
    assert not handle.describe().never_fired


def test_a_second_adapter_of_another_kind_of_prompt_is_right_where_peft_takes_it(plain: Any) -> None:
    """A multitask adapter beside a plain one has its task."""
    model = plain()
    add_prompt_adapter(model, bare_config("multitask_prompt_tuning"), "tasks", task_id=TASK)
    add_prompt_adapter(model, bare_config("multitask_prompt_tuning", num_virtual_tokens=6), "more")
    model.eval()
    for name in ("tasks", "more"):
        backbone_of(model).set_adapter(name)
        assert_right(model, task_id=TASK)


def test_a_second_adapter_on_a_model_without_hooks_attaches_them(adapted: Any) -> None:
    """The first may have been put on by PEFT's own means."""
    model = adapted()
    handle = add_prompt_adapter(model, bare_config("prompt_tuning", num_virtual_tokens=2), "second")
    model.eval()
    assert handle.active
    assert_right(model)


# --- add_prompt_adapter that fails ----------------------------------------------------------------------------------


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(target_modules=["query"])


def called(make: Any) -> Any:
    """Make what there is with no argument."""
    return make()


FAILURES: dict[str, tuple[Any, Any, dict[str, Any], type[BaseException]]] = {
    "a prefix on a backbone that mixes words before it attends": (
        lambda plain: plain("mobilebert"),
        lambda: bare_config("prefix_tuning"),
        {},
        UnsupportedModelError,
    ),
    "a backbone that reads padding": (
        lambda plain: plain("convbert", embedding_size=32, head_ratio=2, conv_kernel_size=3),
        lambda: bare_config("prompt_tuning"),
        {},
        UnsupportedModelError,
    ),
    "too many virtual tokens": (
        lambda plain: plain("bert", max_position_embeddings=30),
        lambda: bare_config("prompt_tuning", num_virtual_tokens=30),
        {},
        UnsupportedModelError,
    ),
    "a misspelt policy": (called, lambda: bare_config("prompt_tuning"), {"virtual_tokens": "stripped"}, ValueError),
    "a misspelt option": (called, lambda: bare_config("prompt_tuning"), {"virtual_token": "strip"}, TypeError),
    "a task without tasks": (called, lambda: bare_config("prompt_tuning"), {"task_id": 1}, ValueError),
    "a task for lora": (called, lora_config, {"task_id": 1}, ValueError),
    "no config": (called, lambda: {"peft_type": "PROMPT_TUNING"}, {}, TypeError),
    "lora on layers that are not there": (called, lambda: lora_nowhere(), {}, ValueError),
    "rows of another width": (called, lambda: bare_config("prefix_tuning", token_dim=33), {}, UnsupportedModelError),
}


def lora_nowhere() -> Any:
    from peft import LoraConfig

    return LoraConfig(target_modules=["nowhere"])


@pytest.mark.parametrize("failure", FAILURES)
def test_an_adapter_that_cannot_be_added_leaves_the_model_as_it_was(failure: str, plain: Any) -> None:
    """The backbone, what is frozen, every module's ``vars()``, and the embeddings."""
    make, config, options, kind = FAILURES[failure]
    model = make(plain)
    made = config()
    before, backbone, length = encoded(model), backbone_of(model), model.max_seq_length
    with unchanged(model), pytest.raises(kind):
        add_prompt_adapter(model, made, **options)
    assert backbone_of(model) is backbone
    assert model.max_seq_length == length
    assert not hasattr(backbone, "peft_config")
    assert torch.equal(encoded(model), before)


SECOND_FAILURES: dict[str, tuple[Any, dict[str, Any], type[BaseException], str]] = {
    "a name that is taken": (lambda: bare_config("prompt_tuning"), {}, ValueError, "first"),
    "another kind of adapter": (lambda: bare_config("prefix_tuning"), {}, ValueError, "second"),
    "other options": (lambda: bare_config("prompt_tuning"), {"virtual_tokens": "strip"}, HookError, "second"),
    "too many virtual tokens": (
        lambda: bare_config("prompt_tuning", num_virtual_tokens=200),
        {},
        UnsupportedModelError,
        "second",
    ),
}


@pytest.mark.parametrize("hooked", [True, False], ids=["with hooks", "without hooks"])
@pytest.mark.parametrize("failure", SECOND_FAILURES)
def test_a_second_adapter_that_cannot_be_added_leaves_the_first_and_its_hooks(
    failure: str, hooked: bool, adapted: Any
) -> None:
    """The active adapter, the others, what is frozen and what is attached."""
    config, options, kind, name = SECOND_FAILURES[failure]
    if not hooked and failure == "other options":
        pytest.skip("without hooks there are no other options")
    model = adapted("bert", adapter={"adapter_name": "first"})
    if hooked:
        register_prompt_mask_hooks(model)
    hooks = snapshot(model)
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(kind):
        add_prompt_adapter(model, config(), name, **options)
    peft_model = backbone_of(model)
    assert list(peft_model.peft_config) == list(peft_model.prompt_encoder) == ["first"]
    assert peft_model.active_adapter == "first"
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == frozen
    count = [len(module._forward_hooks) for module in model.modules()]
    assert sum(count) == sum(len(entry["_forward_hooks"]) for entry in hooks.values())
    with prompt_mask_hooks(model):
        assert_right(model)


@pytest.mark.parametrize("name", ["default", "other"])
def test_an_adapter_beside_one_of_add_adapter_is_refused_naming_what_takes_that_off(
    name: str, plain: Any, add_adapter: Any
) -> None:
    """Its layers are in the backbone, where PEFT would put on a second model."""
    from peft import LoraConfig

    needs(RELEASE >= (3, 3), "has no add_adapter")
    model = plain()
    add_adapter(model, LoraConfig(target_modules=["query"]))
    with refused(model, UnsupportedModelError, "model.add_adapter() put in", "`model.delete_adapter(name)`"):
        add_prompt_adapter(model, bare_config("prompt_tuning"), name)


def test_what_add_prompt_adapter_cannot_take_is_a_type_error() -> None:
    """A name, a plain module, an unknown pipeline."""
    with pytest.raises(TypeError, match=r"a SentenceTransformer.* the str .*load it first"):
        add_prompt_adapter("all-MiniLM-L6-v2", bare_config("prompt_tuning"))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"a Linear.* no Transformer module"):
        add_prompt_adapter(nn.Linear(1, 1), bare_config("prompt_tuning"))


# --- checks ---------------------------------------------------------------------------------------------------------


class Shorten(nn.Module):
    """A foreign module that cuts the token embeddings and forgets the mask."""

    def forward(self, features: Any) -> Any:
        return {**features, "token_embeddings": features["token_embeddings"][:, 1:]}


@pytest.fixture
def shortened(adapted: Any) -> Iterator[Any]:
    from sentence_transformers import SentenceTransformer

    model = adapted()
    return SentenceTransformer(modules=[model[0], Shorten(), model[1]], device="cpu").eval()


def test_a_mask_that_does_not_fit_is_an_error_and_not_a_mask_of_ones(shortened: Any) -> None:
    """5.4 and later go on with a mask of ones, without a word."""
    with prompt_mask_hooks(shortened), pytest.raises(DimensionError) as caught:
        encoded(shortened)
    seq = max(len(ids) for ids in shortened.tokenizer(list(TEXTS))["input_ids"]) + VIRTUAL_TOKENS
    assert str(caught.value).startswith("Pooling '2' input: ")
    for part in (f"attention_mask is [6, {seq}]", f"seq = {seq - 1}", f"token_embeddings [6, {seq - 1}, 32]", "1 more"):
        assert part in str(caught.value)


def test_without_the_check_it_is_whatever_the_release_does(shortened: Any) -> None:
    """The twin: ``check=False`` asserts nothing."""
    with prompt_mask_hooks(shortened, check=False):
        if RELEASE >= (5, 4):
            encoded(shortened)
        else:
            with pytest.raises(RuntimeError):
                encoded(shortened)
