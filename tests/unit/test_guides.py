"""What .github/CONTRIBUTING.rst and .github/SECURITY.rst tell a reader is there."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

docutils = pytest.importorskip("docutils", reason="the guides are read with docutils: pip install peft_hooks[test]")
from docutils import nodes  # noqa: E402
from docutils.core import publish_doctree  # noqa: E402

ROOT = Path(__file__).parents[2]
GUIDES = ("CONTRIBUTING", "SECURITY")
TO_BE = {"st63"}  # a release that does not exist yet


def read(guide: str) -> Any:
    """Parse a guide; anything that docutils has to say of it raises."""
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False, "raw_enabled": False}
    source = (ROOT / ".github" / f"{guide}.rst").read_text(encoding="utf-8")
    return publish_doctree(source, settings_overrides={**strict, "syntax_highlight": "none"})


@pytest.mark.parametrize("guide", GUIDES)
def test_it_names_files_and_folders_that_exist(guide: str) -> None:
    """Among what is literal: whatever has a slash or a file's ending, is no command and is no address."""
    literals = [node.astext() for node in read(guide).findall(nodes.literal)]
    commands = [line for node in read(guide).findall(nodes.literal_block) for line in node.astext().splitlines()]
    words = [word for text in [*literals, *commands] for word in text.split()]
    paths = {word for word in words if re.fullmatch(r"\.?[a-z_]+(/[\w.]+)*(/|\.py|\.cfg|/run)", word)}
    assert (guide == "SECURITY") is (not paths)
    missing = {path for path in paths if not (ROOT / path).exists() and not list(ROOT.rglob(f"explain/{path}"))}
    assert not missing


@pytest.mark.parametrize("guide", GUIDES)
def test_it_names_environments_of_tox_that_exist(guide: str) -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    known = {name.partition(":")[2] for name in config.sections()} | set(
        re.split(r"[,\s]+", config["tox:tox"]["env_list"].strip())
    )
    told = set(re.findall(r"tox run (?:--notest )?-e (\w+)|\.tox/(\w+)", read(guide).astext()))
    assert {name for names in told for name in names if name} <= known | TO_BE


def test_every_folder_of_the_package_has_its_line_in_the_guide() -> None:
    (table,) = read("CONTRIBUTING").findall(nodes.table)
    rows = [row.astext().split()[0] for row in table.findall(nodes.row)][1:]
    assert set(rows) == {path.parent.name for path in (ROOT / "peft_hooks").glob("*/__init__.py")}
