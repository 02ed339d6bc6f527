"""Calls as a new user would get them wrong: each error says what was given, what was expected and what to call.

And the model is as it was.
"""

from __future__ import annotations

import re
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

from ..tools.wording import Golden, assert_says

CONFIG = PromptTuningConfig(num_virtual_tokens=2)
TEXTS = ["a cat", "the dog sleeps on the warm sofa"]


class Models(NamedTuple):
    """Models that live as long as the tests here, with no adapter and with a prompt; neither has hooks."""

    bare: Any
    tuned: Any
    adapted: Callable[..., Any]

    def meta(self) -> Any:
        """Return a model that has shapes and no values."""
        return self.adapted("bert").to("meta")

    def registry(self) -> HookRegistry:
        """Return the registry of a model that lives as long as the tests."""
        return HookRegistry(self.tuned)

    def removed(self) -> Any:
        """Return a handle whose hooks are gone."""
        handle = register_prompt_mask_hooks(self.tuned)
        handle.remove()
        return handle


@pytest.fixture(scope="module")
def models(plain: Any, adapted: Any) -> Models:
    return Models(plain("bert"), adapted("bert"), adapted)


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
NO_MODEL: dict[str, tuple[Callable[[Models], Any], str, str]] = {
    "a name": (
        lambda models: "all-MiniLM-L6-v2",
        "the str 'all-MiniLM-L6-v2' | load it first | SentenceTransformer('all-MiniLM-L6-v2')",
        "the str 'all-MiniLM-L6-v2' | load the model first",
    ),
    "None": (lambda models: None, "None | load it first | SentenceTransformer(path)", "None | load the model first"),
    "a list": (lambda models: [models.tuned], "a list | one model", "a list | one module"),
    "a class": (
        lambda models: type(models.tuned),
        "the class SentenceTransformer | a loaded model",
        "the class SentenceTransformer | an instance of it",
    ),
    "a config": (
        lambda models: CONFIG,
        "a PromptTuningConfig | load it first | SentenceTransformer(path)",
        "a PromptTuningConfig | load the model first",
    ),
}


@pytest.mark.parametrize("given", NO_MODEL)
@pytest.mark.parametrize("name", PIPELINE)
def test_what_is_no_model_is_a_type_error_that_says_how_to_come_by_one(
    name: str, given: str, models: Models, golden: Golden
) -> None:
    """In the same words, whatever was called."""
    make, facts, _ = NO_MODEL[given]
    with pytest.raises(TypeError) as caught:
        PIPELINE[name](make(models))
    golden("refusals", caught.value, title=given)
    assert_says(caught.value, f"a SentenceTransformer | {facts}")


@pytest.mark.parametrize("given", NO_MODEL)
@pytest.mark.parametrize("name", MODULE)
def test_what_takes_any_module_wants_a_module(name: str, given: str, models: Models, golden: Golden) -> None:
    make, _, facts = NO_MODEL[given]
    with pytest.raises(TypeError) as caught:
        MODULE[name](make(models))
    golden("refusals", caught.value)
    assert_says(caught.value, f"{name} | nn.Module | {facts}")


def test_what_holds_a_module_is_told_so() -> None:
    """Such as a trainer, a pipeline of transformers, or a CrossEncoder before 4.0."""

    class Trainer:
        model = nn.Identity()

    with pytest.raises(TypeError, match=r"HookRegistry .*nn\.Module.* a Trainer.* `\.model`$"):
        HookRegistry(Trainer())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PIPELINE if name != "check_padding_invariance"])
def test_a_part_of_a_model_is_refused_in_favour_of_the_whole(name: str, models: Models, golden: Golden) -> None:
    """A PeftModel alone and an AutoModel alone have no Pooling."""
    wrapped, backbone = models.tuned[0].model, models.bare[0].model
    for title, part, instead in (
        ("a PeftModel alone", wrapped, "the PeftModel | peft_hooks.add_prompt_adapter(model, peft_config)"),
        ("an AutoModel alone", backbone, "its backbone"),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            PIPELINE[name](part)
        golden("refusals", caught.value, title=title)
        assert_says(caught.value, f"a {type(part).__name__} | no Transformer module | the SentenceTransformer itself")
        assert_says(caught.value, instead)


def test_a_part_of_a_model_cannot_encode(models: Models, golden: Golden) -> None:
    with pytest.raises(TypeError) as caught:
        check_padding_invariance(models.bare[0].model, TEXTS)
    golden("refusals", caught.value)
    assert_says(caught.value, "a SentenceTransformer | a BertModel | encode()")


# --- everything else --------------------------------------------------------------------------------------------------


class Wrong(NamedTuple):
    """A wrong call, its error, and what that has to say."""

    call: Callable[[Models], Any]
    error: type[Exception]
    facts: str
    ours: bool = True  # and no words of PEFT


TASKS = "a whole number from 0"
ON_META = "'0.model.base_model.embeddings.word_embeddings.weight' | meta device | no values | SentenceTransformer(path)"
A_CONFIG = "a PEFT config | PromptTuningConfig(num_virtual_tokens=10) | got "
WRONG: dict[str, Wrong] = {
    # options
    "a misspelt policy": Wrong(
        lambda models: register_prompt_mask_hooks(models.tuned, virtual_tokens="strp"),  # type: ignore[arg-type]
        ValueError,
        "virtual_tokens='strp' | 'auto', 'pool', 'ignore', 'strip'",
    ),
    "a misspelt policy of a hook": Wrong(
        lambda models: ExtendPromptMask("strp"),  # type: ignore[arg-type]
        ValueError,
        "virtual_tokens='strp' | 'auto', 'pool', 'ignore', 'strip'",
    ),
    "a policy by another name": Wrong(
        lambda models: entered(prompt_mask_hooks(models.tuned, virtual_token="strip")),
        TypeError,
        "'virtual_token' | 'virtual_tokens'",
    ),
    "an unknown option": Wrong(
        lambda models: add_prompt_adapter(models.bare, CONFIG, policy="strip"),
        TypeError,
        "'policy' | 'check', 'log', 'share_prompt', 'task_id', 'virtual_tokens'",
    ),
    "an unknown option of load": Wrong(
        lambda models: load("tuned", policy="strip"),
        TypeError,
        "'policy' | 'check', 'log', 'share_prompt', 'task_id', 'virtual_tokens'",
    ),
    "a switch that is a word": Wrong(
        lambda models: register_prompt_mask_hooks(models.tuned, check="no"),  # type: ignore[arg-type]
        ValueError,
        "check='no' | True or False",
    ),
    "a task by name": Wrong(
        lambda models: register_prompt_mask_hooks(models.tuned, task_id="query"),  # type: ignore[arg-type]
        ValueError,
        f"task_id='query' | {TASKS}",
    ),
    "a task below 0": Wrong(lambda models: SelectTask(-1), ValueError, f"task_id=-1 | {TASKS}"),
    "a task where there are none": Wrong(
        lambda models: register_prompt_mask_hooks(models.tuned, task_id=0),
        ValueError,
        "task_id=0 | no adapter has tasks | MULTITASK_PROMPT_TUNING",
    ),
    # adapters
    "no adapter": Wrong(
        lambda models: register_prompt_mask_hooks(models.bare),
        UnsupportedModelError,
        "SentenceTransformer | no PEFT adapter | peft_hooks.add_prompt_adapter(model, PromptTuningConfig(...))",
    ),
    "a dict in place of a config": Wrong(
        lambda models: add_prompt_adapter(models.bare, {"num_virtual_tokens": 10}),  # type: ignore[arg-type]
        TypeError,
        f"{A_CONFIG}a dict",
    ),
    "a class in place of a config": Wrong(
        lambda models: add_prompt_adapter(models.bare, PromptTuningConfig),  # type: ignore[arg-type]
        TypeError,
        f"{A_CONFIG}the class PromptTuningConfig",
    ),
    "a method in place of a config": Wrong(
        lambda models: add_prompt_adapter(models.bare, "prompt_tuning"),  # type: ignore[arg-type]
        TypeError,
        f"{A_CONFIG}the str 'prompt_tuning'",
    ),
    "a config of no virtual tokens": Wrong(
        lambda models: add_prompt_adapter(models.bare, PrefixTuningConfig()),
        ValueError,
        "num_virtual_tokens=None | PrefixTuningConfig(num_virtual_tokens=10)",
    ),
    "a config for text generation": Wrong(
        lambda models: add_prompt_adapter(models.bare, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
        ValueError,
        'task_type="CAUSAL_LM" | generate text | BertModel | leave task_type out',
    ),
    "LoRA of layers that are not there": Wrong(
        lambda models: add_prompt_adapter(models.bare, LoraConfig(target_modules=["q_proj"])),
        ValueError,
        "Target modules {'q_proj'} not found in the base model",
        ours=False,
    ),
    "a name that is taken": Wrong(
        lambda models: add_prompt_adapter(models.tuned, CONFIG),
        ValueError,
        "'default' | another adapter_name",
    ),
    "no name": Wrong(
        lambda models: add_prompt_adapter(models.bare, CONFIG, None),  # type: ignore[arg-type]
        TypeError,
        "adapter_name=None | 'default'",
    ),
    "another method beside the first": Wrong(
        lambda models: add_prompt_adapter(models.tuned, PrefixTuningConfig(num_virtual_tokens=2), "second"),
        ValueError,
        "Cannot combine adapters with different peft types",
        ours=False,
    ),
    "removing what is not there": Wrong(
        lambda models: remove_prompt_adapter(models.tuned, "second"),
        ValueError,
        "'second' | there are: 'default'",
    ),
    # texts, devices
    "no texts": Wrong(
        lambda models: check_padding_invariance(models.tuned, []),
        ValueError,
        "0 texts | at least two",
    ),
    "no texts for the doctor": Wrong(lambda models: diagnose(models.tuned, []), ValueError, "0 texts | at least two"),
    "one text": Wrong(
        lambda models: check_padding_invariance(models.tuned, "a cat"),
        TypeError,
        "texts | one string | a list of at least two texts",
    ),
    "None in place of texts": Wrong(
        lambda models: check_padding_invariance(models.tuned, None),  # type: ignore[arg-type]
        TypeError,
        "texts is None | a list of at least two texts",
    ),
    "numbers in place of texts": Wrong(
        lambda models: diagnose(models.tuned, ["a cat", 2]),  # type: ignore[list-item]
        TypeError,
        "texts contains 2 | a list of at least two texts",
    ),
    "a batch size alone": Wrong(
        lambda models: check_padding_invariance(models.tuned, TEXTS, batch_sizes=2),  # type: ignore[arg-type]
        ValueError,
        "batch_sizes=2 | positive whole numbers | [2, 8]",
    ),
    "a model without values": Wrong(
        lambda models: check_padding_invariance(models.meta(), TEXTS),
        UnsupportedModelError,
        ON_META,
    ),
    "a doctor's patient without values": Wrong(lambda models: diagnose(models.meta()), UnsupportedModelError, ON_META),
    "saving a model without values": Wrong(
        lambda models: save(models.meta(), "never-written"), UnsupportedModelError, ON_META
    ),
    # saving, loading
    "loading from nowhere": Wrong(lambda models: load("/no/such/folder"), LoadError, "/no/such/folder | no such path"),
    "loading None": Wrong(
        lambda models: load(None),  # type: ignore[arg-type]
        TypeError,
        "saved model | got None",
    ),
    "loading a model": Wrong(
        lambda models: load(models.tuned),
        TypeError,
        "saved model | got a SentenceTransformer",
    ),
    "saving before there is an adapter": Wrong(
        lambda models: save(models.bare, "never-written"),
        UnsupportedModelError,
        "SentenceTransformer | no PEFT adapter | model.save_pretrained(path)",
    ),
    "saving to None": Wrong(
        lambda models: save(models.tuned, None),  # type: ignore[arg-type]
        TypeError,
        "a folder to save in | got None",
    ),
    "saving to a file": Wrong(
        lambda models: save(models.tuned, __file__), SaveError, f"{__file__} | this is a file | a folder"
    ),
    # hooks of one's own
    "a hook's class": Wrong(
        lambda models: models.registry().attach(LogShapes, to="transformer"),  # type: ignore[arg-type]
        TypeError,
        "attach | peft_hooks.Hook | <class 'peft_hooks.LogShapes'> | an instance of it",
    ),
    "a function in place of a hook": Wrong(
        lambda models: models.registry().attach(print, to="transformer"),  # type: ignore[arg-type]
        TypeError,
        "attach | peft_hooks.Hook | <built-in function print>",
    ),
    "a place that is not there": Wrong(
        lambda models: models.registry().attach(LogShapes(), to="2"),
        SelectorError,
        "SentenceTransformer | '2' | '0', '0.model', '0.model.base_model'",
    ),
    "no place": Wrong(
        lambda models: models.registry().attach(LogShapes(), to=None),  # type: ignore[arg-type]
        SelectorError,
        "None | a role | a path | a glob | a module class | predicate (path, module) -> bool",
    ),
    "a hook that was never attached": Wrong(lambda models: models.registry().detach("watch"), HookNameError, "'watch'"),
    "an order by name": Wrong(
        lambda models: models.registry().attach(LogShapes(), to="transformer", order="first"),  # type: ignore[arg-type]
        TypeError,
        "name='LogShapes' | order='first' | a str | a number",
    ),
    "a name that is a number": Wrong(
        lambda models: models.registry().attach(LogShapes(), to="transformer", name=1),  # type: ignore[arg-type]
        TypeError,
        "name=1 | order=0 | a str | a number",
    ),
    "a block of hooks that were removed": Wrong(
        lambda models: entered(models.removed()),
        HookError,
        "removed | register_prompt_mask_hooks(model)",
    ),
    "dimensions of a module that is not there": Wrong(
        lambda models: entered(assert_dimensions(models.tuned, {"encoder": {"x": "batch seq"}})),
        SelectorError,
        "SentenceTransformer | 'encoder' | '0', '0.model'",
    ),
    "dimensions that are no text": Wrong(
        lambda models: AssertDimensions("batch seq"),  # type: ignore[arg-type]
        TypeError,
        "{'x': 'batch seq 64'} | the str 'batch seq'",
    ),
    "a depth below 0": Wrong(
        lambda models: entered(trace_shapes(models.tuned, depth=-1)),
        ValueError,
        "max_calls | at least 1 | depth | 100 and -1",
    ),
    "a name that the library has not": Wrong(
        lambda models: peft_hooks.register_hooks,  # type: ignore[attr-defined]
        AttributeError,
        "'peft_hooks' | 'register_hooks'",
    ),
}


def state(models: Models) -> list[tuple[Any, list[str]]]:
    """Take down the hooks and the modules of both models."""
    both = (models.bare, models.tuned)
    return [(hooks_on(model, foreign=True), [path for path, _ in model.named_modules()]) for model in both]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_says_what_was_given_and_leaves_nothing(
    name: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = WRONG[name]
    before = state(models)
    with pytest.raises(wrong.error) as caught:
        wrong.call(models)
    if wrong.ours:
        told = str(caught.value).replace(__file__, "<file>")
        golden("refusals", re.sub(r"'0', .* and \d+ more", "<its modules>", told), title=name)
    assert_says(caught.value, wrong.facts)
    assert state(models) == before
    assert not any(tmp_path.iterdir())


def test_other_options_beside_those_in_force_say_how_to_replace_them(models: Models, golden: Golden) -> None:
    with register_prompt_mask_hooks(models.tuned) as handle, pytest.raises(HookError) as caught:
        register_prompt_mask_hooks(models.tuned, virtual_tokens="strip")
    golden("refusals", caught.value)
    assert_says(caught.value, "HookHandle(virtual_tokens='auto', task_id=None, check=True, log=False", "10 hooks")
    assert_says(caught.value, "`.remove()` | `with prompt_mask_hooks(model, ...)`")
    assert not handle.active


def test_removing_twice_is_removing_once(models: Models) -> None:
    handle = register_prompt_mask_hooks(models.tuned)
    handle.remove()
    handle.remove()
    assert not handle.active
    assert not hooks_on(models.tuned, foreign=True)
    assert str(handle.describe()).splitlines()[0].split() == ["module", "role", "hook", "order", "calls", "note"]


def test_no_texts_at_all_are_encoded_as_without_hooks(models: Models) -> None:
    without = models.tuned.encode([])
    with prompt_mask_hooks(models.tuned):
        assert models.tuned.encode([]).shape == without.shape
        assert torch.as_tensor(models.tuned.encode([""])).shape == (1, 32)
