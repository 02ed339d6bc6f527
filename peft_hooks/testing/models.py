"""Make the tiny models of ``peft_hooks.testing``: sizes, weights, tokenizers, modules of any release."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

TEXTS: tuple[str, ...] = (
    "a cat",
    "the dog sleeps on the warm sofa",
    "rain falls",
    "a small red boat sails over the cold sea while the old captain sings a song",
    "how do birds find the way home in winter ?",
    "two children read one book about the moon , the stars and the dark sky above the quiet town",
)
"""English texts of clearly different lengths, whose words are all in the tiny tokenizer's vocabulary."""

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""The pooling modes, in the order in which every release concatenates their results."""

# The flags of Pooling before 5.4, where their names differ from the mode's.
_FLAGS = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}

# The ids of special tokens are RoBERTa's: MPNet hard-codes padding as 1, and the others read it from their config.
SPECIAL = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
_WORDS = sorted({word for text in TEXTS for word in text.split()} | {"query", "passage", "task", "search", "for", ":"})
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}

# PEFT finds the word embeddings by their number of rows, so no other weight may have as many rows as the vocabulary.
VOCABULARY = [*SPECIAL.values(), *_WORDS, *(f"unused{i}" for i in range(79 - len(SPECIAL) - len(_WORDS)))]

_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _FFN, _POSITIONS, _MAX_LENGTH = 32, 2, 4, 2, 48, 132, 64

_COMMON: dict[str, Any] = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "intermediate_size": _FFN,
    "max_position_embeddings": _POSITIONS,
}
_GROUPED = {**_COMMON, "num_key_value_heads": _KV_HEADS}
# Qwen 3 and the Gemmas decouple a head's size from hidden_size / num_attention_heads, in real checkpoints as well.
_WIDE_HEADS = {**_GROUPED, "head_dim": 16}

# Architectures that are not listed get _COMMON.
_SIZES: dict[str, dict[str, Any]] = {
    "albert": {**_COMMON, "embedding_size": 16, "inner_group_num": 1},
    "deberta-v2": {
        **_COMMON,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": {**_COMMON, "hidden_dim": _FFN},
    "electra": {**_COMMON, "embedding_size": _HIDDEN},
    "gemma": _WIDE_HEADS,
    "gemma3_text": {
        **_WIDE_HEADS,
        "num_hidden_layers": 3,  # with two layers, mixing up layers with keys and values would not show
        "query_pre_attn_scalar": 16,
        "sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"n_embd": _HIDDEN, "n_layer": _LAYERS, "n_head": _HEADS, "n_inner": _FFN, "n_positions": _POSITIONS},
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "modernbert": {**_COMMON, "reference_compile": False, "cls_token_id": 0, "sep_token_id": 2},
    "opt": {**_COMMON, "word_embed_proj_dim": _HIDDEN, "ffn_dim": _FFN},
    "phi3": {**_GROUPED, "original_max_position_embeddings": _POSITIONS},
    "qwen2": _GROUPED,
    "qwen3": _WIDE_HEADS,
    "t5": {"d_model": _HIDDEN, "num_layers": _LAYERS, "num_heads": _HEADS, "d_kv": 8, "d_ff": _FFN},
}

# What the real tokenizers put around a text, if not CLS and SEP.
_TEMPLATES = {
    **dict.fromkeys(("gpt2", "phi3"), "$A"),
    **dict.fromkeys(("llama", "mistral", "opt"), "[CLS] $A"),
    **dict.fromkeys(("qwen2", "qwen3", "t5"), "$A [SEP]"),
}
_WITH_TOKEN_TYPES = ("albert", "bert", "deberta-v2", "electra")


def config_arguments(architecture: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Combine the tiny sizes, the tokenizer's ids and the caller's overrides."""
    return {"vocab_size": len(VOCABULARY), **_SIZES.get(architecture, _COMMON), **IDS, **overrides}


def backbone_class(config: Any) -> Any:
    """Return what builds the backbone that Sentence Transformers loads: T5's encoder, otherwise the base model."""
    import transformers

    if config.model_type in ("t5", "mt5", "umt5"):
        return getattr(transformers, f"{config.model_type.upper()}EncoderModel")
    return transformers.AutoModel.from_config


def fill_weights(backbone: Any, seed: int) -> None:
    """Replace every weight, because most architectures start so small that attention is nearly uniform."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(backbone.named_parameters()):  # by name: releases order them differently
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.ndim < 2:  # a bias, or a norm's weight around its neutral value, which may be 0 or 1
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(1.3 * noise / _HIDDEN**0.5)


def make_tokenizer(architecture: str) -> Any:
    """Return a tokenizer of whole lower-case words that frames texts as the architecture's own does."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = _TEMPLATES.get(architecture, "[CLS] $A [SEP]")
    frame = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    second = template.replace("[CLS] ", "").replace("$A", "$B:1").replace("[SEP]", "[SEP]:1")
    pair = f"{template} {second}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=frame)
    if architecture == "qwen2":  # transformers >= 5.13 rebuilds it as byte-level BPE; only added tokens stay whole
        tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in _WORDS])
    names = ["input_ids", "token_type_ids", "attention_mask"]
    if architecture not in _WITH_TOKEN_TYPES:
        names.remove("token_type_ids")
    wrapper: Any = transformers.PreTrainedTokenizerFast
    return wrapper(tokenizer_object=tokenizer, model_max_length=_MAX_LENGTH, model_input_names=names, **SPECIAL)


def pipeline_modules() -> Any:
    """Import the namespace of the pipeline's modules, which moved in Sentence Transformers 5.4."""
    if importlib.util.find_spec("sentence_transformers.sentence_transformer"):
        return importlib.import_module("sentence_transformers.sentence_transformer.modules")
    return importlib.import_module("sentence_transformers.models")


def make_pooling(width: int, modes: str | tuple[str, ...], include_prompt: bool) -> Any:
    """Build a Pooling module, by mode names since Sentence Transformers 5.4, and by one flag per mode before."""
    wanted = {modes} if isinstance(modes, str) else set(modes)
    if not wanted <= set(POOLING_MODES):
        raise ValueError(f"unknown pooling modes {sorted(wanted - set(POOLING_MODES))}; known: {POOLING_MODES}")
    ordered = [mode for mode in POOLING_MODES if mode in wanted]
    pooling_class = pipeline_modules().Pooling
    if len(ordered) == 1:
        return pooling_class(width, ordered[0], include_prompt=include_prompt)
    if "pooling_mode_lasttoken" not in inspect.signature(pooling_class).parameters:
        return pooling_class(width, ordered, include_prompt=include_prompt)
    flags = {f"pooling_mode_{_FLAGS.get(mode, mode)}": mode in wanted for mode in POOLING_MODES}
    return pooling_class(width, include_prompt=include_prompt, **flags)
