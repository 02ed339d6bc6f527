"""Hooks that make a sequence classifier's head read the text: ``ReadText``, ``PutTextLast``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat.pipeline import Encoder
from ..errors import UnsupportedModelError
from ..hooks.call import Call, Hook
from . import tensors as ft
from .text import text_around


class ReadText(Hook):
    """Cut virtual tokens off what a classifier's head reads. Goes on the backbone, or on the layers before its pooler.

    BERT's pooler and the heads of similar architectures read position 0, which with prompt tuning is a virtual token
    instead of the text's [CLS] that they were trained on. The number of virtual rows is measured: the hidden states,
    ``float[batch, virtual + seq, width]``, have that many more rows than ``NoteText`` noted for the text.
    """

    def after(self, call: Call, output: Any) -> Any:
        text, hidden = text_around(call), output[0]
        if text is None or hidden.size(1) <= text.length:
            return None
        return _with_rows(output, hidden[:, hidden.size(1) - text.length :])


class PutTextLast(Hook):
    """Roll the rows of a batch so that every text ends last. Goes on the layers before a decoder's head.

    Classifiers on decoders score a text's last token, which they find by the padding in ``input_ids``. PEFT passes them
    embeddings instead, of which they take the last row: padding. Where they get ids (a prefix, LoRA), rows stay. A
    language model whose logits are the score always takes the last row.

    Args:
        always: Whether the head takes the last row even if it gets ids.
    """

    def __init__(self, always: bool = False) -> None:
        self.always = always

    def after(self, call: Call, output: Any) -> Any:
        mask, hidden = call.kwargs.get("attention_mask"), output[0]
        length = hidden.size(1)
        if mask is None or mask.dim() != 2 or mask.size(1) < length:
            return None
        if not self.always and (call.kwargs.get("inputs_embeds") is None or mask.size(1) != length):
            return None
        behind = ft.first_counted(mask[:, -length:].flip(1))  # how many rows stand behind the text
        return _with_rows(output, ft.take(hidden, ft.rolled(length - behind, length)))


def _with_rows(output: Any, hidden: Tensor) -> Any:
    """Return the output of a backbone with its rows replaced."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**{**output, "last_hidden_state": hidden})


def refuse_classifier(encoder: Encoder, virtual_tokens: str) -> None:
    """Raise UnsupportedModelError if the scores of a classifier with an adapter cannot be correct."""
    if not cross.is_classifier(encoder.module):
        return
    outer, reads = type(encoder.outer).__name__, cross.head_reads(encoder.module)
    where = f"the classifier {type(encoder.backbone).__name__} at {encoder.path!r}"
    for name, config in encoder.prompts.items():
        method = releases.method_of(config)
        segments = "token_type_ids" in getattr(encoder.module.tokenizer, "model_input_names", ())
        if segments and not outer.endswith("ForSequenceClassification"):
            raise UnsupportedModelError(
                f"{where}: {outer} drops the segment ids (token_type_ids) that tell the two texts of "
                f'a pair apart: make the {method} adapter {name!r} with task_type="SEQ_CLS", or with '
                f"peft_hooks.add_prompt_adapter(model, config)"
            )
        if method in releases.PREFIX_METHODS:
            continue  # adds no rows to what the head reads
        if reads is None:
            raise UnsupportedModelError(
                f"{where}: which row its head reads is not known, and with the {method} adapter {name!r} that may be a "
                f"virtual token or padding: use LORA, which adds no rows, or a backbone whose head is known: "
                f"{', '.join(sorted(cross.READ_FIRST | cross.READ_LAST))}"
            )
        if reads == "mean" and virtual_tokens in ("ignore", "strip"):
            raise UnsupportedModelError(
                f"{where}: its head takes the mean of all rows itself, so virtual_tokens={virtual_tokens!r} cannot "
                f'leave out those of the {method} adapter {name!r}: use "auto" or "pool", or classifier_pooling="cls"'
            )


def hooks_of_head(encoder: Encoder, virtual_tokens: str) -> Iterator[tuple[str, Hook, nn.Module]]:
    """Yield the hooks that make the head read the text, except ``NoteText``: name, hook, module."""
    plain = encoder.backbone
    if cross.scores_by_logits(encoder.module):
        yield "ends", PutTextLast(always=True), getattr(plain, plain.base_model_prefix)
    if not cross.is_classifier(encoder.module) or not hasattr(encoder.outer, "active_peft_config"):
        return
    reads = cross.head_reads(encoder.module)
    if reads == "last":
        yield "ends", PutTextLast(), getattr(plain, plain.base_model_prefix)
    elif reads == "first" and virtual_tokens != "pool":
        yield "head", ReadText(), _before_pooling(getattr(plain, plain.base_model_prefix))


def _before_pooling(body: Any) -> nn.Module:
    """Return the module whose rows the head reads: the layers, if the backbone has a pooler as BERT and ALBERT do."""
    layers: nn.Module = body.encoder if getattr(body, "pooler", None) is not None else body
    return layers
