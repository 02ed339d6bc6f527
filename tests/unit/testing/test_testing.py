"""``peft_hooks.testing`` and the pytest plugin: what users test their own hooks with."""

from __future__ import annotations

import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import peft_hooks
from peft_hooks import Hook, HookRegistry, LogShapes, register_prompt_mask_hooks, testing, trace_shapes
from peft_hooks.testing import (
    TEXTS,
    assert_no_hooks_left,
    assert_padding_invariant,
    assert_shapes,
    tiny_features,
    tiny_model,
)

from ...tools.methods import put_adapter
from ...tools.wording import Golden, assert_says

pytest_plugins = ("pytester", "peft_hooks.pytest_plugin")


class ReadsPadding(Hook):
    """Makes an embedding depend on the length of its batch."""

    def after(self, call: Any, output: Any) -> Any:
        return {**output, "sentence_embedding": output["sentence_embedding"] + output["attention_mask"].size(1)}


# -- padding -----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_right_passes_with_its_report() -> None:
    report = assert_padding_invariant(tiny_model())
    assert report.ok
    assert [row.text for row in report.differences] == list(TEXTS)


def test_a_model_that_is_not_fails_with_the_report_and_the_texts_the_worst_first(golden: Golden) -> None:
    model = tiny_model()
    with HookRegistry(model).attached(ReadsPadding(), to="pooling"), pytest.raises(AssertionError) as caught:
        assert_padding_invariant(model, ["a cat", "the dog sleeps on the warm sofa"], batch_sizes=[2])
    golden("assertions", caught.value)
    first, worst, *others = str(caught.value).splitlines()
    assert_says(first, "2 embeddings | 5.00e+00 | tolerance 1e-04 | 'a cat'")
    assert_says(worst, "5.00e+00 | batch of 2 | 'a cat'")
    assert others == []


def test_options_reach_the_check() -> None:
    model = tiny_model()
    with HookRegistry(model).attached(ReadsPadding(), to="pooling"):
        assert assert_padding_invariant(model, TEXTS, tolerance=100.0).tolerance == 100.0


# -- hooks that are left -----------------------------------------------------------------------------------------------


def test_every_hook_of_the_library_is_named_with_its_module_and_owner(golden: Golden) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    registry = HookRegistry(model, owner="mine")
    registry.attach(LogShapes(), to="0", name="log")
    registry.attach(ReadsPadding(), to="0", name="reads", order=1)
    registry.attach(LogShapes(), to="1")
    with pytest.raises(AssertionError) as caught:
        assert_no_hooks_left(model)
    golden("assertions", caught.value)
    model_name, linear, relu = str(caught.value).splitlines()
    assert_says(model_name, "hooks | Sequential")
    assert_says(linear, "Linear '0' | log (LogShapes) | reads (ReadsPadding) | of mine")
    assert_says(relu, "ReLU '1' | LogShapes (LogShapes) | of mine")
    registry.clear()
    assert_no_hooks_left(model)


def test_a_trace_that_runs_counts_and_one_that_is_over_does_not() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with trace_shapes(model), pytest.raises(AssertionError, match=r"Linear '0': peft_hooks\.tracing\.tap\.Tap"):
        assert_no_hooks_left(model)
    assert_no_hooks_left(model, foreign=True)


def test_hooks_of_others_count_when_asked_for(golden: Golden) -> None:
    model = nn.Sequential(nn.Linear(2, 3))

    def theirs(*_: Any) -> None:
        return None

    handles = [
        model[0].register_forward_hook(theirs),
        model[0].register_forward_pre_hook(theirs),
        model.register_full_backward_hook(theirs),
        model.register_full_backward_pre_hook(ReadsPadding().after),
    ]
    assert_no_hooks_left(model)
    with pytest.raises(AssertionError) as caught:
        assert_no_hooks_left(model, foreign=True)
    name = "tests.unit.testing.test_testing.test_hooks_of_others_count_when_asked_for.<locals>.theirs"
    golden("assertions", caught.value)
    _, before, after, forward = str(caught.value).splitlines()
    assert_says(before, "Sequential '' | tests.unit.testing.test_testing.ReadsPadding | backward pre-hook")
    assert_says(after, f"Sequential '' | {name} | backward hook")
    assert_says(forward, f"Linear '0' | {name} | forward pre-hook | forward hook")
    for handle in handles:
        handle.remove()
    assert_no_hooks_left(model, foreign=True)


def test_the_mask_hooks_leave_nothing() -> None:
    model = tiny_model()
    put_adapter(model, "prompt_tuning")
    handle = register_prompt_mask_hooks(model)
    with pytest.raises(
        AssertionError, match="mask:0 \\(ExtendPromptMask\\), check:0 \\(AssertDimensions\\) of Options"
    ):
        assert_no_hooks_left(model)
    handle.remove()
    assert_no_hooks_left(model, foreign=True)


# -- shapes of hand-made tensors ---------------------------------------------------------------------------------------


def test_shapes_that_agree_are_returned_by_name() -> None:
    text = {"token_embeddings": "float: batch seq 8", "attention_mask!": "i64: batch seq"}
    assert assert_shapes(tiny_features(virtual_tokens=0), text) == {"batch": 2, "seq": 6}
    assert assert_shapes(torch.zeros(3, 4), "batch ... 4") == {"batch": 3}
    assert assert_shapes((torch.zeros(3), [torch.zeros(2)]), {"0": "a", "1.0": "b"}) == {"a": 3, "b": 2}


def test_shapes_that_disagree_are_named() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_shapes(tiny_features(), {"token_embeddings": "batch seq 8", "attention_mask": "batch seq"})
    assert_says(caught.value, "attention_mask | [2, 6] | seq = 9 | token_embeddings [2, 9, 8] | 3 fewer")
    with pytest.raises(AssertionError, match=r"\[3\].* 2 dimensions .*batch seq"):
        assert_shapes(torch.zeros(3), "batch seq")
    with pytest.raises(AssertionError, match="'mask'"):
        assert_shapes({}, {"mask!": "batch"})


# -- the pytest plugin -------------------------------------------------------------------------------------------------


def test_the_plugin_and_the_package_import_neither_torch_nor_what_needs_it() -> None:
    heavy = {"torch", "sentence_transformers", "peft", "transformers", "rich"}
    code = (
        f"import peft_hooks.pytest_plugin, peft_hooks.testing, sys; sys.exit(str(sorted({heavy} & set(sys.modules))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.strip() == "[]"


def test_the_public_names_are_those_that_are_imported_when_used() -> None:
    assert peft_hooks.__all__ == sorted(peft_hooks.__all__)
    for name in peft_hooks.__all__:
        assert getattr(peft_hooks, name).__name__ == name
        assert name in dir(peft_hooks)
    seen_by_type_checkers = re.findall(r"import (\w+) as \1$|^        (\w+) as \2,$", _source(), re.MULTILINE)
    assert sorted(map("".join, seen_by_type_checkers)) == peft_hooks.__all__
    with pytest.raises(AttributeError, match="module 'peft_hooks' has no attribute 'Hok'"):
        peft_hooks.Hok  # noqa: B018


def _source() -> str:
    return Path(peft_hooks.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*peft_hooks.__all__, *(f"testing.{name}" for name in testing.__all__)])
def test_a_public_name_has_the_module_that_users_import_it_from(name: str) -> None:
    """Reprs, errors and pickles name it, and survive a move between files."""
    if name == "PromptTrainer" and name not in dir(peft_hooks):
        pytest.skip("Sentence Transformers 2 has no trainer")
    home, _, name = f"peft_hooks.{name}".rpartition(".")
    found = getattr(importlib.import_module(home), name)
    if callable(found):
        assert found.__module__ == home
        assert pickle.loads(pickle.dumps(found)) is found


@pytest.mark.parametrize("name", ["testing", "errors", "__version__"])
def test_the_submodules_and_the_version_are_attributes_of_the_package(name: str) -> None:
    code = f"import peft_hooks; print(peft_hooks.{name}); assert {name!r} in dir(peft_hooks)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_fixture_makes_tiny_models(tiny_sentence_model: Any) -> None:
    model = tiny_sentence_model(pooling="cls")
    assert len(model.encode("a cat")) == 32


def test_the_fixture_checks_until_the_test_ends(assert_dimensions: Any, no_hooks_left: Any) -> None:
    model = no_hooks_left(nn.Sequential(nn.Linear(2, 3)))
    assert_dimensions(model, {"0": {"": "batch 2"}})
    with pytest.raises(peft_hooks.DimensionError):
        model(torch.zeros(3, 2, 2))


OUTCOMES = """
import pytest
from torch import nn

from peft_hooks import HookRegistry, LogShapes, prompt_mask_hooks

def test_leaves_a_hook(no_hooks_left):
    model = no_hooks_left(nn.Sequential(nn.ReLU()))
    HookRegistry(model, owner="mine").attach(LogShapes(), to="0", name="log")

def test_leaves_a_hook_of_another(no_hooks_left):
    model = nn.Sequential(nn.ReLU())
    model.register_forward_hook(print)
    no_hooks_left(model)[0].register_forward_hook(print)

def test_leaves_none(no_hooks_left):
    model = no_hooks_left(nn.Sequential(nn.ReLU()))
    with HookRegistry(model).attached(LogShapes(), to="0"):
        pass

def test_leaves_one_on_a_tiny_model(no_hooks_left, tiny_sentence_model):
    HookRegistry(tiny_sentence_model(), owner="mine").attach(LogShapes(), to="pooling", name="log")

def test_needs_another_release(tiny_sentence_model):
    tiny_sentence_model("no-such-model")

def test_is_wrong(tiny_sentence_model):
    tiny_sentence_model(pooling="no-such-mode")

def test_disagrees(assert_dimensions, no_hooks_left):
    import torch
    model = no_hooks_left(nn.Sequential(nn.ReLU()))
    assert_dimensions(model, {"0": {"": "batch 3"}})
    model(torch.zeros(2, 4))
"""


def test_the_fixtures_pass_fail_and_skip(pytester: Any) -> None:
    pytester.makepyfile(OUTCOMES)
    found = pytester.runpytest_inprocess("-p", "peft_hooks.pytest_plugin", "-rs", "-p", "no:cacheprovider")
    found.assert_outcomes(passed=4, failed=2, errors=3, skipped=1)
    found.stdout.fnmatch_lines_random(
        [
            "*ERROR at teardown of test_leaves_a_hook*",
            "  ReLU '0': log (LogShapes) of mine",
            "  ReLU '0': builtins.print (forward hook)",
            "  Pooling '1': log (LogShapes) of mine",
            "SKIPPED*no architecture 'no-such-model'*",
            "*unknown pooling modes*",
            "*DimensionError: ReLU '0' input*[[]2, 4[]]*size = 3*",
        ]
    )


# -- --explain-shapes --------------------------------------------------------------------------------------------------

FAILING = """
    import unittest
    import pytest
    import torch
    from torch import nn

    def fail():
        return nn.Linear(3, 4)(torch.zeros(2, 5))

    @pytest.fixture
    def broken():
        fail()

    def test_call():
        fail()

    def test_fixture(broken):
        pass

    class TestCase(unittest.TestCase):
        def test_case(self):
            fail()

    def test_plain():
        assert [1] == [2]

    def test_expected():
        with pytest.raises(RuntimeError):
            fail()

    def test_skipped():
        pytest.skip("not now")
"""


shows_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 prints no notes: they are logged")


@shows_notes
def test_a_failing_test_is_explained_if_asked_whatever_failed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    asked = pytester.runpytest_inprocess("-p", "peft_hooks.pytest_plugin", "--explain-shapes")
    asked.assert_outcomes(passed=1, failed=3, errors=1, skipped=1)
    shown = [line for line in asked.outlines if line.startswith("E   ") and "peft_hooks: Linear raised" in line]
    assert len(shown) == 3
    assert sum("in_features=5 in Linear" in line for line in asked.outlines) == 3


@shows_notes
@pytest.mark.parametrize("style", ["short", "line", "native", "long"])
def test_each_style_of_traceback_shows_the_note_and_no_warning(pytester: pytest.Pytester, style: str) -> None:
    pytester.makepyfile("import torch\ndef test_it(): torch.nn.Linear(3, 4)(torch.zeros(2, 5))")
    done = pytester.runpytest_inprocess("-p", "peft_hooks.pytest_plugin", "--explain-shapes", f"--tb={style}")
    done.assert_outcomes(failed=1, warnings=0)
    done.stdout.fnmatch_lines(["*peft_hooks: Linear raised RuntimeError"])


def test_a_failing_test_is_not_explained_otherwise(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    plain = pytester.runpytest_inprocess("-p", "peft_hooks.pytest_plugin")
    plain.assert_outcomes(passed=1, failed=3, errors=1, skipped=1)
    assert "peft_hooks: " not in plain.stdout.str()
