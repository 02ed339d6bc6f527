"""What operations demand beside sizes that agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from .layers import Does, Made, called
from .losses import beside
from .table import case


@case("", "2_dimensions dimension_2", "0_to_1")
def a_softmax_over_a_dimension_that_is_not_there() -> Made:
    return called(Does(lambda self, x: x.softmax(2)), torch.randn(2, 3))


@case("", "4_dimensions 3", "4")
def a_permutation_of_images_as_of_texts() -> Made:
    return called(Does(lambda self, x: x.permute(0, 2, 1)), torch.randn(2, 3, 4, 5))


@case("", "not_contiguous", "reshape")
def a_view_of_what_was_transposed() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        return y.view(2, -1)

    return called(Does(does), torch.randn(2, 3, 4))


@case("", "ids i64 floating", "float")
def a_mean_of_whole_numbers() -> Made:
    def does(self: Any, ids: Tensor) -> Tensor:
        return ids.mean(1)

    return called(Does(does), torch.ones(2, 3, dtype=torch.long))


@case("", "rows f32 whole", "long")
def an_index_of_floats() -> Made:
    def does(self: Any, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    return called(Does(does), torch.randn(4, 3), torch.tensor([0.0, 1.0]))


@case("norm", "one_value 8 training", "drop_last eval")
def a_batch_of_one() -> Made:
    model = Does(lambda self, x: self.norm(self.lin(x)), lin=nn.Linear(4, 8), norm=nn.BatchNorm1d(8))
    return called(model, torch.randn(1, 4))


@case(None, "0_to_1", "with_logits sigmoid")
def logits_in_the_place_of_probabilities() -> Made:
    target = torch.ones(4, 1)
    return beside(lambda x: functional.binary_cross_entropy(10 * x - 20, target), width=1)


@case("1", "2 3 dimension_2 kernel", "padding|kernel")
def an_image_smaller_than_the_kernel() -> Made:
    return called(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 2, 3)), torch.randn(1, 1, 4, 8))


@case("", "lengths 3 2 batch|dimension_0", "")
def lengths_of_another_batch() -> Made:
    def does(self: Any, x: Tensor, lengths: list[int]) -> Any:
        return self.rnn(rnn.pack_padded_sequence(x, lengths, batch_first=True))

    return called(Does(does, rnn=nn.GRU(4, 4, batch_first=True)), torch.randn(2, 5, 4), [5, 3, 2])


@case("rnn", "4_dimensions 2_or_3", "")
def an_image_for_an_lstm() -> Made:
    return called(Does(lambda self, x: self.rnn(x), rnn=nn.LSTM(8, 4)), torch.randn(2, 3, 4, 8))


@case("enc", "takes_x unexpected_keyword|mask", "x")
def an_argument_that_is_not_known() -> Made:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    return called(Does(lambda self, x: self.enc(x, mask=None), enc=Encoder()), torch.randn(2, 3))


@case("lin", "list", "")
def a_list_of_tensors_for_a_linear() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        parts = [x, x]
        return self.lin(parts)

    return called(Does(does, lin=nn.Linear(3, 2)), torch.randn(2, 3))


@case("mix", "is_6_wide takes_5 in2_features", "5|6")
def a_bilinear_of_another_width() -> Made:
    return called(
        Does(lambda self, a, b: self.mix(a, b), mix=nn.Bilinear(4, 5, 2)), torch.randn(3, 4), torch.randn(3, 6)
    )


@case("", "has_2_dimensions has_3|3_dimensions", "")
def tensors_of_two_ranks_are_joined() -> Made:
    def does(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=1)

    return called(Does(does), torch.randn(2, 3, 4), torch.randn(2, 3))


@case("", "f64 f32", "float32|float64")
def a_product_of_two_dtypes() -> Made:
    return called(Does(lambda self, x, y: x @ y), torch.randn(2, 3), torch.randn(3, 2, dtype=torch.float64))
