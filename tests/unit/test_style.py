"""The house style, as far as it can be counted: no file over 250 lines, no function over 40 without its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import peft_hooks

PACKAGE = Path(peft_hooks.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 250, 40


@pytest.mark.parametrize("file", FILES)
def test_no_file_and_no_function_is_too_long(file: str) -> None:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    nodes = ast.walk(ast.parse(text))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {one.name: length for one in functions if (length := _length(one)) > LONGEST_FUNCTION} == {}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function; its docstring may be as long as a reader needs."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    whole = (function.end_lineno or 0) - function.lineno + 1
    return whole - ((first.end_lineno or 0) - first.lineno + 1) * documented
