"""Tokenizers of every kind, trained on a few sentences, with every post-processor that real ones have."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = (
    "a cat sleeps on the warm sofa while rain falls on the quiet town",
    "The old captain's 3 boats (red, small) cost $4.50 - don't they?",
    "how do birds find the way home in winter? <query> a b c d e f g",
    "naïve café; жук и кот; 猫が好き; x = [1, 2]\n\tprint('a')",
    "two children read one book about the moon, the stars and the dark sky above the town",
)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""The special tokens, with the ids that RoBERTa uses."""

KINDS = ("wordpiece", "wordlevel", "byte-level", "byte-level-whole-words", "byte-fallback", "unigram")


@functools.cache
def _trained(kind: str, size: int) -> str:
    options = {"special_tokens": list(SPECIAL), "vocab_size": size, "show_progress": False}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(**options)
    elif kind == "wordlevel":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**options)
    elif kind == "byte-fallback":  # Llama 2, Mistral, Gemma
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            **{**options, "special_tokens": [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256))]}
        )
    elif kind == "unigram":  # T5, XLM-R, ALBERT
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    else:  # GPT-2, RoBERTa, Qwen; Llama 3 keeps words that are in the vocabulary whole
        made = Tokenizer(models.BPE(ignore_merges=kind == "byte-level-whole-words"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    made.train_from_iterator(CORPUS, trainer)
    state = json.loads(made.to_str())
    # Tokens for single bytes belong to the model's vocabulary only, as in Llama.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    return json.dumps(state)


def trained(kind: str, size: int = 400) -> Tokenizer:
    """Return a newly trained tokenizer without a post-processor."""
    return Tokenizer.from_str(_trained(kind, size))


def post_processors() -> Iterator[tuple[str, Any]]:
    """Yield the post-processors that real tokenizers have, with their names."""
    cls, sep = ("<s>", 0), ("</s>", 2)
    special = [cls, sep]
    template = processors.TemplateProcessing
    bert = template(single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=special)
    last = template(single="$A </s>", pair="$A </s> $B </s>", special_tokens=special)
    first = template(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=special)
    byte_level = processors.ByteLevel(trim_offsets=False)
    yield "none", None
    yield "byte-level", byte_level
    yield "bert", processors.BertProcessing(sep, cls)
    yield "roberta", processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    yield "template", bert
    yield "template of the last", last
    yield "template of the first", first
    yield "template of nothing", template(single="$A", pair="$A $B:1", special_tokens=[])
    two = [("<two>", 0), sep]
    yield "template of two first ones", template(single="<two> </s> $A", pair="<two> </s> $A $B", special_tokens=two)
    yield "sequence with a template", processors.Sequence([byte_level, first])
    yield "sequence with a template first", processors.Sequence([bert, byte_level])
    yield "sequence without", processors.Sequence([byte_level])
    yield "sequence in a sequence", processors.Sequence([processors.Sequence([byte_level, bert])])


def with_special_beyond(made: Tokenizer) -> Tokenizer:
    """Add tokens after the vocabulary, as Qwen and Llama 3 do."""
    made.add_special_tokens([AddedToken(f"<|extra_{number}|>", special=True) for number in range(3)])
    return made


def wrapped(made: Tokenizer, **options: Any) -> Any:
    """Wrap a tokenizer for transformers."""
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    ends = {"cls_token": "<s>", "sep_token": "</s>"}
    kind: Any = PreTrainedTokenizerFast
    settings = {"model_max_length": 64, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return kind(tokenizer_object=made, **{**settings, **dict(zip(names, SPECIAL)), **ends, **options})


def model_with(architecture: str, made: Tokenizer, pooling: str, kind: str | None = None, **config: Any) -> Any:
    """Build a tiny model with another tokenizer, loaded through its own class if ``kind`` names one."""
    from sentence_transformers import SentenceTransformer

    from peft_hooks.testing import tiny_transformer
    from peft_hooks.testing.models import make_pooling, pipeline_modules

    size = 1 + max(made.get_vocab(with_added_tokens=True).values())
    segments = {"bert", "albert", "electra"} & {architecture}
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_transformer(architecture, folder, vocab_size=size, **config)
        for file in path.glob("*token*"):
            file.unlink()
        wrapped(made, model_input_names=names).save_pretrained(path)
        if kind is not None:
            settings = path / "tokenizer_config.json"
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": kind}))
        transformer = pipeline_modules().Transformer(str(Path(path)))
    backbone = getattr(transformer, "model", None) or transformer.auto_model
    modules = [transformer, make_pooling(int(backbone.config.hidden_size), pooling, True)]
    return SentenceTransformer(modules=modules, device="cpu").eval()
