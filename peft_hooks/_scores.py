"""The hooks that make a sequence classifier's head read the text: ``NoteTextLength``, ``ReadText``, ``PadOnLeft``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from . import _features as ft
from ._hook import Call, Hook

# Not on a hook: one hook runs in many threads, and travels with a copied or pickled model. Not a ContextVar, at which
# torch.compile breaks its graph.
_running = threading.local()


class NoteTextLength(Hook):
    """Note how long the text is while the classifier runs. Goes where the text goes in: the Transformer, a PeftModel.

    Inside of PEFT nothing tells any more which positions are virtual tokens and which the text's.
    """

    def before(self, call: Call) -> None:
        features = call.args[0] if call.args and isinstance(call.args[0], Mapping) else call.kwargs
        _running.length = ft.input_length(features)

    def after(self, call: Call, output: Any) -> None:
        _running.length = None

    def failed(self, call: Call, error: BaseException) -> None:
        _running.length = None


class ReadText(Hook):
    """Cut virtual tokens off what a classifier's head reads. Goes on the backbone, or on the layers before its pooler.

    BERT's pooler and the heads of its kin read position 0: with prompt tuning a virtual token, not the text's [CLS]
    that they were trained on. How many rows are virtual is measured: those that are more than ``NoteTextLength`` noted.
    """

    def after(self, call: Call, output: Any) -> Any:
        length: int | None = getattr(_running, "length", None)
        hidden = output[0]
        if length is None or hidden.size(1) <= length:
            return None
        text = hidden[:, hidden.size(1) - length :]
        if isinstance(output, tuple):
            return (text, *output[1:])
        return type(output)(**{**output, "last_hidden_state": text})


class PadOnLeft(Hook):
    """Move padding before the virtual tokens, so that a text ends at the last position. Goes on PEFT's ``base_model``.

    Classifiers on decoders score a text's last token, and find it by the padding in ``input_ids``. PEFT gives them
    embeddings, from which they take the last position: in a right-padded batch, padding. On a left-padded batch the
    padding stands between the virtual tokens and the text, where it moves positions and distances.
    """

    def before(self, call: Call) -> None:
        kwargs = call.kwargs
        rows, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        if rows is None or mask is None or mask.shape != rows.shape[:2]:
            return
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        moved = {
            "inputs_embeds": rows.gather(1, order.unsqueeze(-1).expand_as(rows)),
            "attention_mask": mask.gather(1, order),
        }
        for name in ("position_ids", "token_type_ids"):
            if kwargs.get(name) is not None:
                moved[name] = kwargs[name].gather(1, order)
        call.kwargs = {**kwargs, **moved}
