"""The pure functions on a features dict's tensors."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peft_hooks.prompts import tensors as ft

DTYPES = [torch.int64, torch.int32, torch.bool, torch.float32, torch.uint8]
LEFT, RIGHT, HOLE = [0, 0, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0]


def rows_of(*values: list[int]) -> Tensor:
    """Token embeddings ``[batch, seq, 1]`` whose single component is the given number."""
    return torch.tensor(values, dtype=torch.float32).unsqueeze(-1)


@pytest.mark.parametrize(
    ("features", "length"),
    [
        ({"input_ids": torch.zeros(2, 5)}, 5),
        ({"inputs_embeds": torch.zeros(2, 6, 3)}, 6),
        ({"input_ids": torch.zeros(2, 5), "inputs_embeds": torch.zeros(2, 6, 3)}, 5),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 6, 3)}, 6),
        ({"input_ids": torch.zeros(7)}, None),
        ({"input_ids": [[1, 2]]}, None),
        ({"pixel_values": torch.zeros(2, 3, 4, 4)}, None),
        (UserDict(input_ids=torch.zeros(2, 5)), 5),
    ],
)
def test_the_input_length_is_that_of_the_ids_or_the_embeddings_or_unknown(features: Any, length: int | None) -> None:
    assert ft.input_length(features) == length


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counted", [True, False])
def test_an_extended_mask_keeps_its_dtype_and_gets_columns_in_front(dtype: torch.dtype, counted: bool) -> None:
    extended = ft.extend_mask(torch.tensor([LEFT, RIGHT]).to(dtype), 2, counted)
    front = [int(counted)] * 2
    assert extended.dtype is dtype
    assert extended.to(torch.int64).tolist() == [front + LEFT, front + RIGHT]


def test_an_extended_mask_keeps_its_device_and_the_given_mask_its_columns() -> None:
    mask = torch.ones(2, 4, dtype=torch.int64, device="meta")
    extended = ft.extend_mask(mask, 3, counted=True)
    assert (extended.device.type, tuple(extended.shape), tuple(mask.shape)) == ("meta", (2, 7), (2, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_counted_position_is_found_and_is_zero_in_a_row_that_counts_nothing(dtype: torch.dtype) -> None:
    mask = torch.tensor([LEFT, RIGHT, [0, 1, 0, 1], [0, 0, 0, 0]]).to(dtype)
    assert ft.first_counted(mask).tolist() == [2, 0, 1, 0]


def test_rows_are_taken_in_any_order_whatever_stands_behind_them() -> None:
    numbers = torch.tensor([[1, 2, 3], [4, 5, 6]])
    order = torch.tensor([[2, 0, 1], [0, 0, 2]])
    expected = [[3, 1, 2], [4, 4, 6]]
    assert ft.take(numbers, order).tolist() == expected
    deep = numbers.view(2, 3, 1, 1).repeat(1, 1, 2, 4)
    assert ft.take(deep, order)[:, :, 1, 3].tolist() == expected
    assert ft.take(numbers, order[:, :1]).tolist() == [[3], [4]]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 3))
def test_a_roll_is_what_torch_rolls_row_by_row(first: list[int], more: int) -> None:
    length = max(*first, 1) + more
    columns = torch.arange(length)
    expected = [columns.roll(-start).tolist() for start in first]
    assert ft.rolled(torch.tensor(first), length).tolist() == expected


@pytest.mark.parametrize("length", [2, torch.tensor([2]), torch.tensor([2, 2])])
def test_columns_are_left_out_by_a_number_or_a_tensor_and_the_given_mask_stays(length: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert ft.leave_out(mask, 1, length).tolist() == [[1, 0, 0, 1], [1, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_columns_are_left_out_row_by_row_where_the_lengths_differ() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    left = ft.leave_out(mask, 0, torch.tensor([0, 1, 9]))
    assert left.tolist() == [[True] * 4, [False, True, True, True], [False] * 4]


def test_nothing_reads_a_value() -> None:
    mask = torch.empty(2, 4, dtype=torch.int64, device="meta")
    order = ft.rolled(ft.first_counted(mask), 4)
    assert ft.take(torch.empty(2, 4, 3, device="meta"), order).shape == (2, 4, 3)
    assert ft.leave_out(mask, 1, torch.empty(1, dtype=torch.int64, device="meta")).shape == (2, 4)
