"""A few of what ``python -m tests.tools.stress`` does by the thousand, and that it can tell what is wrong."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import peft_hooks
from peft_hooks.compat.quiet import quiet
from peft_hooks.testing import tiny_transformer

from ..tools import stress

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer("bert", tmp_path_factory.mktemp("base") / "bert")


def test_random_edits_are_refused_in_words_or_give_the_same(base: Path) -> None:
    came = list(stress.edits(base, 24, random.Random(11)))
    assert not [line for line in came if "WRONG" in line]
    assert {line.partition("\0")[0] for line in came} == {"equal", "refused"}


def test_interrupts_of_use_leave_models_and_folders_whole(base: Path) -> None:
    came = list(stress.interrupts_of_use(base, 16, random.Random(3)))
    assert {line.partition(":")[0] for line in came} == {"encode", "train", "save", "load"}
    assert not [line for line in came if "WRONG" in line]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_is_killed_leaves_one_model_or_the_other(base: Path) -> None:
    assert not [line for line in stress.kills(base, 4, random.Random(1)) if "WRONG" in line]


def test_a_folder_with_another_model_is_called_wrong(base: Path, tmp_path: Path) -> None:
    one, other = stress.build(base, "prompt_tuning"), stress.build(base, "prompt_tuning", seed=2)
    peft_hooks.save(one, tmp_path / "model")
    assert stress.outcome(tmp_path / "model", stress.vectors(one)) == "equal"
    assert stress.outcome(tmp_path / "model", stress.vectors(other)) == "WRONG, silently a different model"
