"""The language of contracts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_hooks import AssertDimensions
from peft_hooks.dimensions.spec import ANY, Dimension, parse

from ...tools.wording import Golden, assert_says

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
SIZES = st.integers(0, 10**6)
WORDS = st.one_of(NAMES, SIZES.map(str), st.just("_"), st.tuples(NAMES, SIZES).map(lambda pair: f"{pair[0]}={pair[1]}"))


def dimensions(text: str) -> tuple[Dimension, ...]:
    (tensor,) = parse({"x": text})
    return tensor.head


def refused(contract: dict[str, str]) -> str:
    with pytest.raises(ValueError) as caught:
        AssertDimensions(contract)
    return str(caught.value)


# -- dimensions --------------------------------------------------------------------------------------------------------


def test_a_contract_has_names_sizes_both_and_any() -> None:
    assert dimensions("batch 3 hidden=384 _ _=2") == (
        Dimension("batch", None),
        Dimension(None, 3),
        Dimension("hidden", 384),
        ANY,
        ANY,
    )
    assert dimensions("") == ()
    assert [tensor.key for tensor in parse({"x": "a", "y": "b"})] == ["x", "y"]


def test_a_name_with_an_underscore_in_front_is_not_checked_as_in_jaxtyping() -> None:
    assert dimensions("_width _width=384 _") == (ANY, ANY, ANY)
    with pytest.raises(ValueError, match=r"'\?_width' .*'x' .*underscore"):
        dimensions("?_width")


def test_a_name_with_a_question_mark_in_front_is_of_its_call() -> None:
    assert dimensions("?width ?width=3") == (Dimension("width", None, True), Dimension("width", 3, True))
    assert dimensions("my_width")[0].local is False


@pytest.mark.parametrize("text", ["a-b", "3x", "=3", "a=b", "a=", "*", "-1", "...x", "a:"])
def test_what_is_no_dimension_is_refused_when_the_hook_is_made(text: str, golden: Golden) -> None:
    if text == "a:":
        assert "is not a dtype" in refused({"x": f"batch {text}"})
        return
    told = refused({"x": f"batch {text}"})
    golden("refusals", told)
    assert_says(told, f"{text!r} | 'x' | name=size | ?name | _ | ...")


@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [
        ("...", "", ""),
        ("... hidden", "", "hidden"),
        ("batch ...", "batch", ""),
        ("batch ... seq 3", "batch", "seq 3"),
    ],
)
def test_an_ellipsis_splits_the_dimensions(text: str, head: str, tail: str) -> None:
    (tensor,) = parse({"x": text})
    assert (tensor.head, tensor.tail) == (dimensions(head), dimensions(tail))
    assert tensor.dimensions == text


def test_a_second_ellipsis_is_refused(golden: Golden) -> None:
    told = refused({"x": "... seq ..."})
    golden("refusals", told)
    assert_says(told, "'... seq ...' | 'x' | '...' | once")


@given(st.lists(WORDS, max_size=6))
def test_what_is_written_is_what_is_read(words: list[str]) -> None:
    (tensor,) = parse({"x": " ".join(words)})
    assert tensor.dimensions == " ".join(str(int(word)) if word.isdigit() else word for word in words)
    assert tensor.tail is None


# -- names of tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "parts", "required", "label"),
    [
        ("mask", ("mask",), False, "mask"),
        ("mask!", ("mask",), True, "mask"),
        ("features.mask!", ("features", "mask"), True, "features.mask"),
        ("output.0", ("output", "0"), False, "output.0"),
        ("", (), False, "the tensor"),
        ("!", (), True, "the tensor"),
    ],
)
def test_a_name_has_parts_and_may_be_required(key: str, parts: tuple[str, ...], required: bool, label: str) -> None:
    (tensor,) = parse({key: "_"})
    assert (tensor.parts, tensor.required, tensor.label) == (parts, required, label)


@pytest.mark.parametrize("key", [".", "a.", "..a", "a!b", "a!!"])
def test_what_names_no_tensor_is_refused(key: str, golden: Golden) -> None:
    told = refused({key: "_"})
    golden("refusals", told)
    assert_says(told, f"{key!r} | 'mask' | 'features.mask' | 'output.0' | or ''")


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("i64", [torch.int64], [torch.int32, torch.bool]),
        ("i64|bool", [torch.int64, torch.bool], [torch.float32]),
        (" bf16 | f32 ", [torch.bfloat16, torch.float32], [torch.float16]),
        ("float", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], [torch.int8, torch.complex64]),
        ("int", [torch.int8, torch.uint8, torch.int64], [torch.bool, torch.float32]),
        ("complex", [torch.complex64], [torch.float32]),
        ("int64", [torch.int64], [torch.int32]),
    ],
)
def test_a_tensor_may_have_the_dtypes_before_the_colon(
    text: str, right: list[torch.dtype], wrong: list[torch.dtype]
) -> None:
    (tensor,) = parse({"x": f"{text}: batch seq"})
    assert tensor.dtypes is not None
    assert tensor.dtypes.issuperset(right)
    assert tensor.dtypes.isdisjoint(wrong)
    assert tensor.kinds == " or ".join(text.replace(" ", "").split("|"))
    assert tensor.head == dimensions("batch seq")


def test_without_a_colon_any_dtype_is_right() -> None:
    assert parse({"x": "batch"})[0].dtypes is None


def test_an_unknown_dtype_is_refused_with_what_comes_close(golden: Golden) -> None:
    told = refused({"x": "flaot32: batch"})
    golden("refusals", told)
    assert_says(told, "'flaot32' | 'x' | dtype | 'float32' | 'float'")


def test_a_parsed_contract_travels() -> None:
    spec = parse({"x!": "i64|float: batch ... ?width=3"})
    assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)
