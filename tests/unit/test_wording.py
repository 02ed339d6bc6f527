"""How messages are tested: a golden text fails with a diff and the command that rewrites, a fact if it is missing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ..tools.wording import Golden, assert_says, read_golden

TESTS = Path(__file__).parents[1]
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("golden/*.txt"))


def golden(folder: Path, test: str = "test_it", rewrite: bool = False) -> Golden:
    return Golden(folder, test, "tests/test_here.py", rewrite)


def test_another_text_fails_with_the_difference_and_the_command_that_rewrites(tmp_path: Path) -> None:
    golden(tmp_path, rewrite=True)("note", "one\ntwo\nthree")
    golden(tmp_path)("note", "one\ntwo  \nthree")
    with pytest.raises(pytest.fail.Exception) as caught:
        golden(tmp_path)("note", "one\ntoo\nthree")
    assert_says(caught.value, "note.txt | 'test_it' | \n one\n-two\n+too\n three\n")
    assert_says(caught.value, "`python -m pytest --rewrite-golden tests/test_here.py`")


def test_a_text_that_is_not_there_yet_fails(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)\+new.*--rewrite-golden"):
        golden(tmp_path)("note", "new")
    assert not (tmp_path / "golden").exists()


def test_rewriting_leaves_the_texts_of_other_tests_and_tells_those_of_one_apart(tmp_path: Path) -> None:
    golden(tmp_path, "test_first", rewrite=True)("note", "first\n\nwith a gap\n")
    second = golden(tmp_path, "test_second", rewrite=True)
    for text in ("", "b", "c"):
        second("note", text)
    second("table", "d", title="a title of its own")
    golden(tmp_path, "test_first", rewrite=True)("note", "changed")
    assert read_golden(tmp_path / "golden" / "note.txt") == {
        "test_first": "changed",
        "test_second": "",
        "test_second (2)": "b",
        "test_second (3)": "c",
    }
    assert read_golden(tmp_path / "golden" / "table.txt") == {"a title of its own": "d"}
    golden(tmp_path, "test_second")("note", "")


def test_a_message_without_a_fact_is_found_out_and_so_is_a_check_of_none() -> None:
    assert_says("Linear '0' takes 4", "Linear '0' | 4", "takes")
    with pytest.raises(AssertionError, match=r"\['5'\] not in: Linear '0' takes 4"):
        assert_says("Linear '0' takes 4", "Linear '0' | 5")
    for nothing in ((), ("",), ("4 | ",)):
        with pytest.raises(AssertionError):
            assert_says("Linear '0' takes 4", *nothing)


@pytest.mark.parametrize("file", FILES)
def test_every_golden_text_is_one_of_a_test_that_is_there(file: str) -> None:
    """The text of a test that was renamed or removed would stay for ever."""
    path = TESTS / file
    sources = [ast.parse(each.read_text(encoding="utf-8")) for each in path.parents[1].glob("test_*.py")]
    nodes = [node for tree in sources for node in ast.walk(tree)]
    known = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    known |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    titles = read_golden(path)
    assert titles
    assert [title for title in titles if title.partition("[")[0].partition(" (")[0] not in known] == []


@pytest.mark.parametrize("file", sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")))
def test_no_test_imports_from_another_or_from_a_conftest(file: str) -> None:
    """What several need is a fixture in a conftest.py, or, if it builds nothing, in tests/tools."""
    nodes = ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module or ''}.{alias.name}" for node in imports if node.level for alias in node.names]
    parts = {part for name in names for part in name.split(".")}
    assert not {part for part in parts if part.startswith("test_") or part == "conftest"}
