"""``NoteText``: note the size of the text that a Transformer runs on, for the hooks inside it.

Inside PEFT nothing says any more which positions are virtual tokens and which are text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from ..compat.sentence_transformers import active_virtual_tokens
from ..hooks.call import Call, Hook


class Text:
    """The size of the text that a Transformer runs on.

    Attributes:
        entry: The module that the text goes into: the Transformer, or a PeftModel.
        batch: The number of rows.
        length: The number of positions of the text alone, including padding.
        virtual: In ``torch.compile``, where it is not measured: the number of virtual tokens in the active adapter's
            config, a constant for which the graph is valid. Otherwise 0.
        uneven: Whether the prompt's rows may differ, because a network with dropout made each, or by their tasks.
    """

    __slots__ = ("batch", "entry", "length", "uneven", "virtual")

    def __init__(self, entry: nn.Module, batch: int, length: int, virtual: int = 0) -> None:
        self.entry = entry
        self.batch = batch
        self.length = length
        self.virtual = virtual
        self.uneven = False


class NoteText(Hook):
    """Note the size of the text on the call. Goes where the text goes in: on the Transformer, or a PeftModel."""

    def before(self, call: Call) -> None:
        features = call.args[0] if call.args and isinstance(call.args[0], Mapping) else call.kwargs
        text = _text_in(features)
        if text is not None:
            virtual = active_virtual_tokens(call.module) if is_compiling() else 0
            call.notes[NoteText] = Text(call.module, text.size(0), text.size(1), virtual)


def _text_in(features: Mapping[str, Any]) -> Tensor | None:
    for name in ("input_ids", "inputs_embeds"):
        text = features.get(name)
        if isinstance(text, Tensor) and text.dim() >= 2:
            return text
    return None


def text_around(call: Call) -> Text | None:
    """Return the size of the text of the Transformer around this call, if ``NoteText`` is on it."""
    for outer in call.enclosing():
        text: Text | None = outer.notes.get(NoteText)
        if text is not None:
            return text
    return None
