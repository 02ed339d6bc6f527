"""Cases from a second look: coincidences of size, indices that must be worked out, and superfluous dimensions."""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from .layers import Does, Made, called
from .models import IDS, bert
from .table import case


@case("1", "8_wide 16 in_features", "in_features=8", "batch_dimension_is_missing")
def a_width_that_the_batch_divides() -> Made:
    return called(nn.Sequential(nn.Linear(4, 8), nn.Linear(16, 4)), torch.randn(2, 4))


@case("", "3_in_dimension_1 gate 4", "'w'", "of_its take_4")
def a_parameter_that_was_summed_over() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        y = torch.einsum("bd,edf->bef", x, self.w)
        return torch.einsum("be,bef->bf", gate, y)

    model = Does(does, router=nn.Linear(8, 4))
    model.register_parameter("w", nn.Parameter(torch.randn(3, 8, 8)))
    return called(model, torch.randn(5, 8))


@case("", r"w_\[2,_8\]", r"w\[:,_:,_None,_None\]", r"None,_None,_:\]")
def a_weight_for_each_channel_of_as_many_pixels() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        w = self.fc(x.mean((2, 3)))
        return x * w

    return called(Does(does, conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 8)), torch.randn(2, 3, 10, 10))


@case("", r"att_\[2,_5,_7\] 7 v_\[2,_5,_8\] 5", "", "turned_it_into")
def scores_that_nobody_made_of_the_input() -> Made:
    def does(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(memory), self.v(x)
        att = torch.softmax(q @ k.transpose(1, 2), dim=-1)
        return att @ v

    parts = {"q": nn.Linear(8, 8), "k": nn.Linear(8, 8), "v": nn.Linear(8, 8)}
    return called(Does(does, **parts), torch.randn(2, 5, 8), torch.randn(2, 7, 8))


@case("", r"edge_index\[1\]` ranges_from_1_to_4 0_to_3", "0_to_3")
def an_edge_to_a_node_that_is_not_there() -> Made:
    def does(self: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.lin(x)
        return h[edge_index[0]] + h[edge_index[1]]

    return called(Does(does, lin=nn.Linear(4, 6)), torch.randn(4, 4), torch.tensor([[0, 1, 2], [1, 2, 4]]))


@case("", r"target\.unsqueeze\(1\)` 0_to_5 0_to_4", "0_to_4")
def a_class_beyond_those_that_are_scattered() -> Made:
    def does(self: Any, x: Tensor, target: Tensor) -> Tensor:
        true = torch.full_like(self.fc(x), 0.1)
        return true.scatter_(1, target.unsqueeze(1), 0.9)

    return called(Does(does, fc=nn.Linear(4, 5)), torch.randn(3, 4), torch.tensor([0, 5, 1]))


@case("embeddings|", r"input_ids_\[2,_1,_9\]_has_3_dimensions 2", r"input_ids\.squeeze\(1\)", "parts")
def ids_with_a_dimension_of_one_from_a_loader() -> Made:
    return called(bert(), input_ids=IDS.unsqueeze(1))


@case(None, r"out_\[2,_4,_1,_1\]", r"out\.flatten\(1\)", "give_y")
def logits_with_the_places_of_a_convolution() -> Made:
    model, y = nn.Conv2d(3, 4, 8), torch.tensor([0, 1])

    def call() -> Any:
        out = model(torch.randn(2, 3, 8, 8))
        return functional.cross_entropy(out, y)

    return model, call


@case("rnn", "h,_created_in_Does f64 f32", "float32")
def a_state_of_doubles() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        h = torch.zeros(1, x.size(0), 6, dtype=torch.float64)
        return self.rnn(x, h)

    return called(Does(does, rnn=nn.GRU(4, 6, batch_first=True)), torch.randn(2, 3, 4))


@case("", r"context_\[3,_6\] emb_\[3,_1,_4\]", r"context\.unsqueeze\(1\)", "give_context")
def a_context_without_its_step() -> Made:
    def does(self: Any, token: Tensor, context: Tensor) -> Tensor:
        emb = self.embed(token).unsqueeze(1)
        return torch.cat([emb, context], dim=2)

    return called(Does(does, embed=nn.Embedding(20, 4)), torch.tensor([1, 2, 3]), torch.randn(3, 6))


@case("rnn", r"10_wide 8 4_is_dimension_2_of_emb 6_is_dimension_2_of_context", "input_size=10")
def what_was_joined_under_a_name() -> Made:
    def does(self: Any, token: Tensor, context: Tensor) -> Any:
        emb = self.embed(token)
        x = torch.cat([emb, context], dim=2)
        return self.rnn(x)

    model = Does(does, embed=nn.Embedding(20, 4), rnn=nn.GRU(8, 6, batch_first=True))
    return called(model, torch.ones(3, 5, dtype=torch.long), torch.randn(3, 5, 6))


@case("cnn", "5_dimensions 3_or_4", r"clips\.flatten\(0,_1\)")
def clips_for_a_convolution_of_images() -> Made:
    return called(Does(lambda self, clips: self.cnn(clips), cnn=nn.Conv2d(3, 4, 3)), torch.randn(2, 8, 3, 16, 16))


@case("0", "8_in_dimension_1 3 dimension_2", r"permute\(0,_2,_1,_3,_4\)", "in_channels=8")
def clips_with_the_frames_first() -> Made:
    return called(nn.Sequential(nn.Conv3d(3, 4, 3)), torch.randn(2, 8, 3, 16, 16))


@case("", "8_\\*_2_=_16 20", "")
def heads_that_are_no_divisor_of_the_width() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        return self.q(x).view(batch, length, 8, width // 8)

    return called(Does(does, q=nn.Linear(20, 20)), torch.randn(2, 5, 20))


@case("lstm", "packed 7 14 12 too_large", "pack_padded_sequence")
def lengths_longer_than_what_is_packed() -> Made:
    def does(self: Any, x: Tensor, lengths: Tensor) -> Any:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.lstm(packed)

    return called(Does(does, lstm=nn.LSTM(4, 6)), torch.randn(3, 5, 4), torch.tensor([5, 7, 2]))


@case("", r"4_in_dimension_1 5 \[2,_5\]", "4|5")
def rows_of_two_widths_are_padded() -> Made:
    def does(self: Any, rows: list[Tensor]) -> Tensor:
        return rnn.pad_sequence(rows, batch_first=True)

    return called(Does(does), [torch.randn(3, 4), torch.randn(2, 5)])


@case("", "topk 5 3_instead_of_5", "")
def more_of_the_best_than_there_are() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        return self.fc(x).topk(5, dim=-1).values

    return called(Does(does, fc=nn.Linear(4, 3)), torch.randn(2, 4))


@case("", r"adj_\[6,_6\] \[5,_6\]", "6_rows", "")
def a_square_of_other_nodes() -> Made:
    def does(self: Any, x: Tensor, adj: Tensor) -> Tensor:
        return adj @ self.lin(x)

    return called(Does(does, lin=nn.Linear(4, 6)), torch.randn(5, 4), torch.eye(6))


@case(
    "base_model.bert.embeddings|base_model.bert",
    "39 32 30_of_them_virtual",
    "2",
    "create_'position_ids'_with",
)
def more_virtual_tokens_than_positions() -> Made:
    model = bert("BertForSequenceClassification", num_labels=2)
    prompt = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=30)
    labels = torch.tensor([0, 1])
    return called(peft.get_peft_model(model, prompt), input_ids=IDS, attention_mask=torch.ones(2, 9), labels=labels)


@case("base_model.decoder.block.0.layer.0.SelfAttention|base_model.model.decoder.block.0.layer.0.SelfAttention",
      r"\[2,_4,_4,_4\] 4_in_dimension_1 2", "", "num_virtual_tokens attention_mask")  # fmt: skip
def a_prefix_of_as_many_heads_as_virtual_tokens() -> Made:
    sizes = {"vocab_size": 50, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    prompt = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, token_dim=16, num_attention_heads=4, num_layers=1
    )
    return called(peft.get_peft_model(model, prompt), input_ids=IDS, attention_mask=torch.ones(2, 9), labels=IDS)


@case("", r"inputs_embeds_\[2,_9,_12\] 12 16", "inputs_embeds_a_size_of_16", "")
def embeddings_of_another_model() -> Made:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            return self.weight * inputs_embeds

    return called(Scaled(), inputs_embeds=torch.randn(2, 9, 12))


@case("", r"self\.fcs\[0\]\(x\).*6 self\.fcs\[2\]\(x\).*5", "6|5")
def a_sum_over_layers_of_two_widths() -> Made:
    fcs = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 5)])
    return called(Does(lambda self, x: sum(fc(x) for fc in self.fcs), fcs=fcs), torch.randn(2, 4))


@case("fc", "hs_is_a_tuple hidden_states 2_tensors", r"hs\[-1\]", "of_4_tensors pooler_output")
def all_hidden_states_into_a_linear() -> Made:
    def does(self: Any, ids: Tensor) -> Any:
        hs = self.bert(ids, output_hidden_states=True).hidden_states
        return self.fc(hs)

    return called(Does(does, bert=bert(), fc=nn.Linear(16, 2)), IDS)


@case("l", "32_wide 16 in_features", "in_features=32", "disagree_in")
def positions_for_all_rows_beside_a_width_twice_as_large() -> Made:
    def does(self: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.l(self.e(input_ids))

    model = Does(does, e=nn.Embedding(20, 32), l=nn.Linear(16, 4))
    return called(model, input_ids=torch.ones(2, 9, dtype=torch.long), position_ids=torch.arange(9)[None])
