"""The exceptions and their hints."""

from __future__ import annotations

import pytest

from peft_hooks import errors
from peft_hooks.errors import PeftHooksError, close_matches

from ..tools.wording import assert_says


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.HookNameError, LookupError),
        (errors.SelectorError, LookupError),
        (errors.HookError, RuntimeError),
        (errors.UnsupportedModelError, ValueError),
        (errors.DimensionError, ValueError),
    ],
)
def test_every_error_is_caught_as_the_librarys_and_as_the_builtin_of_its_kind(kind: type, builtin: type) -> None:
    assert issubclass(kind, PeftHooksError)
    assert issubclass(kind, builtin)
    assert str(kind("text")) == "text"


def test_close_names_are_offered_the_closest_first() -> None:
    assert_says(close_matches("pooling", ["poolings", "pool", "cooling", "mask"]), "'poolings' or 'cooling' or 'pool'")


def test_with_nothing_close_the_first_eight_are_listed() -> None:
    names = [f"{letter}{letter}{letter}" for letter in "abcdefghij"]
    assert_says(close_matches("zz", names[:8]), "'aaa', 'bbb', 'ccc', 'ddd', 'eee', 'fff', 'ggg', 'hhh'")
    assert close_matches("zz", names).endswith("'ggg', 'hhh' and 2 more")


def test_with_nothing_known_nothing_is_said() -> None:
    assert close_matches("zz", []) == ""
