"""The hooks that make a sequence classifier's head read the text: ``NoteTextLength``, ``ReadText``, ``PadOnLeft``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from ..compat.torch_internals import calls_of
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

    def failed(self, call: Call, error: BaseException) -> None:
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
