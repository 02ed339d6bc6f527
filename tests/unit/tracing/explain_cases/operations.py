"""Operations on tensors, in a module's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import Does, Made, called
from .table import case


@case("", r"a_\[2,_5\] b_\[2,_4\] 5 4 dimension_1", "")
def tensors_of_two_widths_are_stacked() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return torch.stack([a, b])

    return called(Does(does, a=nn.Linear(3, 5), b=nn.Linear(3, 4)), torch.randn(2, 3))


@case("", "skip up 7 6 dimension_2", "")
def a_unet_of_an_odd_size() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        skip = self.enc(x)
        up = self.up(self.down(skip))
        return torch.cat([skip, up], 1)

    model = Does(does, enc=nn.Conv2d(1, 2, 1), down=nn.MaxPool2d(2), up=nn.ConvTranspose2d(2, 2, 2, 2))
    return called(model, torch.randn(1, 1, 7, 8))


@case("", r"3 4 'd'|'e' einsum|in_'", "")
def an_einsum_of_two_widths() -> Made:
    def does(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bid,bjd->bij", x, y)

    return called(Does(does), torch.randn(2, 5, 3), torch.randn(2, 6, 4))


@case("", r"elements 60|x \[8,_8\]|64", "")
def a_view_of_too_many_numbers() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        return x.view(-1, 8, 8)

    return called(Does(does), torch.randn(2, 30))


@case("", "mask 9 7 dimension_", "")
def a_mask_of_another_length() -> Made:
    def does(self: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(mask == 0, -1e9)

    return called(Does(does), torch.randn(2, 4, 9), torch.ones(2, 4, 7))


@case("", "index from_0_to_5 0_to_4", "index")
def a_gather_out_of_range() -> Made:
    def does(self: Any, x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index)

    return called(Does(does), torch.randn(2, 5), torch.tensor([[0, 5], [1, 2]]))


@case("", "rows 0_to_3 4 out_of_range", "rows|0_to_3")
def an_index_select_out_of_range() -> Made:
    def does(self: Any, rows: Tensor) -> Tensor:
        return torch.index_select(self.table.weight, 0, rows)

    return called(Does(does, table=nn.Embedding(4, 2)), torch.tensor([1, 4]))


@case("", "weights 8 6 Linear_'score'|score", "")
def a_product_of_two_widths() -> Made:
    def does(self: Any, x: Tensor, y: Tensor) -> Tensor:
        weights = self.score(x)
        return torch.matmul(weights, y)

    return called(Does(does, score=nn.Linear(4, 8)), torch.randn(2, 5, 4), torch.randn(2, 6, 4))


@case("add", "'scale' 8 6 dimension", "6|8")
def a_parameter_of_another_width() -> Made:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    return called(Does(lambda self, x: self.add(x), add=Scaled()), torch.randn(2, 3, 6))


@case("", "2_dimensions unpacks_3|unpacked", "3")
def a_shape_with_a_dimension_less() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch * length, width)

    return called(Does(does), torch.randn(2, 6))


@case("", "3_in_dimension_1 index|4", "")
def a_column_that_is_not_there() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        return x[:, 4]

    return called(Does(does), torch.randn(2, 3))


@case("", "'emb'|'hidden' hidden missing|keys", "")
def a_dict_output_of_another_key() -> Made:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x}

    def does(self: Any, x: Tensor) -> Any:
        out = self.enc(x)
        return out["emb"]

    return called(Does(does, enc=Encoder()), torch.randn(2, 3))


@case("", "Encoder_'enc' returned_None", "Encoder")
def a_module_that_forgot_to_return() -> Made:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> None:
            x.relu()

    def does(self: Any, x: Tensor) -> Any:
        hidden = self.enc(x)
        return hidden.mean(1)

    return called(Does(does, enc=Encoder()), torch.randn(2, 3))


@case("enc", "takes_x,_mask|mask", "mask")
def an_argument_that_was_left_out() -> Made:
    class Encoder(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    return called(Does(lambda self, x: self.enc(x), enc=Encoder()), torch.randn(2, 3))


@case("", "5 4 places rows", "")
def values_for_other_places() -> Made:
    def does(self: Any, x: Tensor, image: Tensor) -> Tensor:
        mask = x[..., 0] > 0
        x[mask] = image
        return x

    x = torch.ones(2, 3, 4)
    x[0, 0] = -1
    return called(Does(does), x, torch.randn(4, 4))


@case("", "q 180 24", "")
def heads_that_do_not_divide_the_width() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x)
        return q.view(batch, length, 4, -1)

    return called(Does(does, q=nn.Linear(8, 30)), torch.randn(2, 3, 8))
