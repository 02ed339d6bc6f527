"""Errors that people reported in public, made small."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .layers import Does, Made, called
from .models import IDS, bert
from .table import case


@case("attn", "batch_first 4 7 for_the_batch", "batch_first=True", "itself_does_not")
def attention_that_takes_the_length_first() -> Made:
    def does(self: Any, ids: Tensor, mask: Tensor) -> Any:
        x = self.embed(ids)
        return self.attn(x, x, x, key_padding_mask=mask == 0)

    model = Does(does, embed=nn.Embedding(50, 16), attn=nn.MultiheadAttention(16, 4))
    return called(model, torch.arange(28).view(4, 7), torch.ones(4, 7))


@case("1", "11 16 num_features dimension_2", r"transpose\(1,_2\) LayerNorm")
def batch_norm_over_a_sequence() -> Made:
    return called(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)), torch.randn(4, 11, 8))


@case("embeddings|", "64_positions 90 too_long", "64", "itself_does_not")
def a_text_that_is_too_long_for_bert() -> Made:
    return called(bert(max_position_embeddings=64), input_ids=torch.ones(2, 90, dtype=torch.long))


@case("enc.layers.0.self_attn", r"mask_\[6,_6\] 9", "mask 9", "batch_first")
def a_causal_mask_of_the_batch() -> Made:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)

    def does(self: Any, x: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[0])
        return self.enc(x, mask=mask)

    return called(Does(does, enc=encoder), torch.ones(6, 9, 16))


@case("conv", "11 16 in_channels dimension_2", r"transpose\(1,_2\)", "look_at")
def words_in_the_place_of_channels() -> Made:
    model = Does(lambda self, ids: self.conv(self.embed(ids)), embed=nn.Embedding(50, 16), conv=nn.Conv1d(16, 8, 3))
    return called(model, torch.arange(44).view(4, 11))


@case("", "heads 'sts' 'nli' 'qa'", "'sts'", "among_what")
def a_head_that_is_not_there() -> Made:
    heads = nn.ModuleDict({"sts": nn.Linear(4, 1), "nli": nn.Linear(4, 3)})
    return called(Does(lambda self, x, task: self.heads[task](x), heads=heads), torch.randn(2, 4), "qa")


@case("rnn", "self.state 8 3 batch", "self.state", "batch_first|transpos")
def a_state_of_another_batch() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        return self.rnn(x, self.state)

    model = Does(does, rnn=nn.GRU(16, 5, batch_first=True))
    model.state = torch.zeros(1, 8, 5)
    return called(model, torch.randn(3, 7, 16))


@case("decoder.embed_tokens", "decoder_input_ids -100 labels", "decoder_input_ids|pad_token", "resize_token|tokenizer")
def labels_that_are_given_as_ids() -> Made:
    config = transformers.T5Config(
        vocab_size=50, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, decoder_start_token_id=0
    )
    labels = torch.cat([IDS[:, :5], torch.full((2, 2), -100)], dim=1)
    model = transformers.T5ForConditionalGeneration(config)
    return called(model, input_ids=IDS, decoder_input_ids=labels, labels=labels)


@case("loss", "labels from_0_to_5 3_classes", "labels|classes", "'act'|turned")
def a_label_behind_an_activation_that_projects() -> Made:
    class GELU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x).sigmoid()

    def does(self: Any, x: Tensor, labels: Tensor) -> Any:
        return self.loss(self.head(self.act(x)), labels)

    model = Does(does, act=GELU(), head=nn.Linear(32, 3), loss=nn.CrossEntropyLoss())
    return called(model, torch.randn(4, 8), torch.tensor([0, 1, 2, 5]))


@case("rnn", "batch_first 3 7 for_the_batch", "batch_first=True", "state.*7_in_dimension_1,_as")
def states_for_the_batch_of_an_lstm_that_takes_the_length_first() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        state = (torch.zeros(1, x.size(0), 5), torch.zeros(1, x.size(0), 5))
        return self.rnn(x, state)

    return called(Does(does, rnn=nn.LSTM(16, 5)), torch.randn(3, 7, 16))


@case("drop", "str 'pooler_output' BertModel_'bert'", "pooler_output return_dict")
def a_model_output_that_is_unpacked() -> Made:
    def does(self: Any, ids: Tensor) -> Any:
        _, pooled = self.bert(ids)
        return self.drop(pooled)

    return called(Does(does, bert=bert(), drop=nn.Dropout(0.1)), IDS)


@case("positions", "'pe' 27 20", "20", "itself_does_not|look_at")
def positions_in_a_buffer() -> Made:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("pe", torch.randn(1, 20, 16))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.pe[:, : x.size(1)]

    model = Does(lambda self, ids: self.positions(self.embed(ids)), embed=nn.Embedding(50, 16), positions=Positions())
    return called(model, torch.zeros(2, 27, dtype=torch.long))


@case("rnn", "nested_tensor different_length", "to_padded_tensor|pack")
def a_nested_tensor_in_an_lstm() -> Made:
    nested = torch.nested.nested_tensor([torch.ones(3, 8), torch.ones(5, 8)])
    return called(Does(lambda self, x: self.rnn(x), rnn=nn.LSTM(8, 4, batch_first=True)), nested)


@case("attn", "'prefix' 4 2", "prefix")
def a_prefix_of_other_heads() -> Made:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Linear(32, 16)
            self.prefix = nn.Parameter(torch.randn(1, 4, 5, 8))

        def forward(self, x: Tensor) -> Tensor:
            batch, length, _ = x.shape
            k = self.k(x).view(batch, length, 2, 8).transpose(1, 2)
            return torch.cat([self.prefix.expand(batch, -1, -1, -1), k], dim=2)

    return called(Does(lambda self, x: self.attn(x), attn=Attention()), torch.randn(3, 7, 32))


@case("embeddings.position_embeddings|embeddings|", "70 66 begin_at_2 64", "64", "66_tokens|vocabulary")
def the_offset_of_robertas_positions() -> Made:
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=66,
    )  # fmt: skip
    return called(transformers.RobertaModel(config), input_ids=torch.arange(140).view(2, 70) % 40 + 3)


@case("decoder", "decoder_input_ids None", "decoder_input_ids")
def an_encoder_decoder_called_like_an_encoder() -> Made:
    config = transformers.T5Config(vocab_size=50, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16)
    return called(transformers.T5Model(config), input_ids=IDS)


@case("transformer", "src tgt 6 1 batch", "query repeat|expand", "batch_first|transpos")
def one_target_for_six_sources() -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.Transformer(16, 2, 1, 1, 32)
            self.query = nn.Parameter(torch.rand(5, 16))

        def forward(self, x: Tensor) -> Any:
            return self.transformer(x, self.query.unsqueeze(1))

    return called(Net(), torch.randn(16, 6, 16))


@case("head", "is_a_list", r"torch\.tensor", r"'pre'_returned")
def a_list_that_the_code_made_of_what_a_layer_returned() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        return self.head(self.pre(x).tolist())

    return called(Does(does, pre=nn.Identity(), head=nn.Linear(3, 2)), torch.ones(2, 3))


@case("", r"y_\[2,_3\]_has_2_dimensions unpacks_3", "give_y_3_dimensions")
def the_second_of_two_statements_on_a_line() -> Made:
    def does(self: Any, x: Tensor, y: Tensor) -> Any:
        rows, width = x.shape; batch, length, size = y.shape  # noqa: E702  # fmt: skip
        return rows, width, batch, length, size

    return called(Does(does), torch.ones(2, 3), torch.ones(2, 3))
