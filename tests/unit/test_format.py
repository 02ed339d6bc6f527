"""How tensors are written for a reader."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from peft_hooks._format import dtype_of, padding_of, shape_of, tensor_line, tensors_in

from ..tools.wording import assert_says


@pytest.mark.parametrize(
    ("dtype", "short"),
    [
        (torch.float32, "f32"),
        (torch.float16, "f16"),
        (torch.bfloat16, "bf16"),
        (torch.float64, "f64"),
        (torch.int64, "i64"),
        (torch.int8, "i8"),
        (torch.uint8, "u8"),
        (torch.bool, "bool"),
        (torch.complex64, "c64"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
    ],
)
def test_a_dtype_has_a_short_name(dtype: torch.dtype, short: str) -> None:
    assert dtype_of(dtype) == short


def test_a_shape_is_written_as_a_list() -> None:
    assert shape_of(torch.zeros(2, 18, 3)) == "[2, 18, 3]"
    assert shape_of(torch.tensor(1)) == "[]"


@pytest.mark.parametrize(
    ("rows", "padding"),
    [
        ([[1, 1], [1, 1]], "none"),
        ([[1, 0], [1, 1]], "right"),
        ([[0, 1], [1, 1]], "left"),
        ([[1, 0], [0, 1]], "mixed"),
        ([[0, 1, 0], [1, 1, 1]], "mixed"),
        ([[1, 0, 1], [1, 1, 1]], "inside"),
        ([[0, 0], [0, 0]], "mixed"),
    ],
)
def test_padding_is_named_by_its_side(rows: list[list[int]], padding: str) -> None:
    assert padding_of(torch.tensor(rows).bool()) == padding


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_a_mask_is_written_with_what_it_keeps(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).to(dtype)
    assert_says(tensor_line("attention_mask", mask), f"attention_mask {dtype_of(dtype)}[2,3] | 4/6 | right")


def test_another_tensor_is_written_without_being_read() -> None:
    assert tensor_line("input_ids", torch.empty(2, 3, dtype=torch.int64, device="meta")) == "input_ids i64[2,3]"
    assert tensor_line("loss", torch.empty((), device="meta")) == "loss f32[]"


def test_a_mask_of_another_shape_is_written_without_being_read() -> None:
    assert tensor_line("attention_mask", torch.empty(2, 1, 3, 3, device="meta")) == "attention_mask f32[2,1,3,3]"
    assert tensor_line("attention_mask", torch.zeros(0, 3)) == "attention_mask f32[0,3]"


def test_tensors_are_found_and_named_in_nested_values() -> None:
    a, b, c, d = (torch.tensor(i) for i in range(4))
    value: Any = OrderedDict(ids=a, hidden=(b, [c]), text="no tensor", nothing=None, more={"x": {1: d}})
    assert [(name, int(tensor)) for name, tensor in tensors_in(value)] == [
        ("ids", 0),
        ("hidden.0", 1),
        ("hidden.1.0", 2),
        ("more.x.1", 3),
    ]
    assert [name for name, _ in tensors_in((a, {"b": b}))] == ["0", "1.b"]
    assert [name for name, _ in tensors_in(a)] == [""]
    assert list(tensors_in("text")) == []
