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


def test_one_row_of_every_text_is_taken() -> None:
    embeddings = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert ft.take_rows(embeddings, torch.tensor([1, 0])).tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_goes_last_and_what_counts_keeps_its_order(dtype: torch.dtype) -> None:
    mask = torch.tensor([LEFT, RIGHT, HOLE]).to(dtype)
    embeddings, moved = ft.padding_last(rows_of([9, 8, 1, 2], [1, 2, 3, 9], [1, 9, 2, 8]), mask)
    assert embeddings.squeeze(-1).tolist() == [[1, 2, 9, 8], [1, 2, 3, 9], [1, 2, 9, 8]]
    assert moved.dtype is dtype
    assert moved.to(torch.int64).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("length", [2, torch.tensor([2]), torch.tensor([2, 2])])
def test_columns_are_left_out_by_a_number_or_a_tensor_and_the_given_mask_stays(length: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert ft.leave_out(mask, 1, length).tolist() == [[1, 0, 0, 1], [1, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_columns_are_left_out_row_by_row_where_the_lengths_differ() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    left = ft.leave_out(mask, 0, torch.tensor([0, 1, 9]))
    assert left.tolist() == [[True] * 4, [False, True, True, True], [False] * 4]


@pytest.mark.parametrize(
    ("mask", "length", "options", "expected"),
    [
        ([1, 1, 1, 0], 4, {}, [0, 1, 2, 3]),
        ([0, 0, 1, 1], 4, {}, [0, 0, 0, 1]),
        ([1, 1, 0, 0, 1, 1], 6, {}, [0, 1, 1, 1, 2, 3]),  # two virtual tokens, two of padding, two of text
        ([1, 1, 0, 0, 1, 1], 4, {}, [1, 1, 2, 3]),  # a prefix of two in the cache
        ([1, 1, 1, 0], 4, {"offset": 2}, [2, 3, 4, 5]),
        ([0, 0, 0], 3, {}, [0, 1, 2]),
        ([1, 1], 0, {}, []),
        # What follows the text stays where it is.
        ([1, 1, 1, 0, 0], 5, {"beyond": False}, [0, 1, 2, 2, 2]),
        ([0, 0, 1, 1], 4, {"beyond": False}, [0, 0, 0, 1]),
        ([1, 1, 0, 0, 1, 1], 4, {"beyond": False}, [1, 1, 2, 3]),
        ([0, 1, 1, 0], 4, {"beyond": False, "offset": 1}, [1, 1, 2, 2]),
        ([0, 1, 1, 0], 4, {"beyond": False, "offset": 2}, [2, 2, 3, 3]),
        ([0, 0, 0], 3, {"beyond": False, "offset": 2}, [2, 2, 2]),
        ([1, 1], 0, {"beyond": False}, []),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_count_what_is_not_padding_and_on_after_the_text_unless_told_not_to(
    mask: list[int], length: int, options: dict[str, Any], expected: list[int], dtype: torch.dtype
) -> None:
    given = torch.tensor([mask]).to(dtype)
    found = ft.positions(given, length, **options)
    assert found.dtype is torch.int64
    assert found.tolist() == [expected]
    assert given.tolist() == [mask], "counted in place"


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_padding_last_is_what_sorting_by_hand_gives(rows: list[list[bool]]) -> None:
    numbers = [list(range(5)) for _ in rows]
    embeddings, mask = ft.padding_last(rows_of(*numbers), torch.tensor(rows))
    by_hand = [[i for i in range(5) if row[i]] + [i for i in range(5) if not row[i]] for row in rows]
    assert embeddings.squeeze(-1).tolist() == by_hand
    assert mask.tolist() == [[True] * sum(row) + [False] * (5 - sum(row)) for row in rows]


def test_what_counts_keeps_its_order_in_long_rows_too() -> None:
    """An unstable sort keeps the order of a few, by chance."""
    kept = [place % 3 != 0 for place in range(600)]
    embeddings, _ = ft.padding_last(rows_of(list(range(600))), torch.tensor([kept]))
    by_hand = [i for i in range(600) if kept[i]] + [i for i in range(600) if not kept[i]]
    assert embeddings.squeeze(-1).tolist() == [by_hand]


def test_nothing_reads_a_value() -> None:
    mask = torch.empty(2, 4, dtype=torch.int64, device="meta")
    embeddings = torch.empty(2, 4, 3, device="meta")
    assert ft.take_rows(embeddings, ft.first_counted(mask)).shape == (2, 3)
    assert [tensor.shape for tensor in ft.padding_last(embeddings, mask)] == [(2, 4, 3), (2, 4)]
    assert ft.leave_out(mask, 1, torch.empty(1, dtype=torch.int64, device="meta")).shape == (2, 4)
    for beyond in (True, False):
        assert ft.positions(mask, 3, offset=2, beyond=beyond).shape == (2, 3)
