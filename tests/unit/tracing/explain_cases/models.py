"""Models of transformers, called wrongly."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .layers import Does, Made, called
from .table import case

IDS = torch.arange(18).view(2, 9) + 1
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert(kind: str = "BertModel", **more: Any) -> Any:
    config = transformers.BertConfig(**{**SMALL, "max_position_embeddings": 32, **more})
    return getattr(transformers, kind)(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    return transformers.GPT2LMHeadModel(config)


@case("transformer.wpe", "20_positions wpe|'transformer.wpe' 12", "12")
def a_text_beyond_the_positions_of_gpt2() -> Made:
    return called(gpt2(), input_ids=torch.arange(20).view(1, 20))


@case("embeddings.word_embeddings", "input_ids 60 50_rows", "tokenizer|resize_token_embeddings", "positions,_but")
def a_token_beyond_the_vocabulary() -> Made:
    ids = IDS.clone()
    ids[1, 3] = 60
    return called(bert(), input_ids=ids)


@case("embeddings.token_type_embeddings", "token_type_ids 2_rows 2", "token_type_ids", "resize_token")
def a_third_token_type() -> Made:
    return called(bert(), input_ids=IDS, token_type_ids=torch.full_like(IDS, 2))


@case("", "labels 3 2_classes", "labels|classes")
def a_label_beyond_two_classes() -> Made:
    model = bert("BertForSequenceClassification", num_labels=2, problem_type="single_label_classification")
    return called(model, input_ids=IDS, labels=torch.tensor([0, 3]))


@case("", "labels 18 2 one_for_each_token", "one_label_for_each_text TokenClassification")
def labels_of_tokens_for_texts() -> Made:
    model = bert("BertForSequenceClassification", num_labels=2)
    return called(model, input_ids=IDS, labels=torch.zeros_like(IDS))


@case("", "labels 16 18", "")
def labels_of_another_length_for_tokens() -> Made:
    model = bert("BertForTokenClassification", num_labels=3)
    return called(model, input_ids=IDS, labels=torch.zeros(2, 8, dtype=torch.long))


@case("head", "is_16_wide takes_24 in_features", "16|24")
def a_head_of_a_larger_model() -> Made:
    def does(self: Any, ids: Any) -> Any:
        hidden = self.bert(input_ids=ids).last_hidden_state
        return self.head(hidden[:, 0])

    return called(Does(does, bert=bert(), head=torch.nn.Linear(24, 2)), IDS)


@case("head", "BertModel_'bert' returned last_hidden_state", "last_hidden_state")
def a_model_output_into_a_head() -> Made:
    def does(self: Any, ids: Any) -> Any:
        hidden = self.bert(input_ids=ids)
        return self.head(hidden)

    return called(Does(does, bert=bert(), head=torch.nn.Linear(16, 2)), IDS)


@case("", "no_'logits' BaseModelOutput", "")
def logits_of_a_model_without_a_head() -> Made:
    def does(self: Any, ids: Any) -> Any:
        out = self.bert(input_ids=ids)
        return out.logits

    return called(Does(does, bert=bert()), IDS)


@case("embeddings|", "9 input_ids batch", "unsqueeze")
def one_text_for_bert() -> Made:
    return called(bert(), input_ids=torch.arange(9))


@case("embeddings.word_embeddings", "is_f32 looks_up_integers", "long")
def ids_that_are_floats() -> Made:
    return called(bert(), input_ids=IDS.float())


@case("", "input_ids inputs_embeds None|given", "input_ids")
def no_ids_at_all() -> Made:
    return called(bert(), attention_mask=torch.ones(2, 9))


@case("embeddings.patch_embeddings", "num_channels 1 3", "")
def an_image_of_another_number_of_channels() -> Made:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    return called(transformers.ViTModel(config), pixel_values=torch.randn(1, 1, 8, 8))


@case("", "decoder_input_ids None", "decoder_input_ids")
def a_bart_without_ids() -> Made:
    config = transformers.BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    return called(transformers.BartModel(config), inputs_embeds=torch.randn(2, 9, 16))


@case(None, "logits|labels 9 8|16|18", "")
def a_shifted_loss_that_was_half_shifted() -> Made:
    model = gpt2()

    def call() -> Any:
        logits = model(input_ids=IDS).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, 50), IDS[:, 1:].reshape(-1))

    return model, call
