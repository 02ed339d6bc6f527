"""The wheel and the source distribution hold what they should, and nothing else. The build needs the registries."""

from __future__ import annotations

import io
import re
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from ..tools.artefacts import EPOCH, ROOT, Built, build, run

# Of the checkout, and of no use without git and its hosts.
OF_THE_CHECKOUT = {".gitignore"}


def metadata(built: Built) -> Message:
    """Read the wheel's metadata."""
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_package_its_metadata_and_nothing_else(built: Built) -> None:
    """Every module that git has, the mark that they are typed, the licence."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    package = {name for name in built.sources if name.startswith("peft_hooks/")}
    assert "peft_hooks/py.typed" in package
    made = {name.partition(".dist-info/")[2] for name in names - package}
    assert package <= names
    assert made == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def test_the_source_distribution_has_what_git_has_and_nothing_else(built: Built) -> None:
    """Tests, examples, changelog, licence, CI; no caches and no notes of the one who built it."""
    with tarfile.open(built.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
        written = sdist.extractfile(f"{built.sdist.name.removesuffix('.tar.gz')}/tests/tools/data/bert.safetensors")
        assert written is not None
        assert written.read() == (ROOT / "tests/tools/data/bert.safetensors").read_bytes()
    made = {name for name in names if name == "PKG-INFO" or name.startswith("peft_hooks.egg-info/")}
    assert names - made == set(built.sources) - OF_THE_CHECKOUT


def test_a_source_distribution_makes_itself(built: Built, tmp_path: Path) -> None:
    """Whoever builds from it, without git, gets the same files."""
    (tmp_path / "in").mkdir()
    run("tar", "xzf", built.sdist, cwd=tmp_path / "in")
    (unpacked,) = (tmp_path / "in").iterdir()
    again = build(unpacked, tmp_path / "out", "sdist")
    with tarfile.open(built.sdist) as first, tarfile.open(again) as second:
        assert sorted(first.getnames()) == sorted(second.getnames())


def test_a_wheel_of_the_same_sources_is_the_same_to_the_byte(built: Built, tmp_path: Path) -> None:
    """With SOURCE_DATE_EPOCH, from another folder and other times of the files."""
    checkout = tmp_path / "elsewhere"
    for name in built.sources:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    again = build(checkout, tmp_path / "out", "wheel")
    assert EPOCH
    assert again.name == built.wheel.name
    assert again.read_bytes() == built.wheel.read_bytes()


def test_twine_finds_nothing_to_complain_of(built: Built) -> None:
    """The description renders without a warning, as the registry would show it."""
    run(sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist)


def test_the_metadata_name_extras_versions_and_what_is_needed(built: Built) -> None:
    """What pip reads."""
    found = metadata(built)
    assert found["Name"] == "peft_hooks"
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", found["Version"])
    assert found["Requires-Python"] == ">=3.10"
    assert found["License-Expression"] or found["License"] == "Apache-2.0"
    assert found["Author"] == "The peft_hooks maintainers"
    assert found.get_all("Project-URL") == [
        "Upstream report, https://github.com/huggingface/sentence-transformers/issues/2995"
    ]
    assert set(found.get_all("Provides-Extra")) == {"demo", "notebook", "onnx", "test", "train"}
    needed = {re.split(r"[\s<>=;]", line)[0] for line in found.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == {"executing", "jinja2", "packaging", "peft", "pure_eval", "rich", "sentence-transformers", "torch"}


def test_the_changelog_begins_with_the_version(built: Built) -> None:
    """A release without its changes is not one."""
    headings = re.findall(r"^(\d\S+) .*\n-+$", (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == metadata(built)["Version"]


@pytest.mark.parametrize("group", ["console_scripts", "pytest11"])
def test_the_entry_points_are_there(built: Built, group: str) -> None:
    """The command, and the fixtures for pytest."""
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        text = io.StringIO(wheel.read(name).decode()).read()
    expected = {
        "console_scripts": "peft-hooks = peft_hooks.cli.main:main",
        "pytest11": "peft_hooks.pytest_plugin = peft_hooks.pytest_plugin",
    }
    assert f"[{group}]\n{expected[group]}\n" in text
