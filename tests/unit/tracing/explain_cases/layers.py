"""PyTorch's own layers, called wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .table import case

Made = tuple[nn.Module, Callable[[], Any]]


class Does(nn.Module):
    """A module with parts, whose forward is a function of it and its inputs."""

    def __init__(self, does: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.does = does
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.does(self, *args, **kwargs)


def called(model: nn.Module, *args: Any, **kwargs: Any) -> Made:
    return model, lambda: model(*args, **kwargs)


@case("0", r"dimension_1 3 32 in_channels dimension_3", r"permute\(0,_3,_1,_2\)", "as_they_should")
def images_with_the_channels_last() -> Made:
    return called(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.randn(2, 32, 32, 3))


@case("up", "dimension_1 8 16 in_channels `?skip", "")
def a_transposed_convolution_of_a_narrow_skip() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        skip = self.down(x)
        return self.up(skip)

    model = Does(does, down=nn.Conv2d(3, 8, 3, 2), up=nn.ConvTranspose2d(16, 3, 2, 2))
    return called(model, torch.randn(2, 3, 16, 16))


@case("1", "dimension_1 12 16 num_channels Conv2d_'0'", "12|16")
def group_norm_of_other_channels() -> Made:
    return called(nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 16)), torch.randn(2, 3, 8, 8))


@case("1", "has_2_dimensions takes_4")
def batch_norm_2d_behind_a_linear() -> Made:
    return called(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm2d(8)), torch.randn(3, 4))


@case("gru", "is_16_wide takes_12 input_size", "12|16")
def a_gru_of_another_width() -> Made:
    model = Does(lambda self, ids: self.gru(self.embed(ids)), embed=nn.Embedding(9, 16), gru=nn.GRU(12, 4))
    return called(model, torch.zeros(2, 5, dtype=torch.long))


@case("bag", "from_1_to_11 10_rows first,_at_ids\\[1,_2\\]", "ids 0_to_9")
def a_bag_of_an_unknown_word() -> Made:
    model = Does(lambda self, ids: self.bag(ids), bag=nn.EmbeddingBag(10, 4))
    return called(model, torch.tensor([[1, 2, 3], [4, 5, 11]]))


@case("attn", "memory.*is_24_wide takes_16 kdim", "16|24")
def attention_on_keys_of_another_width() -> Made:
    def does(self: Any, x: Tensor, memory: Tensor) -> Any:
        return self.attn(x, memory, memory)

    model = Does(does, attn=nn.MultiheadAttention(16, 2, kdim=16, vdim=16, batch_first=True))
    return called(model, torch.randn(2, 5, 16), torch.randn(2, 7, 24))


@case("attn", r"mask_\[5,_5\] 7 dimension_1", "mask 7", "batch_first")
def a_mask_of_queries_for_cross_attention() -> Made:
    def does(self: Any, x: Tensor, memory: Tensor) -> Any:
        mask = torch.zeros(x.size(1), x.size(1))
        return self.attn(x, memory, memory, attn_mask=mask)

    model = Does(does, attn=nn.MultiheadAttention(16, 2, batch_first=True))
    return called(model, torch.randn(2, 5, 16), torch.randn(2, 7, 16))


@case("dec.layers.0.multihead_attn", "tgt memory batch 3 4", "")
def a_decoder_with_the_memory_of_another_batch() -> Made:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2)
    return called(Does(lambda self, a, b: self.dec(a, b), dec=decoder), torch.randn(3, 5, 16), torch.randn(4, 7, 16))


@case("dec.layers.0.multihead_attn", "mem is_24_wide takes_16 kdim", "16|24")
def a_decoder_with_a_wide_memory() -> Made:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32), 1)
    return called(
        Does(lambda self, tgt, mem: self.dec(tgt, mem), dec=decoder), torch.randn(5, 3, 16), torch.randn(7, 3, 24)
    )


@case("enc.layers.0.self_attn", "padding_mask batch_first batch", "batch_first=True", "transpose_mask")
def an_encoder_of_the_length_first() -> Made:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1)
    model = Does(lambda self, x, pad: self.enc(x, src_key_padding_mask=pad), enc=encoder)
    return called(model, torch.randn(4, 9, 16), torch.zeros(4, 9, dtype=torch.bool))


@case("0", "is_i64 parameters f32", "float")
def whole_numbers_into_a_linear() -> Made:
    return called(nn.Sequential(nn.Linear(3, 2)), torch.ones(2, 3, dtype=torch.long))


@case("0", "has_1_dimension|is_f32 looks_up_integers", "long")
def floats_into_an_embedding() -> Made:
    return called(nn.Sequential(nn.Embedding(5, 2)), torch.rand(3))


@case("lin", "f64 f32 given|came", "float32")
def doubles_of_numpy() -> Made:
    model = Does(lambda self, x: self.lin(x), lin=nn.Linear(4, 2))
    return called(model, torch.zeros(3, 4, dtype=torch.float64))


@case("lin", "is_12_wide takes_16 in_features", "12|16")
def the_features_of_a_flattened_image() -> Made:
    model = Does(lambda self, x: self.lin(self.conv(x).flatten(1)), conv=nn.Conv2d(1, 3, 3), lin=nn.Linear(16, 2))
    return called(model, torch.randn(2, 1, 4, 4))


@case("lstm", "32 16 is_16_wide|wide input_size", "32|16")
def an_lstm_behind_a_bidirectional_one() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        out, _ = self.first(x)
        return self.lstm(out)

    model = Does(does, first=nn.LSTM(8, 16, bidirectional=True), lstm=nn.LSTM(16, 4))
    return called(model, torch.randn(5, 2, 8))


@case("rnn", "state|hx 2 4 layers|dimension_0", "4")
def a_state_for_one_direction() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        state = torch.zeros(2, x.size(0), 6)
        return self.rnn(x, state)

    model = Does(does, rnn=nn.GRU(8, 6, 2, bidirectional=True, batch_first=True))
    return called(model, torch.randn(3, 5, 8))


@case("cell", "is_8_wide takes_6 input_size", "6|8")
def a_cell_of_another_width() -> Made:
    return called(Does(lambda self, x: self.cell(x), cell=nn.LSTMCell(6, 4)), torch.randn(2, 8))


@case("head", "GRU_'gru' tuple", r"\[0\]")
def the_pair_of_a_gru_into_a_head() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        out = self.gru(x)
        return self.head(out)

    return called(Does(does, gru=nn.GRU(4, 4), head=nn.Linear(4, 2)), torch.randn(3, 2, 4))


@case("norm", "is_20_wide takes_16 normalized_shape", "")
def a_layer_norm_of_another_width() -> Made:
    model = Does(lambda self, x: self.norm(self.lin(x)), lin=nn.Linear(4, 20), norm=nn.LayerNorm(16))
    return called(model, torch.randn(2, 3, 4))


@case("", "parameters meta_device no_values", "load|to_empty")
def a_layer_that_was_never_loaded() -> Made:
    return called(nn.Linear(4, 4, device="meta"), torch.randn(2, 4))


@case("conv", r"has_3_dimensions|dimension_0|dimension_1", "unsqueeze|1")
def a_signal_without_channels() -> Made:
    model = Does(lambda self, x: self.conv(x), conv=nn.Conv1d(1, 4, 3))
    return called(model, torch.randn(8, 100))


@case("pool", "2_dimensions takes_3_or_4", "")
def a_pool_of_vectors() -> Made:
    return called(Does(lambda self, x: self.pool(x), pool=nn.MaxPool2d(2)), torch.randn(8, 16))


@case("", "weight 10 12|12_wide", "")
def a_linear_function_with_its_weight_turned() -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 10))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight)

    return called(Net(), torch.randn(3, 12))
