"""Comprehensions, unpacking and splitting, and indices whose sizes do not match."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import Does, Made, called
from .table import case


@case("", r"self\.heads\[0\]\(x\).*4_in self\.heads\[2\]\(x\).*6 Linear_'heads\.2'", "6")
def a_stack_of_heads_in_a_comprehension() -> Made:
    heads = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 6)])
    return called(Does(lambda self, x: torch.stack([head(x) for head in self.heads], 1), heads=heads), torch.ones(2, 8))


@case("", r"self\.parts\[1\]\(x\[1\]\) 3 4 dimension_0", "", r"self\.parts\[0\]\(x\[0\]\)_has_4")
def a_sum_over_pairs_in_a_comprehension() -> Made:
    def does(self: Any, x: list[Tensor]) -> Tensor:
        return torch.cat([part(one) for part, one in zip(self.parts, x)], dim=1)

    parts = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])
    return called(Does(does, parts=parts), [torch.ones(3, 8), torch.ones(4, 8)])


@case("", r"self\.enc\(a\)`_\[3,_8\] self\.enc\(b\)`_\[4,_8\]", "", r"self\.enc\(a\)`_\[4")
def one_layer_called_twice_in_an_expression() -> Made:
    def does(self: Any, a: Tensor, b: Tensor) -> Tensor:
        return functional.cosine_similarity(self.enc(a), self.enc(b))

    return called(Does(does, enc=nn.Linear(5, 8)), torch.ones(3, 5), torch.ones(4, 5))


@case("", "2_parts 3_are_unpacked", r"chunk\(3,_dim=-1\)")
def three_names_for_two_chunks() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(2, dim=-1)
        return q @ k.mT @ v

    return called(Does(does, qkv=nn.Linear(8, 24)), torch.randn(2, 5, 8))


@case("", "3_parts 2_are_unpacked", r"chunk\(2,_dim=-1\)")
def two_names_for_three_chunks_on_one_line() -> Made:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor: q, k = self.qkv(x).chunk(3, dim=-1); return q @ k.mT  # noqa: E702  # fmt: skip

    return called(Attention(), torch.randn(2, 5, 8))


@case("", "8_parts 2_are_unpacked", r"torch\.split\(self\.proj\(x\),_8,_dim=-1\)", r"chunk")
def the_size_of_a_part_taken_for_how_many() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        a, b = torch.split(self.proj(x), 2, dim=-1)
        return a * b.sigmoid()

    return called(Does(does, proj=nn.Linear(8, 16)), torch.randn(2, 5, 8))


@case("", r"y_\[2,_5,_15\] 15_in_dimension_2 add_up_to_16", "16|15")
def parts_that_do_not_add_up() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        y = self.proj(x)
        a, b = y.split([10, 6], dim=-1)
        return a, b

    return called(Does(does, proj=nn.Linear(8, 15)), torch.randn(2, 5, 8))


@case("", "GRU_'gru' one_tensor h,_c", "one_name")
def the_states_of_an_lstm_from_a_gru() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        out, (h, c) = self.gru(x)
        return out + h + c

    return called(Does(does, gru=nn.GRU(4, 6, batch_first=True)), torch.randn(3, 5, 4))


@case("", "Linear_'lin' one_tensor 3", "one_name", "give_")
def a_tensor_unpacked_like_a_tuple() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        out, _ = self.lin(x)
        return out

    return called(Does(does, lin=nn.Linear(4, 6)), torch.randn(3, 4))


@case("", r"spans_\[2,_2\]_has_2_dimensions index_select\(\)_takes_1", "flatten gather")
def places_of_each_row_for_an_index_select() -> Made:
    def does(self: Any, x: Tensor, spans: Tensor) -> Tensor:
        return self.lin(x).index_select(1, spans)

    return called(Does(does, lin=nn.Linear(4, 6)), torch.randn(2, 6, 4), torch.tensor([[0, 1], [2, 3]]))


@case("", r"index_\[3,_2,_6\] 3_in_dimension_0 h_\[2,_5,_6\]_has_2", "3|2")
def an_index_of_another_batch() -> Made:
    def does(self: Any, x: Tensor, places: Tensor) -> Tensor:
        h = self.lin(x)
        index = places.unsqueeze(-1).expand(-1, -1, 6)
        return h.gather(1, index)

    return called(Does(does, lin=nn.Linear(4, 6)), torch.randn(2, 5, 4), torch.zeros(3, 2, dtype=torch.long))


@case("", r"goal_\[2\] 2_in_dimension_0 messages_\[3,_6\]", "3|2")
def fewer_places_than_messages() -> Made:
    def does(self: Any, x: Tensor, source: Tensor, goal: Tensor) -> Tensor:
        h = self.lin(x)
        messages = h[source]
        return torch.zeros_like(h).index_add_(0, goal, messages)

    return called(Does(does, lin=nn.Linear(4, 6)), torch.randn(4, 4), torch.tensor([0, 1, 2]), torch.tensor([1, 2]))
