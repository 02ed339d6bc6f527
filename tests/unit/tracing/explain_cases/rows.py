"""Rows, channels and positions that only seem to be swapped, and errors that were once explained wrongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import Does, Made, called
from .models import IDS, bert
from .table import case


@case(None, r"25_rows 64 \[25,_16,_8,_8\] \[64,_400\] Linear_'fc'", r"flatten\(1\) 1024", "give_labels")
def a_view_that_moves_rows() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x).view(-1, 400)
        return self.fc(x)

    model, labels = Does(does, conv=nn.Conv2d(3, 16, 3), fc=nn.Linear(400, 10)), torch.zeros(25, dtype=torch.long)
    return model, lambda: functional.cross_entropy(model(torch.randn(25, 3, 10, 10)), labels)


def one_label_each(model: nn.Module) -> Made:
    """Compute the loss of 8 sequences of 5 steps, with one label for each."""

    def call() -> Any:
        logits, y = model(torch.randn(8, 5, 4)), torch.zeros(8, dtype=torch.long)
        return functional.cross_entropy(logits, y)

    return model, call


@case(None, "8 5_rows", r"logits\[:,_-1\]|logits_for_each_label", "give_y batch,_A")
def a_label_for_all_steps_of_an_lstm() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out)

    return one_label_each(Does(does, lstm=nn.LSTM(4, 6, batch_first=True), fc=nn.Linear(6, 3)))


@case(None, r"logits_\[1,_8,_3\] 1_row", r"squeeze\(0\)", "give_y batch,_A")
def the_last_state_with_its_layers() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        _, h = self.gru(x)
        return self.fc(h)

    return one_label_each(Does(does, gru=nn.GRU(4, 6, batch_first=True), fc=nn.Linear(6, 3)))


@case(None, r"y_\[8,_4\] number_for_each", r"argmax\(1\)", "token text")
def one_hot_labels_laid_flat() -> Made:
    model, y = nn.Linear(5, 4), functional.one_hot(torch.arange(8) % 4, 4)

    def call() -> Any:
        logits = model(torch.randn(8, 5))
        return functional.cross_entropy(logits, y.view(-1))

    return model, call


@case("", r"labels_\[2,_6\] input_ids_\[2,_9\] length", "-100|9", "give_labels\\.view")
def labels_of_words_for_tokens() -> Made:
    model = bert("BertForTokenClassification", num_labels=3)
    return called(model, input_ids=IDS, labels=torch.zeros(2, 6, dtype=torch.long))


@case("dec", "24_in_dimension_1 in_channels", "in_channels=24", "with_the_two_transposed permute")
def channels_of_a_skip_as_many_as_rows_of_pixels() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        one, other = self.a(x), self.b(x)
        merged = torch.cat([one, other], dim=1)
        return self.dec(merged)

    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 16, 1), "dec": nn.Conv2d(16, 8, 3)}
    return called(Does(does, **parts), torch.randn(1, 3, 12, 16))


@case("1", "10_in_dimension_1 in_channels", "in_channels=10", "with_the_two_transposed permute")
def channels_of_a_layer_as_many_as_columns_of_pixels() -> Made:
    return called(nn.Sequential(nn.Conv2d(3, 10, 1), nn.Conv2d(8, 8, 3, groups=8)), torch.randn(1, 3, 6, 8))


@case("embedding", "offsets None", "offsets", r"embedding\(\)_takes num_embeddings")
def a_layer_with_the_name_of_a_function() -> Made:
    def does(self: Any, text: Tensor) -> Tensor:
        return self.embedding(text)

    return called(Does(does, embedding=nn.EmbeddingBag(20, 4)), torch.arange(6))


@case("positions", "3_of_its_50 7 dimension_0_of_x", r"7_of_'pe' size\(1\)", "too_long truncate")
def positions_by_the_batch() -> Made:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("pe", torch.randn(1, 50, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.pe[:, : x.size(0)]

    model = Does(lambda self, ids: self.positions(self.embed(ids)), embed=nn.Embedding(20, 8), positions=Positions())
    return called(model, torch.ones(3, 7, dtype=torch.long))


@case("attn", r"'tril'_\[10,_10\] 14 too_long", "10", "give_w")
def a_causal_buffer_that_is_compared() -> Made:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("tril", torch.tril(torch.ones(10, 10)))

        def forward(self, x: Tensor) -> Tensor:
            length = x.size(1)
            w = x @ x.transpose(-2, -1)
            return w.masked_fill(self.tril[:length, :length] == 0, float("-inf"))

    model = Does(lambda self, ids: self.attn(self.embed(ids)), embed=nn.Embedding(20, 8), attn=Attention())
    return called(model, torch.zeros(2, 14, dtype=torch.long))


@case("", "8 20 multiplied", r"self\.embed\.weight\.transpose\(0,_1\)", "project create_'weight'")
def a_tied_weight_that_is_not_transposed() -> Made:
    def does(self: Any, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return h @ self.embed.weight

    return called(Does(does, embed=nn.Embedding(20, 8)), torch.ones(2, 5, dtype=torch.long))


@case("", r"keys\.T_\[8,_6,_4\]", r"keys\.transpose\(1,_2\)_instead_of_keys\.T")
def all_dimensions_transposed() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        queries, keys = self.q(x), self.k(x)
        return queries @ keys.T

    return called(Does(does, q=nn.Linear(8, 8), k=nn.Linear(8, 8)), torch.randn(4, 6, 8))


@case("", r"key_\[2,_2,_9,_8\] 3 dimension_0", "", "with_the_two_transposed transpose")
def keys_of_another_batch() -> Made:
    def does(self: Any, query: Tensor, key: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, key)

    return called(Does(does), torch.randn(3, 2, 1, 8), torch.randn(2, 2, 9, 8))


@case("", "not_known", "", "fails_on add")
def a_division_by_zero_beside_tensors() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        return self.lin(x) / (len(x) // 0)

    return called(Does(does, lin=nn.Linear(4, 4)), torch.randn(2, 4))


@case("", "RecursionError|not_known", "", "the_hook model_itself_did_not")
def a_net_that_calls_itself_forever() -> Made:
    return called(Does(lambda self, x: self(x)), torch.randn(2, 4))
