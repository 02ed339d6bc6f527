"""Selectors on plain modules: globs, shared modules, the root, roles, close matches."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peft_hooks import SelectorError
from peft_hooks.hooks.selectors import glob_pattern, select


def no_roles(model: nn.Module) -> Mapping[str, Sequence[str]]:
    return {}


def encoder(layers: int = 3) -> nn.Module:
    """A model with paths such as ``model.layer.0.attention.query``."""

    def layer() -> nn.Module:
        attention = nn.ModuleDict({"query": nn.Linear(1, 1), "key": nn.Linear(1, 1)})
        return nn.ModuleDict({"attention": attention, "dense": nn.Linear(1, 1)})

    model = nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(layers)), "attention": nn.Identity()})
    return nn.Sequential(nn.ModuleDict({"model": model}), nn.Identity())


def paths(model: nn.Module, selector: Any, roles: Any = no_roles) -> list[str]:
    return [path for path, _ in select(model, selector, roles)]


# -- globs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*", ["0", "1"]),
        ("0.model.*", ["0.model.layer", "0.model.attention"]),
        ("0.model.layer.*.dense", ["0.model.layer.0.dense", "0.model.layer.1.dense", "0.model.layer.2.dense"]),
        ("**.attention.query", [f"0.model.layer.{i}.attention.query" for i in range(3)]),
        (
            "0.model.**.attention",
            [*(f"0.model.layer.{i}.attention" for i in range(3)), "0.model.attention"],
        ),
        (
            "0.model.layer.1.**",
            [f"0.model.layer.1.{x}" for x in ("attention", "attention.query", "attention.key", "dense")],
        ),
        ("**.layer.**.key", [f"0.model.layer.{i}.attention.key" for i in range(3)]),
        ("0.model.layer.?", [f"0.model.layer.{i}" for i in range(3)]),
        ("0.model.l?yer", ["0.model.layer"]),
        ("0.model.layer.[02]", ["0.model.layer.0", "0.model.layer.2"]),
        ("0.model.layer.[0-1]", ["0.model.layer.0", "0.model.layer.1"]),
        ("0.model.layer.[!1]", ["0.model.layer.0", "0.model.layer.2"]),
        ("**.1.**.[kq]*y", ["0.model.layer.1.attention.query", "0.model.layer.1.attention.key"]),
    ],
)
def test_a_glob_selects_by_parts_of_the_path(glob: str, expected: list[str]) -> None:
    assert paths(encoder(), glob) == expected


def test_two_stars_alone_are_every_module_and_the_root() -> None:
    model = encoder()
    assert paths(model, "**") == [path for path, _ in model.named_modules()]


@pytest.mark.parametrize("glob", ["*.*.*.*.*.*.*", "layer*", "*layer", "0.model.layer.[3-9]", "0.*.0.dense"])
def test_a_star_stays_inside_one_part(glob: str) -> None:
    with pytest.raises(SelectorError):
        paths(encoder(), glob)


def test_two_stars_that_are_not_a_part_of_their_own_are_stars() -> None:
    assert paths(encoder(), "0.model.layer**") == ["0.model.layer"]
    assert paths(encoder(), "0.model.l**r") == ["0.model.layer"]


@pytest.mark.parametrize("text", ["a+b", "a(b", "a^b", "a$", "a|b", "a\\b", "a{2}"])
def test_what_is_no_sign_of_a_glob_is_meant_as_it_is(text: str) -> None:
    assert glob_pattern(f"{text}.*").fullmatch(f"{text}.x")
    assert not glob_pattern(f"{text}.*").fullmatch("ab.x")


def test_a_glob_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(SelectorError) as caught:
        paths(encoder(), "0.layer.[2-0]")
    assert str(caught.value) == "'0.layer.[2-0]' is not a glob over module paths: bad character range 2-0"


def matches(glob: list[str], path: list[str]) -> bool:
    """The independent matcher: part by part, the standard library for one part."""
    if not glob:
        return not path
    if glob[0] == "**":
        fewest = 1 if len(glob) == 1 else 0  # at the end: what lies inside
        return any(matches(glob[1:], path[taken:]) for taken in range(fewest, len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], glob[0]) and matches(glob[1:], path[1:])


part = st.text("ab1_", min_size=1, max_size=3)
sign = st.sampled_from(["*", "?", "[ab]", "[!a]", "[a-b]", "[1_]", "**", "a", "b", "1", "_", "-", "^", "[", "]", "!"])
glob_part = st.one_of(st.just("**"), st.just("*"), part, st.lists(sign, min_size=1, max_size=3).map("".join))


@settings(max_examples=800, derandomize=True, deadline=None)
@given(st.lists(glob_part, min_size=1, max_size=5), st.lists(part, max_size=5))
def test_a_glob_matches_what_a_matcher_part_by_part_matches(glob: list[str], path: list[str]) -> None:
    expected = True if glob == ["**"] else matches(glob, path)
    assert bool(glob_pattern(".".join(glob)).fullmatch(".".join(path))) is expected


# -- names, classes, modules -------------------------------------------------------------------------------------------


def test_a_bare_name_is_a_role_first_and_a_path_else() -> None:
    model = nn.ModuleDict({"pooling": nn.Identity(), "other": nn.Linear(1, 1)})
    assert paths(model, "pooling") == ["pooling"]
    assert paths(model, "pooling", lambda model: {"pooling": ["other"]}) == ["other"]


def test_a_path_with_a_dot_a_number_and_the_root_never_ask_for_roles() -> None:
    def never(model: nn.Module) -> Mapping[str, Sequence[str]]:
        raise AssertionError("asked for roles")

    model = encoder()
    assert paths(model, "0.model.layer", never) == ["0.model.layer"]
    assert paths(model, "1", never) == ["1"]
    assert paths(model, "", never) == [""]
    assert paths(model, nn.Identity, never) == ["0.model.attention", "1"]


def test_a_class_selects_its_subclasses_too() -> None:
    assert paths(nn.Sequential(nn.Identity(), nn.Linear(1, 1)), nn.Module) == ["", "0", "1"]


def test_the_root_is_selected_as_a_module() -> None:
    model = encoder()
    assert paths(model, model) == [""]


def shared() -> nn.Module:
    model = nn.ModuleDict({"first": nn.Linear(1, 1), "inner": nn.ModuleDict({})})
    model["inner"]["again"] = model["first"]  # type: ignore[index, operator]
    return model


@pytest.mark.parametrize(
    "selector",
    ["first", "inner.again", "**.again", "inner.*", nn.Linear, lambda path, _: path in ("first", "inner.again")],
)
def test_a_shared_module_is_found_by_any_of_its_paths_and_returned_once_with_the_first(selector: Any) -> None:
    assert paths(shared(), selector) == ["first"]


def test_a_shared_module_that_two_paths_match_is_returned_once() -> None:
    assert paths(shared(), "**") == ["", "first", "inner"]


def test_modules_come_in_the_order_of_the_model() -> None:
    assert paths(encoder(), "later", lambda model: {"later": ["1", "0"]}) == ["0", "1"]


# -- nothing found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("0.model.layers.0", "no module of Sequential matches '0.model.layers.0'; did you mean '0.model.layer.0'"),
        ("**.querry", "no module of Sequential matches '**.querry'; "),
        ("poolin", "no module of Sequential matches 'poolin'; did you mean 'pooling'?"),
    ],
)
def test_a_selector_that_matches_nothing_lists_what_is_close(selector: str, message: str) -> None:
    roles = {"pooling": ["1"]}
    with pytest.raises(SelectorError) as caught:
        paths(encoder(), selector, lambda model: roles)
    assert str(caught.value).startswith(message)


def test_a_class_that_no_module_has_lists_the_close_classes() -> None:
    with pytest.raises(SelectorError) as caught:
        paths(nn.Sequential(nn.Bilinear(1, 1, 1), nn.Identity()), nn.Linear)
    assert str(caught.value) == "Sequential has no module of class Linear; did you mean 'Bilinear'?"


def test_a_class_with_nothing_close_lists_what_there_is() -> None:
    with pytest.raises(SelectorError) as caught:
        paths(nn.Sequential(nn.Identity()), nn.GRU)
    assert str(caught.value) == "Sequential has no module of class GRU; there are: 'Identity', 'Sequential'"


def test_a_predicate_that_is_never_true_is_named() -> None:
    def is_pooling(path: str, module: nn.Module) -> bool:
        return False

    with pytest.raises(SelectorError) as caught:
        paths(encoder(), is_pooling)
    assert str(caught.value) == "the predicate 'is_pooling' is true of no module of Sequential"


def test_nothing_found_in_a_model_without_submodules_lists_nothing() -> None:
    with pytest.raises(SelectorError) as caught:
        paths(nn.Identity(), "0")
    assert str(caught.value) == "no module of Identity matches '0'"
