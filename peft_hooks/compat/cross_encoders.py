"""Cross-encoders: where a release keeps the classifier, and what its head reads."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from . import backbones
from . import sentence_transformers as releases

# Which row the classifiers in transformers read; each was compared with scores computed by hand.
READ_FIRST = frozenset(
    [
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "modernbert",
        "mpnet",
        "roberta",
        "xlm-roberta",
    ]
)
READ_LAST = frozenset(["gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"])

TO_LOAD = (
    "`model = CrossEncoder(base_model)`, `model.model = PeftModel.from_pretrained(model.model, path)` (since 5.4 "
    "`model[0].model` in place of `model.model`) and `register_prompt_mask_hooks(model)`"
)
"""How to load a classifier's adapter from a folder with nothing else in it."""

# Before 4.0 a CrossEncoder is not a module: its hooks are on its backbone, which has no reference to it.
_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ReferenceType[Any]] = weakref.WeakKeyDictionary()


class CrossEncoderHolder:
    """Give a CrossEncoder before 5.4 the interface of a Transformer module."""

    def __init__(self, cross_encoder: Any) -> None:
        self._cross_encoder = cross_encoder

    @property
    def model(self) -> Any:
        """The backbone."""
        return self._cross_encoder.model

    @model.setter
    def model(self, backbone: nn.Module) -> None:
        self._cross_encoder.model = backbone

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._cross_encoder.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """The length at which pairs are truncated; if ``max_length`` is None, the tokenizer's."""
        length: int | None = self._cross_encoder.max_length
        return self.tokenizer.model_max_length if length is None else length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self._cross_encoder.max_length = length

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the backbone as the only child, as a Transformer module does."""
        yield "model", self.model


def root_of(model: Any) -> Any:
    """Return the module that hooks of ``model`` go on: a CrossEncoder before 4.0 is not one, but its backbone is."""
    if isinstance(model, nn.Module) or not releases.is_cross_encoder(model):
        return model
    _owners[model.model] = weakref.ref(model)
    return model.model


def holders_of(model: nn.Module) -> list[tuple[str, CrossEncoderHolder]]:
    """Return the CrossEncoder before 5.4 that ``model`` is or belongs to, with the path of its backbone."""
    owner = _owners.get(model)
    cross_encoder = model if owner is None else owner()
    if cross_encoder is None or not releases.is_cross_encoder(cross_encoder) or releases.transformers_of(model):
        return []
    return [("model" if cross_encoder is model else "", CrossEncoderHolder(cross_encoder))]


def inputs_of(model: nn.Module) -> list[tuple[str, Any]]:
    """Return what takes texts in ``model``, with paths: its Transformer modules, or a CrossEncoder before 5.4."""
    return [*releases.transformers_of(model), *holders_of(model)]


def is_classifier(transformer: Any) -> bool:
    """Tell whether the backbone scores texts with its own classification head."""
    return type(releases.plain_backbone(transformer)).__name__.endswith("ForSequenceClassification")


def activation_of(cross_encoder: Any) -> Any:
    """Return the function that ``predict`` applies to the logits; its attribute was renamed in 4.0."""
    name = "activation_fn" if hasattr(cross_encoder, "activation_fn") else "default_activation_function"
    return getattr(cross_encoder, name)


def scores_by_logits(transformer: Any) -> bool:
    """Tell whether a language model's logits for the token after a pair are the score (``LogitScore``, since 5.4)."""
    return getattr(transformer, "module_output_name", None) == "causal_logits"


def task_type(transformer: Any) -> str:
    """Return the PEFT task type that passes this backbone everything it reads, along with the prompt."""
    name = type(releases.plain_backbone(transformer)).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if name.endswith(("ForCausalLM", "LMHeadModel")) else "FEATURE_EXTRACTION"


def head_reads(transformer: Any) -> str | None:
    """Return what the classification head reads: the ``"first"`` row, the ``"last"``, the ``"mean"``; None: unknown."""
    kind = backbones.model_type(transformer)
    if kind == "modernbert" and releases.plain_backbone(transformer).config.classifier_pooling == "mean":
        return "mean"
    return "first" if kind in READ_FIRST else "last" if kind in READ_LAST else None


def has_unknown_head(transformer: Any) -> bool:
    """Tell whether this is a classifier whose head reads an unknown row."""
    return is_classifier(transformer) and head_reads(transformer) is None
