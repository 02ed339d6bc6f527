"""Errors as they are asked about: a wrong cure or raiser was given for each of them once."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn
from transformers import BatchEncoding, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from .layers import Does, Made, called
from .table import case


def _bert() -> BertModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes))


@case("", "y_\\[2,_6\\] 6 5 Linear_'b'", "", "Linear_'a'")
def an_error_after_one_that_was_caught() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        try:
            y = self.a(x)
        except RuntimeError:
            y = self.b(x)
        return y @ self.table.weight

    return called(Does(does, a=nn.Linear(9, 4), b=nn.Linear(4, 6), table=nn.Embedding(5, 2)), torch.randn(2, 4))


@case("fc", "LSTM_'lstm' 16 8", "in_features=16", "created_in")
def a_head_behind_a_bidirectional_lstm() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1])

    lstm = nn.LSTM(4, 8, batch_first=True, bidirectional=True)
    return called(Does(does, lstm=lstm, fc=nn.Linear(8, 2)), torch.randn(3, 5, 4))


@case("lstm", r"tensor pair h_0", r"\(h,_torch.zeros_like\(h\)\)", "out_of_range")
def an_lstm_with_the_state_of_a_gru() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        h = torch.zeros(1, 3, 8)
        return self.lstm(x, h)[0]

    return called(Does(does, lstm=nn.LSTM(4, 8, batch_first=True)), torch.randn(3, 5, 4))


@case("0", "16 in_channels", r"unsqueeze\(1\)", "Linear_for")
def images_without_their_channel() -> Made:
    return called(nn.Sequential(nn.Conv2d(1, 8, 3)), torch.randn(16, 28, 28))


@case("1", "2_dimensions", "", "batch_dimension unsqueeze")
def flattened_before_the_convolution() -> Made:
    return called(nn.Sequential(nn.Flatten(), nn.Conv2d(1, 4, 3)), torch.randn(2, 1, 28, 28))


@case("2", "26 2704", r"flatten\(1\)", "in_features=26")
def not_flattened_before_the_head() -> Made:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4 * 26 * 26, 10))
    return called(model, torch.randn(2, 1, 28, 28))


@case("lstm", "5 1 input_size", r"unsqueeze\(-1\)")
def a_series_without_its_width() -> Made:
    return called(Does(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(1, 8, batch_first=True)), torch.randn(3, 5))


@case("attention", "3 6 batch_3 num_heads_2", r"repeat_interleave\(2,_0\)", "6_is_num_heads")
def a_mask_for_each_text_and_no_head() -> Made:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Does(lambda self, x, mask: self.attention(x, x, x, attn_mask=mask)[0], attention=attention)
    return called(model, torch.randn(3, 5, 8), torch.zeros(3, 5, 5).bool())


@case("attention", "mask i64 booleans", "mask_==_0")
def a_padding_mask_of_a_tokenizer() -> Made:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Does(lambda self, x, mask: self.attention(x, x, x, key_padding_mask=mask)[0], attention=attention)
    return called(model, torch.randn(3, 5, 8), torch.ones(3, 5).long())


@case("", "mask_\\[3,_5\\] 5 3", r"mask\[:,_None,_None,_:\]")
def a_padding_mask_for_scaled_dot_product_attention() -> Made:
    def does(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        q = self.q(x).view(3, 5, 2, 4).transpose(1, 2)
        return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    return called(Does(does, q=nn.Linear(8, 8)), torch.randn(3, 5, 8), torch.ones(3, 5).bool())


@case("", "8 4 zeros", "", "turned_it_into look_at_what")
def a_where_with_new_zeros_of_another_width() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        return torch.where(x[..., :1] > 0, self.p(x), torch.zeros(2, 5, 8))

    return called(Does(does, p=nn.Linear(4, 4)), torch.randn(2, 5, 4))


@case("", "'cls' 1 2", r"expand", "create_'cls'_with")
def a_class_token_of_one_row() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        return torch.cat((self.cls, self.p(x)), dim=1)

    model = Does(does, p=nn.Linear(4, 8))
    model.register_buffer("cls", torch.zeros(1, 1, 8))
    return called(model, torch.randn(2, 5, 4))


@case("", "0_to_5 5_in_dimension_1 out_of_range", "0_to_4")
def an_index_in_the_line_out_of_range() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        return torch.index_select(self.p(x), 1, torch.tensor([0, 5]))

    return called(Does(does, p=nn.Linear(4, 8)), torch.randn(2, 5, 4))


@case("", "self.offset meta cpu", "on_cpu", r"\.to\(")
def an_attribute_left_on_meta() -> Made:
    model = Does(lambda self, x: self.p(x) + self.offset, p=nn.Linear(4, 8))
    model.offset = torch.zeros(8, device="meta")
    return called(model, torch.randn(2, 4))


@case("0", "input ndarray", r"from_numpy\(input\)\.float\(\)")
def an_array_of_numpy() -> Made:
    model = nn.Sequential(nn.Linear(4, 2))
    return model, lambda: model(numpy.zeros((2, 4)))


@case("embeddings|", "input_ids BatchEncoding", "'input_ids'", "Invalid")
def the_encoding_by_position() -> Made:
    model = _bert()
    return model, lambda: model(BatchEncoding({"input_ids": torch.tensor([[1, 2]])}))


@case("embeddings|", "input_ids list", r"torch\.tensor\(input_ids\)", "stack")
def a_list_of_lists_of_ids() -> Made:
    model = _bert()
    return model, lambda: model([[1, 2, 3]])


@case("fc", "PackedSequence LSTM_'lstm'", r"pad_packed_sequence\(out")
def packed_rows_into_a_linear() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        out, _ = self.lstm(rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True))
        return self.fc(out)

    return called(Does(does, lstm=nn.LSTM(4, 8, batch_first=True), fc=nn.Linear(8, 2)), torch.randn(2, 5, 4))


@case(None, "y_\\[2,_3\\] i64 floats", r"y\.float\(\) argmax")
def one_hot_labels_of_whole_numbers() -> Made:
    model, y = nn.Linear(4, 3), torch.tensor([[1, 0, 0], [0, 0, 1]])
    return model, lambda: functional.cross_entropy(model(torch.randn(2, 4)), y)


@case(None, "f32 class_numbers", "long", "passed_to")
def labels_made_of_floats_in_the_line() -> Made:
    model = nn.Linear(4, 3)
    return model, lambda: functional.cross_entropy(model(torch.randn(2, 4)), torch.tensor([0.0, 1.0]))


@case(None, "3 2 batch", "y", "transpose")
def labels_of_another_batch() -> Made:
    model, y = nn.Linear(4, 3), torch.tensor([0, 1, 2])
    return model, lambda: functional.nll_loss(model(torch.randn(2, 4)).log_softmax(-1), y)


@case(None, "not_known", "", "None_no grad_is_None")
def a_backward_of_many_numbers() -> Made:
    model = nn.Linear(4, 3)
    return model, lambda: model(torch.randn(2, 4)).backward()


@case("|transformer", "tgt 8 16 d_model", "", "flatten")
def a_target_of_another_width() -> Made:
    return called(nn.Transformer(16, 2, 1, 1, 32), torch.randn(5, 2, 16), torch.randn(5, 2, 8))


@case("", "w 10 7 enc", "", "turned_it_into look_at_what")
def attention_of_a_fixed_length() -> Made:
    def does(self: Any, x: Tensor, enc: Tensor) -> Tensor:
        w = functional.softmax(self.attention(x), 1)
        return torch.bmm(w.unsqueeze(0), enc.unsqueeze(0))

    return called(Does(does, attention=nn.Linear(8, 10)), torch.randn(1, 8), torch.randn(7, 8))


@case("", r"torch\.stack None", "", "'None'")
def a_none_in_the_line() -> Made:
    return called(Does(lambda self, x: torch.stack([self.p(x), None]), p=nn.Linear(4, 4)), torch.randn(2, 4))


@case("", "out 3 5 Linear_'p'", "", "turned_it_into")
def a_slice_set_to_another_width() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        out = torch.zeros(2, 4)
        out[:, 0:3] = self.p(x)
        return out

    return called(Does(does, p=nn.Linear(4, 5)), torch.randn(2, 4))


@case(None, "a 6 5", r"b\.transpose\(0,_1\)")
def scores_without_a_transpose() -> Made:
    model = nn.Linear(4, 6)

    def call() -> Any:
        a, b = model(torch.randn(3, 4)), model(torch.randn(5, 4))
        return a @ b

    return model, call


@case(None, "hidden_states None", "output_hidden_states=True", "pass_a_tensor")
def hidden_states_that_were_not_asked_for() -> Made:
    model = _bert()

    def call() -> Any:
        out = model(torch.tensor([[1, 2]]))
        return out.hidden_states[-1]

    return model, call


@case(None, "0_to_3 num_classes", "num_classes=4", "num_embeddings rows")
def a_one_hot_of_too_few_classes() -> Made:
    model = nn.Linear(4, 3)
    return model, lambda: (model(torch.randn(2, 4)), functional.one_hot(torch.tensor([0, 3]), 3))


@case("", "m f32 whole_numbers", r"bool\(\)")
def a_mask_of_floats() -> Made:
    return called(Does(lambda self, x, m: self.p(x)[m], p=nn.Linear(4, 4)), torch.randn(2, 4), torch.tensor([1.0, 0]))


@case("transformer.wte", "input_ids f32", "whole_numbers", r"convert")
def embeddings_as_ids() -> Made:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    return model, lambda: model(torch.randn(1, 5, 16))


@case("1", "4 8 num_features", "num_features=4")
def an_instance_norm_of_other_channels() -> Made:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
    return called(model, torch.randn(1, 3, 8, 8))


@case("transformer.wpe", "position_ids 16 0_to_15", "", "leave_it_out")
def more_tokens_generated_than_there_are_positions() -> Made:
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
    ids = torch.arange(2, 16)[None]
    return model, lambda: model.generate(ids, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(ids))
