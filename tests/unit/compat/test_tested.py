"""The table of tested stacks, and the one warning of releases that are newer than every one in it."""

from __future__ import annotations

import re
import warnings
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from peft_hooks import diagnose, prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.compat import tested
from peft_hooks.compat.tested import PACKAGES, STACKS, Stack, in_words, newer_than_tested
from peft_hooks.testing import TEXTS

from ...tools.wording import assert_says

ROOT = Path(__file__).parents[3]
NEWEST = dict(zip(PACKAGES, STACKS[-1]))


def tox(section: str) -> list[str]:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return [line for line in config[section]["deps"].split("\n") if line.strip()]


def stack_of(pinned: list[str]) -> Stack:
    versions = dict(pin.split("==") for pin in pinned)
    return Stack(*(versions[package] for package in PACKAGES))


def pins() -> dict[str, Stack]:
    """Return what tox pins, by environment."""
    lines = [line.rpartition(": ") for line in tox("testenv")]
    everywhere = [pin for name, _, pin in lines if not name]
    own = {name: [pin for other, _, pin in lines if other == name] for name, *_ in lines if name}
    return {"torch214": stack_of(tox("testenv:torch214")), **{k: stack_of([*everywhere, *v]) for k, v in own.items()}}


def test_tox_pins_what_the_table_says_and_the_last_line_is_what_pip_installed() -> None:
    """A stack that is only in one of the two was not tested, or is not known to be."""
    assert sorted(pins().values()) == sorted(STACKS[:-1])
    assert len(set(STACKS)) == len(STACKS)
    assert [*STACKS] == sorted(STACKS, key=lambda stack: [Version(number) for number in stack[:2]])


def test_tox_runs_every_stack_by_default_and_compares_what_all_of_them_wrote() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    named = re.split(r"[,\s]+", config["tox:tox"]["env_list"].strip())
    depends = re.split(r"[,\s]+", config["testenv:releases"]["depends"].strip())
    assert {*pins(), "fresh"} - {"torch214"} == {*depends} <= {*named}


def test_ci_runs_every_stack_or_takes_it_by_turns() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    between = re.search(r"^stacks=\((.*)\)$", script, re.MULTILINE)
    assert between is not None
    always = {name for line in re.findall(r"^(?:one|several) (.*)$", script, re.MULTILINE) for name in line.split()}
    assert {*pins(), "fresh"} - {"torch214"} <= always | {*between[1].split()}
    assert always.isdisjoint(between[1].split())


def test_the_other_environments_have_the_newest_of_the_pinned() -> None:
    assert stack_of(tox("testenv:releases")) == pins()["st62"]


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: f"{stack.sentence_transformers}-{stack.transformers}")
def test_nothing_is_said_of_a_tested_stack(stack: Stack) -> None:
    assert in_words(dict(zip(PACKAGES, stack))) is None


@pytest.mark.parametrize(
    "version",
    ["6.2.1", "6.2.0.post1", "6.2.99", "6.2.0.dev0", "6.2.0rc1", "6.2.0+cu130", "6.2", "6", "5.99.0"],
)
def test_a_patch_release_and_a_prerelease_are_passed_by(version: str) -> None:
    assert newer_than_tested({**NEWEST, "sentence-transformers": version}) == {}


@pytest.mark.parametrize("version", ["unknown", "", "main", "not a version", "6.3.0-git-1a2b3c-dirty!", "2026.x"])
def test_what_cannot_be_read_is_passed_by(version: str) -> None:
    assert newer_than_tested({**NEWEST, "sentence-transformers": version}) == {}


@pytest.mark.parametrize("version", ["6.3.0", "6.3", "7", "6.3.0.dev0", "6.3.0rc1", "6.10.0", "6.3.0+git1a2b3c4"])
def test_a_newer_minor_release_is_named_with_the_newest_one_tested(version: str) -> None:
    """By number, so that 6.10 is newer than 6.2; a build of a commit counts as what it leads to."""
    newer = newer_than_tested({**NEWEST, "sentence-transformers": version})
    assert newer == {"sentence-transformers": "6.2.0"}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_of_the_four_is_looked_at(package: str) -> None:
    said = in_words({**NEWEST, package: "99.1.0"})
    assert said is not None
    assert re.search(rf"tested with {package} up to \d+\.\d+; installed are ", said)
    assert f"{package} 99.1.0" in said
    assert all(name in said for name in PACKAGES)


# --- in a process that has a newer release, or one that cannot be read -----------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what lets PEFT's metadata name another version, in a process that has not warned yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tested, "_warned", False)

    def put(version: str) -> None:
        folder = tmp_path / "peft-99.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: peft\n{version}\n")

    return put


def said_when(attach: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach()
    return [one for one in caught if "peft_hooks was tested" in str(one.message)]


def test_a_newer_release_is_warned_of_once_when_hooks_are_attached(installed: Any, adapted: Any) -> None:
    """With all four versions, the way to find out, and the line of the caller."""
    model, other = adapted(), adapted()
    installed("Version: 99.0.1")
    (one,) = said_when(lambda: register_prompt_mask_hooks(model))
    assert_says(str(one.message), "tested with peft up to 0.21 | installed are sentence-transformers ")
    assert "peft 99.0.1" in str(one.message)
    assert "`peft-hooks doctor`" in str(one.message)
    assert one.filename == __file__
    assert said_when(lambda: register_prompt_mask_hooks(other)) == []
    assert model.encode(list(TEXTS)).shape[0] == len(TEXTS)


def test_a_block_warns_too_at_the_line_of_the_caller(installed: Any, adapted: Any) -> None:
    installed("Version: 99.0.1")
    model = adapted()

    def block() -> None:
        with prompt_mask_hooks(model):
            pass

    (one,) = said_when(block)
    assert one.filename == __file__


@pytest.mark.parametrize("line", ["Version: unknown", "Version: 0.21.0.dev0", "Version: 0.21.99", "Version:", "X: y"])
def test_what_cannot_be_read_or_is_tested_neither_warns_nor_stops_attaching(
    installed: Any, line: str, adapted: Any
) -> None:
    installed(line)
    model = adapted()
    assert said_when(lambda: register_prompt_mask_hooks(model)) == []
    assert register_prompt_mask_hooks(model).active


def test_where_warnings_are_errors_nothing_is_half_attached(installed: Any, adapted: Any) -> None:
    installed("Version: 99.0.1")
    model = adapted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="peft_hooks was tested"):
            register_prompt_mask_hooks(model)
    assert register_prompt_mask_hooks(model).active


def test_the_doctor_says_it_as_well(installed: Any, adapted: Any) -> None:
    model = adapted()
    assert "was tested with" not in str(diagnose(model, TEXTS[:2])).replace("\n", " ")
    installed("Version: 99.0.1")
    assert_says(str(diagnose(model, TEXTS[:2])).replace("\n", " "), "tested with peft up to 0.21")
