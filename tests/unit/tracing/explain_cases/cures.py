"""Errors whose sizes are obvious but whose fix is not: missing dimensions, states, views, a library's own checks."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .layers import Does, Made, called
from .models import IDS, gpt2
from .table import case


@case("", r"scores_\[3,_2,_6,_6\] \[3,_6\]", r"\[:,_None,_None,_:\]", r"the_same_size_there,_\d")
def a_padding_mask_for_scores_of_heads() -> Made:
    def does(self: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(mask == 0, -1e9)

    return called(Does(does), torch.randn(3, 2, 6, 6), torch.ones(3, 6))


@case("", r"attention_mask_\[3,_6\] 8", r"attention_mask\.unsqueeze\(-1\)", r"the_same_size_there,_\d")
def a_mask_for_each_token_of_embeddings() -> Made:
    def does(self: Any, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.embed(ids) * attention_mask).sum(1)

    return called(Does(does, embed=nn.Embedding(20, 8)), torch.ones(3, 6, dtype=torch.long), torch.ones(3, 6))


@case("", r"emb_\[2,_8\]", r"emb\[:,_:,_None,_None\]", r"the_same_size_there,_\d")
def a_number_for_each_channel_of_images() -> Made:
    def does(self: Any, x: Tensor, time: Tensor) -> Tensor:
        emb = self.time(time)
        return self.conv(x) + emb

    model = Does(does, conv=nn.Conv2d(3, 8, 3, padding=1), time=nn.Linear(4, 8))
    return called(model, torch.randn(2, 3, 6, 6), torch.randn(2, 4))


@case("", r"64 400 x_\[6,_16,_2,_2\]", r"flatten\(1\) 64", "whose_product")
def a_view_of_images_of_another_size() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        return x.view(-1, 400)

    return called(Does(does, conv=nn.Conv2d(3, 16, 3), pool=nn.MaxPool2d(2)), torch.randn(6, 3, 6, 6))


@case("", r"`H_//_p`_leaves_a_remainder 18 multiple_of_4", "16_or_20")
def patches_that_do_not_divide() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        B, C, H, W = x.shape  # noqa: N806
        p = 4
        return x.reshape(B, C, H // p, p, W // p, p)

    return called(Does(does), torch.randn(2, 3, 18, 16))


@case("", r"`T`_is_dimension_1_of_logits", "", r"logits_\[10")
def labels_viewed_by_the_sizes_of_logits() -> Made:
    def does(self: Any, ids: Tensor, targets: Tensor) -> Any:
        logits = self.embed(ids)
        B, T, C = logits.shape  # noqa: N806
        return logits.view(B * T, C), targets.view(B * T)

    ids = torch.ones(2, 5, dtype=torch.long)
    return called(Does(does, embed=nn.Embedding(20, 8)), ids, ids[:, 1:].contiguous())


@case("", "8_elements 10", "", r"logits_\[10")
def a_size_of_what_was_viewed_since() -> Made:
    def does(self: Any, ids: Tensor, targets: Tensor) -> Any:
        logits = self.embed(ids)
        B, T, C = logits.shape  # noqa: N806
        logits = logits.view(B * T, C)
        return logits, targets.view(B * T)

    ids = torch.ones(2, 5, dtype=torch.long)
    return called(Does(does, embed=nn.Embedding(20, 8)), ids, ids[:, 1:].contiguous())


@case(
    "rnn",
    r"\[3,_2,_6\] has_2_in_dimension_1",
    r"hidden\[0\]`\.transpose\(0,_1\).*hidden\[1\]`\.transpose",
    "change_",
)
def states_with_the_batch_first() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        hidden = torch.zeros(x.size(0), 2, 6), torch.zeros(x.size(0), 2, 6)
        return self.rnn(x, hidden)

    return called(Does(does, rnn=nn.LSTM(4, 6, 2, batch_first=True)), torch.randn(3, 5, 4))


@case("lstm", r"3_dimensions takes_2", r"x\.unsqueeze\(0\)", "batch_dimension_is_missing")
def rows_without_a_length_and_states_of_a_batch() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        state = torch.zeros(1, x.size(0), 6), torch.zeros(1, x.size(0), 6)
        return self.lstm(x, state)

    return called(Does(does, lstm=nn.LSTM(4, 6)), torch.randn(5, 4))


@case("decoder", "hidden 2 1 GRU_'encoder", "directions bidirectional")
def the_states_of_two_directions_for_one() -> Made:
    def does(self: Any, x: Tensor) -> Any:
        _, hidden = self.encoder(x)
        return self.decoder(x, hidden)

    parts = {"encoder": nn.GRU(4, 6, bidirectional=True), "decoder": nn.GRU(4, 6)}
    return called(Does(does, **parts), torch.randn(5, 3, 4))


@case("encoder|encoder.layers.0.self_attn", r"mask_\[7,_3\] mask_has_3_in_dimension_1", r"mask\.transpose\(0,_1\)")
def a_padding_mask_with_the_length_first() -> Made:
    def does(self: Any, ids: Tensor) -> Any:
        mask = (ids == 0).transpose(0, 1)
        return self.encoder(self.embed(ids), src_key_padding_mask=mask)

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    return called(Does(does, embed=nn.Embedding(20, 8), encoder=encoder), torch.ones(3, 7, dtype=torch.long))


@case("3", "64 512 batch_dimension_is_missing", r"unsqueeze\(0\) \[3,_8,_8\]", "in_features=64")
def an_image_without_a_batch_into_a_flatten() -> Made:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2))
    return called(model, torch.randn(3, 8, 8))


@case("decoder.block.0.layer.1.EncDecAttention.o|decoder.block.0.layer.1.EncDecAttention",
      r"input_ids_\[2,_9\]|scores_\[1 disagree_in_the_batch|18", "", "in_features=32")  # fmt: skip
def labels_of_another_batch_for_a_t5() -> Made:
    config = transformers.T5Config(
        vocab_size=50, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16, decoder_start_token_id=0
    )
    return called(transformers.T5ForConditionalGeneration(config), input_ids=IDS, labels=IDS[:1])


@case("layers", "ModuleList_'layers'_has_no_forward", "nn.Sequential layer")
def a_list_of_layers_that_is_called() -> Made:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    return called(Does(lambda self, x: self.layers(x), layers=layers), torch.randn(2, 4))


@case("", r"out\[sel\]`_\[3,_4\] Linear_'expert' 5", "4|5")
def an_expert_of_another_width() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        out, sel = torch.zeros_like(x), torch.arange(len(x)) % 2 == 0
        out[sel] = self.expert(x[sel])
        return out

    return called(Does(does, expert=nn.Linear(4, 5)), torch.randn(6, 4))


@case(None, r"\[5\] \[7\]", "collate_fn pad_sequence")
def texts_of_other_lengths_in_a_loader() -> Made:
    loader: Any = DataLoader([torch.arange(5), torch.arange(7)], batch_size=2)  # type: ignore[arg-type]
    return nn.Linear(2, 2), lambda: next(iter(loader))


@case("", r"s_\[2,_30\] Linear_'student' Linear_'teacher' 32", "")
def a_teacher_of_another_vocabulary_without_gradients() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        s = nn.functional.log_softmax(self.student(x) / 2.0, dim=-1)
        with torch.no_grad():
            t = nn.functional.softmax(self.teacher(x) / 2.0, dim=-1)
        return nn.functional.kl_div(s, t)

    return called(Does(does, student=nn.Linear(5, 30), teacher=nn.Linear(5, 32)), torch.randn(2, 5))


def vit() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4))


@case("embeddings.patch_embeddings", "num_channels dimension_1_of_pixel_values 4", "3_in_dimension_1")
def an_image_with_an_alpha_channel() -> Made:
    return called(vit(), pixel_values=torch.randn(1, 4, 8, 8))


@case("embeddings.patch_embeddings", "num_channels 8", r"permute\(0,_3,_1,_2\)")
def an_image_with_the_channels_last_for_a_vit() -> Made:
    return called(vit(), pixel_values=torch.randn(1, 8, 8, 3))


@case("embeddings|text_model.embeddings", "9 8 seq_length|too_long", "at_most_8")
def a_text_that_is_too_long_for_clip() -> Made:
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    return called(transformers.CLIPTextModel(config), input_ids=IDS)


@case("", "pad_token_id`_is_None", "set pad_token_id")
def texts_for_a_classifier_that_knows_no_padding() -> Made:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12, num_labels=2)
    return called(transformers.GPT2ForSequenceClassification(config), input_ids=IDS)


@case("", "input_ids_\\[2,_9\\] labels_\\[2,_8\\] length", "-100|9")
def labels_that_were_shifted_already() -> Made:
    return called(gpt2(), input_ids=IDS, labels=IDS[:, 1:])


@case(None, r"y_has_one_number_for_each_of_4 13", "cross_entropy 13")
def class_numbers_for_a_squared_error() -> Made:
    model, y = nn.Linear(5, 13), torch.tensor([0.0, 1.0, 2.0, 3.0])
    return model, lambda: nn.functional.mse_loss(model(torch.randn(4, 5)), y)


@case(None, r"same_number_of_elements,_48", r"x\.reshape\(recon\.shape\)")
def pixels_for_what_was_laid_flat() -> Made:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Sigmoid()), torch.rand(3, 1, 4, 4)

    def call() -> Any:
        recon = model(x)
        return nn.functional.binary_cross_entropy(recon, x)

    return model, call


@case(None, r"real_\[16\] out_has_12_rows", "real_with_12_rows")
def labels_made_for_a_whole_batch() -> Made:
    model, real = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)), torch.ones(16)

    def call() -> Any:
        out = model(torch.randn(12, 4))
        return nn.functional.binary_cross_entropy(out, real)

    return model, call


@case(None, "lengths go_up_to_10 5_in_dimension_0", "at_most_5")
def lengths_from_before_a_convolution() -> Made:
    model, lengths = nn.Conv1d(4, 6, 2, stride=2), torch.full((3,), 10)
    targets = torch.ones(3, 2, dtype=torch.long)

    def call() -> Any:
        scores = model(torch.randn(3, 4, 10)).permute(2, 0, 1).log_softmax(-1)
        return nn.functional.ctc_loss(scores, targets, lengths, torch.full((3,), 2))

    return model, call


@case("", "h_\\[2,_3,_4\\]_has_3_dimensions 2_numbers", r"h\.repeat\(2,_1,_1\)")
def too_few_numbers_for_a_repeat() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        h = self.enc(x)
        return h.repeat(2, 1)

    return called(Does(does, enc=nn.Linear(4, 4)), torch.randn(2, 3, 4))


@case("", "2_parts sentence_features 3_are_unpacked", "`sentence_features`_3_entries")
def two_columns_for_a_triplet() -> Made:
    def does(self: Any, sentence_features: list[Tensor]) -> Any:
        embeddings = [self.enc(one) for one in sentence_features]
        anchor, positive, negative = embeddings
        return anchor - positive, negative

    return called(Does(does, enc=nn.Linear(4, 4)), [torch.randn(2, 4), torch.randn(2, 4)])


@case("", r"\[4,_16,_8\] 512 \[4,_17,_-1,_4\]", "", "whatever_their")
def a_view_of_sizes_that_are_laid_out() -> Made:
    def does(self: Any, x: Tensor) -> Tensor:
        shape = x.shape[:-1]
        return self.key(x)[:, 1:].view(*shape, -1, 4)

    return called(Does(does, key=nn.Linear(8, 8)), torch.randn(4, 17, 8))
