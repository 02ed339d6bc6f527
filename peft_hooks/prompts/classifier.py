"""The hooks that make a sequence classifier's head read the text: ``NoteTextLength``, ``ReadText``, ``PutTextLast``."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat.torch_internals import calls_of
from ..errors import UnsupportedModelError
from ..hooks.call import Call, Hook
from . import tensors as ft

# `text`: how many positions it has, and the module that it went into, or None where that cannot be seen to run.
# Not on a hook: one hook runs in many threads, and travels with a copied or pickled model. Not a ContextVar, at which
# torch.compile breaks its graph, nor a class of our own with a default, to which assignments are lost in it (2.13).
_running = threading.local()


def _noted() -> tuple[int, nn.Module | None] | None:
    """Return the note of the classifier that runs in this thread."""
    text: tuple[int, nn.Module | None] | None = getattr(_running, "text", None)
    # After a KeyboardInterrupt no hook takes a note down, and what the layers are given next is not of its text.
    return text if text is None or text[1] is None or is_compiling() or calls_of(text[1]) else None


class NoteTextLength(Hook):
    """Note how long the text is while the classifier runs. Goes where the text goes in: the Transformer, a PeftModel.

    Inside of PEFT nothing tells any more which positions are virtual tokens and which the text's.
    """

    def before(self, call: Call) -> None:
        features = call.args[0] if call.args and isinstance(call.args[0], Mapping) else call.kwargs
        length = ft.input_length(features)
        call.notes[self] = _noted()
        if length is None:
            _running.text = None
        elif is_compiling() or not calls_of(call.module):  # where torch.compile breaks its graph, frames are its own
            _running.text = length, None
        else:
            _running.text = length, call.module

    def after(self, call: Call, output: Any) -> None:
        self._take_down(call)

    def _left(self, call: Call) -> None:
        self._take_down(call)

    def _take_down(self, call: Call) -> None:
        if self in call.notes:
            _running.text = call.notes[self]


class ReadText(Hook):
    """Cut virtual tokens off what a classifier's head reads. Goes on the backbone, or on the layers before its pooler.

    BERT's pooler and the heads of its kin read position 0: with prompt tuning a virtual token, not the text's [CLS]
    that they were trained on. How many rows are virtual is measured: those that are more than ``NoteTextLength`` noted.
    """

    def after(self, call: Call, output: Any) -> Any:
        noted, hidden = _noted(), output[0]
        if noted is None or hidden.size(1) <= noted[0]:
            return None
        text = hidden[:, hidden.size(1) - noted[0] :]
        return _with_rows(output, text)


class PutTextLast(Hook):
    """Roll the rows of a batch so that every text ends at the last one. Goes on the layers before a decoder's head.

    Classifiers on decoders score a text's last token, and find it by the padding in ``input_ids``. PEFT gives them
    embeddings, from which they take the last row: padding. Where they get ids (a prefix, LoRA), rows stay. A language
    model whose logits are the score takes the last row in any case.

    Args:
        always: Whether the head takes the last row of ids, too.
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
        return _with_rows(output, ft.take(hidden, ft.rolled(-behind, length)))


def _with_rows(output: Any, hidden: Tensor) -> Any:
    """Return the output of a backbone with other rows in it."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**{**output, "last_hidden_state": hidden})


def refuse_classifier(path: str, transformer: Any, virtual_tokens: str) -> None:
    """Raise UnsupportedModelError if the scores of a classifier with an adapter cannot be right."""
    if not cross.is_classifier(transformer):
        return
    backbone, reads = releases.backbone_of(transformer), cross.head_reads(transformer)
    where = f"the classifier {type(releases.plain_backbone(transformer)).__name__} at {path!r}"
    for name, config in releases.prompt_configs(transformer).items():
        method = releases.method_of(config)
        segments = "token_type_ids" in getattr(transformer.tokenizer, "model_input_names", ())
        if segments and not type(backbone).__name__.endswith("ForSequenceClassification"):
            raise UnsupportedModelError(
                f"{where}: {type(backbone).__name__} drops the segment ids (token_type_ids) that tell the two texts of "
                f'a pair apart: make the {method} adapter {name!r} with task_type="SEQ_CLS", or with '
                f"peft_hooks.add_prompt_adapter(model, config)"
            )
        if method in releases.PREFIX_METHODS:
            continue  # adds no rows to what the head reads
        if reads is None:
            raise UnsupportedModelError(
                f"{where}: which row its head reads is not known, and with the {method} adapter {name!r} that may be a "
                f"virtual token's or padding: use LORA, which adds no rows, or a backbone whose head is known: "
                f"{', '.join(sorted(cross.READ_FIRST | cross.READ_LAST))}"
            )
        if reads == "mean" and virtual_tokens in ("ignore", "strip"):
            raise UnsupportedModelError(
                f"{where}: its head takes the mean of all rows itself, where virtual_tokens={virtual_tokens!r} cannot "
                f'leave out those of the {method} adapter {name!r}: use "auto" or "pool", or classifier_pooling="cls"'
            )


def hooks_of_head(transformer: Any, virtual_tokens: str) -> Iterator[tuple[str, Hook, nn.Module]]:
    """Yield the hooks that make the head read the text, but ``NoteTextLength``: name, hook, module."""
    if cross.scores_by_logits(transformer):
        plain = releases.plain_backbone(transformer)
        yield "ends", PutTextLast(always=True), getattr(plain, plain.base_model_prefix)
    if not cross.is_classifier(transformer) or not hasattr(releases.backbone_of(transformer), "active_peft_config"):
        return
    plain, reads = releases.plain_backbone(transformer), cross.head_reads(transformer)
    if reads == "last":
        yield "ends", PutTextLast(), getattr(plain, plain.base_model_prefix)
    elif reads == "first" and virtual_tokens != "pool":
        yield "head", ReadText(), _before_pooling(getattr(plain, plain.base_model_prefix))


def _before_pooling(body: Any) -> nn.Module:
    """Return what gives rows to the head: the layers, where the backbone itself pools as BERT and ALBERT do."""
    layers: nn.Module = body.encoder if getattr(body, "pooler", None) is not None else body
    return layers
