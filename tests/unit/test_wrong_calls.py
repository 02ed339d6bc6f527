"""Calls as a new user would get them wrong: each error says what was given, what was expected and what to call.

And the model is as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from torch import nn

import peft_hooks
from peft_hooks import (
    AssertDimensions,
    ExtendPromptMask,
    HookError,
    HookNameError,
    HookRegistry,
    LoadError,
    LogShapes,
    SaveError,
    SelectorError,
    SelectTask,
    UnsupportedModelError,
    add_prompt_adapter,
    assert_dimensions,
    check_padding_invariance,
    contract_of,
    diagnose,
    load,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    remove_prompt_adapter,
    save,
    trace_shapes,
    without_adapter,
)
from peft_hooks.testing.leftovers import hooks_on

from ..contract.support import adapted, plain

CONFIG = PromptTuningConfig(num_virtual_tokens=2)
TEXTS = ["a cat", "the dog sleeps on the warm sofa"]


@functools.cache
def bare() -> Any:
    """Return a model with no adapter."""
    return plain("bert")


@functools.cache
def tuned() -> Any:
    """Return a model with a prompt and no hooks."""
    return adapted("bert")


def entered(block: Any) -> Any:
    """Enter a block, and leave it."""
    with block:
        return block


# --- what is no model -------------------------------------------------------------------------------------------------

PIPELINE: dict[str, Callable[[Any], Any]] = {
    "register_prompt_mask_hooks": register_prompt_mask_hooks,
    "prompt_mask_hooks": lambda model: entered(prompt_mask_hooks(model)),
    "add_prompt_adapter": lambda model: add_prompt_adapter(model, CONFIG),
    "remove_prompt_adapter": remove_prompt_adapter,
    "without_adapter": lambda model: entered(without_adapter(model)),
    "check_padding_invariance": lambda model: check_padding_invariance(model, TEXTS),
    "diagnose": diagnose,
    "save": lambda model: save(model, "never-written"),
}
MODULE: dict[str, Callable[[Any], Any]] = {
    "HookRegistry": HookRegistry,
    "trace_shapes": lambda model: entered(trace_shapes(model)),
    "contract_of": contract_of,
}
NO_MODEL: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a name": (
        lambda: "all-MiniLM-L6-v2",
        "the str 'all-MiniLM-L6-v2': load it first, SentenceTransformer('all-MiniLM-L6-v2')",
        "the str 'all-MiniLM-L6-v2': load the model first",
    ),
    "None": (lambda: None, "None: load it first, SentenceTransformer(path)", "None: load the model first"),
    "a list": (lambda: [tuned()], "a list: give one model", "a list: give one module"),
    "a class": (
        lambda: type(tuned()),
        "the class SentenceTransformer: give a loaded model, not a class",
        "the class SentenceTransformer: make an instance of it",
    ),
    "a config": (
        lambda: CONFIG,
        "a PromptTuningConfig: load it first, SentenceTransformer(path)",
        "a PromptTuningConfig: load the model first",
    ),
}


@pytest.mark.parametrize("given", NO_MODEL)
@pytest.mark.parametrize("name", PIPELINE)
def test_what_is_no_model_is_a_type_error_that_says_how_to_come_by_one(name: str, given: str) -> None:
    make, told, _ = NO_MODEL[given]
    with pytest.raises(TypeError) as caught:
        PIPELINE[name](make())
    assert str(caught.value) == f"expected a SentenceTransformer, got {told}"


@pytest.mark.parametrize("given", NO_MODEL)
@pytest.mark.parametrize("name", MODULE)
def test_what_takes_any_module_wants_a_module(name: str, given: str) -> None:
    make, _, told = NO_MODEL[given]
    with pytest.raises(TypeError) as caught:
        MODULE[name](make())
    assert str(caught.value) == f"{name} needs an nn.Module, got {told}"


def test_what_holds_a_module_is_told_so() -> None:
    """Such as a trainer, a pipeline of transformers, or a CrossEncoder before 4.0."""

    class Trainer:
        model = nn.Identity()

    with pytest.raises(TypeError, match=r"HookRegistry needs an nn\.Module, got a Trainer: give its `\.model`$"):
        HookRegistry(Trainer())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PIPELINE if name != "check_padding_invariance"])
def test_a_part_of_a_model_is_refused_in_favour_of_the_whole(name: str) -> None:
    """A PeftModel alone and an AutoModel alone have no Pooling."""
    wrapped, backbone = tuned()[0].model, bare()[0].model
    for part, instead in (
        (wrapped, "the PeftModel; peft_hooks.add_prompt_adapter(model, peft_config) puts an adapter into one"),
        (backbone, "its backbone or its adapter"),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            PIPELINE[name](part)
        assert str(caught.value) == (
            f"expected a Sentence Transformers model, got a {type(part).__name__}, which has no Transformer module: "
            f"give the SentenceTransformer itself, not {instead}"
        )


def test_a_part_of_a_model_cannot_encode() -> None:
    with pytest.raises(TypeError) as caught:
        check_padding_invariance(bare()[0].model, TEXTS)
    assert str(caught.value) == "expected a SentenceTransformer, got a BertModel: it has no encode()"


# --- everything else --------------------------------------------------------------------------------------------------


class Wrong(NamedTuple):
    """A wrong call, and its error."""

    call: Callable[[], Any]
    error: type[Exception]
    told: str


def meta() -> Any:
    """Return a model that has shapes and no values."""
    return adapted("bert").to("meta")


def registry() -> HookRegistry:
    """Return the registry of a model that lives as long as the tests."""
    return HookRegistry(tuned())


def removed() -> Any:
    """Return a handle whose hooks are gone."""
    handle = register_prompt_mask_hooks(tuned())
    handle.remove()
    return handle


TASKS = "give a whole number from 0"
ON_META = (
    "'0.model.base_model.embeddings.word_embeddings.weight' of this SentenceTransformer is on the meta device, where "
    "there are shapes and no values: load the weights first, SentenceTransformer(path)"
)
A_CONFIG = "expected a PEFT config such as PromptTuningConfig(num_virtual_tokens=10), got "
WRONG: dict[str, Wrong] = {
    # options
    "a misspelt policy": Wrong(
        lambda: register_prompt_mask_hooks(tuned(), virtual_tokens="strp"),  # type: ignore[arg-type]
        ValueError,
        "virtual_tokens='strp' is not a policy: choose one of 'auto', 'pool', 'ignore', 'strip'",
    ),
    "a misspelt policy of a hook": Wrong(
        lambda: ExtendPromptMask("strp"),  # type: ignore[arg-type]
        ValueError,
        "virtual_tokens='strp' is not a policy: choose one of 'auto', 'pool', 'ignore', 'strip'",
    ),
    "a policy by another name": Wrong(
        lambda: entered(prompt_mask_hooks(tuned(), virtual_token="strip")),
        TypeError,
        "no option is named 'virtual_token'; did you mean 'virtual_tokens'?",
    ),
    "an unknown option": Wrong(
        lambda: add_prompt_adapter(bare(), CONFIG, policy="strip"),
        TypeError,
        "no option is named 'policy'; there are: 'check', 'log', 'share_prompt', 'task_id', 'virtual_tokens'",
    ),
    "an unknown option of load": Wrong(
        lambda: load("tuned", policy="strip"),
        TypeError,
        "no option is named 'policy'; there are: 'check', 'log', 'share_prompt', 'task_id', 'virtual_tokens'",
    ),
    "a switch that is a word": Wrong(
        lambda: register_prompt_mask_hooks(tuned(), check="no"),  # type: ignore[arg-type]
        ValueError,
        "check='no': give True or False",
    ),
    "a task by name": Wrong(
        lambda: register_prompt_mask_hooks(tuned(), task_id="query"),  # type: ignore[arg-type]
        ValueError,
        f"task_id='query' is not a task: {TASKS}",
    ),
    "a task below 0": Wrong(lambda: SelectTask(-1), ValueError, f"task_id=-1 is not a task: {TASKS}"),
    "a task where there are none": Wrong(
        lambda: register_prompt_mask_hooks(tuned(), task_id=0),
        ValueError,
        "task_id=0 is given, but no adapter has tasks: only MULTITASK_PROMPT_TUNING has",
    ),
    # adapters
    "no adapter": Wrong(
        lambda: register_prompt_mask_hooks(bare()),
        UnsupportedModelError,
        "this SentenceTransformer has no PEFT adapter: put one on with "
        "peft_hooks.add_prompt_adapter(model, PromptTuningConfig(...))",
    ),
    "a dict in place of a config": Wrong(
        lambda: add_prompt_adapter(bare(), {"num_virtual_tokens": 10}),  # type: ignore[arg-type]
        TypeError,
        f"{A_CONFIG}a dict",
    ),
    "a class in place of a config": Wrong(
        lambda: add_prompt_adapter(bare(), PromptTuningConfig),  # type: ignore[arg-type]
        TypeError,
        f"{A_CONFIG}the class PromptTuningConfig",
    ),
    "a method in place of a config": Wrong(
        lambda: add_prompt_adapter(bare(), "prompt_tuning"),  # type: ignore[arg-type]
        TypeError,
        f"{A_CONFIG}the str 'prompt_tuning'",
    ),
    "a config of no virtual tokens": Wrong(
        lambda: add_prompt_adapter(bare(), PrefixTuningConfig()),
        ValueError,
        "num_virtual_tokens=None: give how many virtual tokens there are, such as "
        "PrefixTuningConfig(num_virtual_tokens=10)",
    ),
    "a config for text generation": Wrong(
        lambda: add_prompt_adapter(bare(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
        ValueError,
        'task_type="CAUSAL_LM" is for models that generate text, and the backbone is a BertModel: leave task_type out',
    ),
    "LoRA of layers that are not there": Wrong(
        lambda: add_prompt_adapter(bare(), LoraConfig(target_modules=["q_proj"])),
        ValueError,
        "Target modules {'q_proj'} not found in the base model",
    ),
    "a name that is taken": Wrong(
        lambda: add_prompt_adapter(tuned(), CONFIG),
        ValueError,
        "an adapter named 'default' is there already: give another adapter_name",
    ),
    "no name": Wrong(
        lambda: add_prompt_adapter(bare(), CONFIG, None),  # type: ignore[arg-type]
        TypeError,
        "adapter_name=None: give a name, such as 'default'",
    ),
    "another method beside the first": Wrong(
        lambda: add_prompt_adapter(tuned(), PrefixTuningConfig(num_virtual_tokens=2), "second"),
        ValueError,
        "Cannot combine adapters with different peft types",
    ),
    "removing what is not there": Wrong(
        lambda: remove_prompt_adapter(tuned(), "second"),
        ValueError,
        "there is no adapter named 'second' on this model; there are: 'default'",
    ),
    # texts, devices
    "no texts": Wrong(
        lambda: check_padding_invariance(tuned(), []),
        ValueError,
        "got 0 texts: at least two are needed to make a batch",
    ),
    "no texts for the doctor": Wrong(
        lambda: diagnose(tuned(), []), ValueError, "got 0 texts: at least two are needed to make a batch"
    ),
    "one text": Wrong(
        lambda: check_padding_invariance(tuned(), "a cat"),
        TypeError,
        "texts is one string: give a list of at least two texts, of different lengths",
    ),
    "None in place of texts": Wrong(
        lambda: check_padding_invariance(tuned(), None),  # type: ignore[arg-type]
        TypeError,
        "texts is None: give a list of at least two texts, of different lengths",
    ),
    "numbers in place of texts": Wrong(
        lambda: diagnose(tuned(), ["a cat", 2]),  # type: ignore[list-item]
        TypeError,
        "texts has 2 in it: give a list of at least two texts",
    ),
    "a batch size alone": Wrong(
        lambda: check_padding_invariance(tuned(), TEXTS, batch_sizes=2),  # type: ignore[arg-type]
        ValueError,
        "batch_sizes=2: give a list of positive whole numbers, such as [2, 8]",
    ),
    "a model without values": Wrong(
        lambda: check_padding_invariance(meta(), TEXTS),
        UnsupportedModelError,
        ON_META,
    ),
    "a doctor's patient without values": Wrong(lambda: diagnose(meta()), UnsupportedModelError, ON_META),
    "saving a model without values": Wrong(lambda: save(meta(), "never-written"), UnsupportedModelError, ON_META),
    # saving, loading
    "loading from nowhere": Wrong(
        lambda: load("/no/such/folder"), LoadError, "/no/such/folder: not a model directory, and no such path exists"
    ),
    "loading None": Wrong(
        lambda: load(None),  # type: ignore[arg-type]
        TypeError,
        "expected the folder or the name of a saved model, got None",
    ),
    "loading a model": Wrong(
        lambda: load(tuned()),
        TypeError,
        "expected the folder or the name of a saved model, got a SentenceTransformer",
    ),
    "saving before there is an adapter": Wrong(
        lambda: save(bare(), "never-written"),
        UnsupportedModelError,
        "this SentenceTransformer has no PEFT adapter: save it with model.save_pretrained(path)",
    ),
    "saving to None": Wrong(
        lambda: save(tuned(), None),  # type: ignore[arg-type]
        TypeError,
        "expected the path of a folder to save in, got None",
    ),
    "saving to a file": Wrong(lambda: save(tuned(), __file__), SaveError, f"{__file__}: this is a file: give a folder"),
    # hooks of one's own
    "a hook's class": Wrong(
        lambda: registry().attach(LogShapes, to="transformer"),  # type: ignore[arg-type]
        TypeError,
        "attach needs an instance of a peft_hooks.Hook, got <class 'peft_hooks.LogShapes'>: make an instance of it",
    ),
    "a function in place of a hook": Wrong(
        lambda: registry().attach(print, to="transformer"),  # type: ignore[arg-type]
        TypeError,
        "attach needs an instance of a peft_hooks.Hook, got <built-in function print>",
    ),
    "a place that is not there": Wrong(
        lambda: registry().attach(LogShapes(), to="2"),
        SelectorError,
        "no module of SentenceTransformer matches '2'; there are: '0', '0.model', '0.model.base_model'",
    ),
    "no place": Wrong(
        lambda: registry().attach(LogShapes(), to=None),  # type: ignore[arg-type]
        SelectorError,
        "None cannot select a module: give a role, a path, a glob, a module class, a module or a predicate "
        "(path, module) -> bool",
    ),
    "a hook that was never attached": Wrong(
        lambda: registry().detach("watch"), HookNameError, "no hook is named 'watch'"
    ),
    "an order by name": Wrong(
        lambda: registry().attach(LogShapes(), to="transformer", order="first"),  # type: ignore[arg-type]
        TypeError,
        "name='LogShapes', order='first': give a str, and a number: lower runs first",
    ),
    "a name that is a number": Wrong(
        lambda: registry().attach(LogShapes(), to="transformer", name=1),  # type: ignore[arg-type]
        TypeError,
        "name=1, order=0: give a str, and a number: lower runs first",
    ),
    "a block of hooks that were removed": Wrong(
        lambda: entered(removed()),
        HookError,
        "these hooks were removed: attach them again, register_prompt_mask_hooks(model)",
    ),
    "dimensions of a module that is not there": Wrong(
        lambda: entered(assert_dimensions(tuned(), {"encoder": {"x": "batch seq"}})),
        SelectorError,
        "no module of SentenceTransformer matches 'encoder'; there are: '0', '0.model'",
    ),
    "dimensions that are no text": Wrong(
        lambda: AssertDimensions("batch seq"),  # type: ignore[arg-type]
        TypeError,
        "expected dimensions by tensor, such as {'x': 'batch seq 64'}, got the str 'batch seq'",
    ),
    "a depth below 0": Wrong(
        lambda: entered(trace_shapes(tuned(), depth=-1)),
        ValueError,
        "max_calls must be at least 1 and depth not negative, got 100 and -1",
    ),
    "a name that the library has not": Wrong(
        lambda: peft_hooks.register_hooks,  # type: ignore[attr-defined]
        AttributeError,
        "module 'peft_hooks' has no attribute 'register_hooks'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_says_what_was_given_and_leaves_nothing(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, models = WRONG[name], (bare(), tuned())
    before = [(hooks_on(model, foreign=True), [path for path, _ in model.named_modules()]) for model in models]
    with pytest.raises(wrong.error) as caught:
        wrong.call()
    assert str(caught.value).startswith(wrong.told)
    assert [(hooks_on(model, foreign=True), [path for path, _ in model.named_modules()]) for model in models] == before
    assert not any(tmp_path.iterdir())


def test_other_options_beside_those_in_force_say_how_to_replace_them() -> None:
    with register_prompt_mask_hooks(tuned()) as handle, pytest.raises(HookError) as caught:
        register_prompt_mask_hooks(tuned(), virtual_tokens="strip")
    assert str(caught.value) == (
        "the model has the hooks with other options, HookHandle(virtual_tokens='auto', task_id=None, check=True, "
        "log=False, share_prompt='auto', 10 hooks): call `.remove()` on that handle first, or use "
        "`with prompt_mask_hooks(model, ...)` for a block"
    )
    assert not handle.active


def test_removing_twice_is_removing_once() -> None:
    handle = register_prompt_mask_hooks(tuned())
    handle.remove()
    handle.remove()
    assert not handle.active
    assert not hooks_on(tuned(), foreign=True)
    assert str(handle.describe()).splitlines()[0].split() == ["module", "role", "hook", "order", "calls", "note"]


def test_no_texts_at_all_are_encoded_as_without_hooks() -> None:
    without = tuned().encode([])
    with prompt_mask_hooks(tuned()):
        assert tuned().encode([]).shape == without.shape
        assert torch.as_tensor(tuned().encode([""])).shape == (1, 32)
