"""``PutPaddingLast``: let every text begin at column 0 of what the backbone sees, so that padding moves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._public import public
from ..hooks.call import Call, Hook, of_class
from . import tensors as ft

_BY_TOKEN = ("start_logits", "end_logits")
"""Outputs with a single number per token, whose shape does not tell them from outputs per text."""


@public
class PutPaddingLast(Hook):
    """Roll each row of a batch so that its text comes first and its padding last. Goes where the text goes in.

    On a left-padded batch PEFT puts virtual tokens before the padding, or a prefix before it in the cache: positions,
    distances, attention windows and recurrent states of the text then depend on the batch (by 0.19 per component on a
    Qwen3 with last-token pooling and a perfectly correct mask). Padding behind the text affects none of them, so
    nothing needs to be known about the backbone. It is a roll, not a sort: whatever follows the text (a query
    expansion, which nothing attends to) keeps its place behind it.
    The same problem in causal language models: https://github.com/huggingface/peft/issues/1093

    On a Transformer module it takes the features, a dict with ``attention_mask``, ``[batch, seq]`` of any dtype, and
    ``input_ids``, ``int64[batch, seq]``, or ``inputs_embeds``, ``float[batch, seq, hidden]``. Everything with one entry
    per token is rolled with them (segment ids, positions of a query expansion), and the features stay rolled on the way
    out, so that ids, mask and token embeddings agree. The caller's dict stays unchanged.

    On any other model, a ``PeftModel`` or an ``AutoModel``, it takes these as arguments and rolls the outputs back:
    hidden states, per-token logits and attentions are where the caller put the tokens, behind the virtual tokens. A
    key-value cache is left out of the output, because its order differs from that of the caller's mask.

    No value is read on the host. Right-padded batches pass through the same operations and come out unchanged.

    Args:
        restore: Whether to roll back the outputs of a model that does not take a features dict.

    Raises:
        TypeError: In the forward, if ids and mask are passed by position to a module whose forward does not name them,
            or if only the logits of some columns are requested.

    Example:
        >>> import torch
        >>> from peft_hooks import Call, PutPaddingLast
        >>> features = {"input_ids": torch.tensor([[0, 0, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
        >>> call = Call(torch.nn.Identity(), "0", (features,), {})
        >>> PutPaddingLast().before(call)
        >>> call.first["input_ids"], call.first["attention_mask"]
        (tensor([[7, 8, 0, 0]]), tensor([[1, 1, 0, 0]]))
    """

    def __init__(self, restore: bool = True) -> None:
        self.restore = restore

    def before(self, call: Call) -> None:
        if isinstance(call.first, Mapping):
            features = _rolled(call.first)
            if features is not None:
                call.first = features[0]
            return
        arguments = by_name(call)
        rolled = _rolled(arguments)
        if rolled is None:
            return
        if self.restore:
            _refuse_cut_logits(call, arguments)
            call.notes[self] = rolled[1]
        call.args, call.kwargs = (), rolled[0]

    def after(self, call: Call, output: Any) -> Any:
        first = call.notes.get(self)
        if first is None:
            return None
        length = ft.input_length(call.kwargs)
        rows = _number_of_rows(output)
        if length is None or rows is None or rows < length:
            return None
        return _Back(first, length, rows).of(output)


def _rolled(features: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor] | None:
    """Return the features with every text first, and where each text began; None without a text and its mask."""
    mask, length = features.get("attention_mask"), ft.input_length(features)
    if not length or not isinstance(mask, Tensor) or mask.dim() != 2 or mask.size(1) != length:
        return None  # no text, a cache of an earlier text, or a mask for each pair of tokens
    first = ft.first_counted(mask)
    order = ft.rolled(first, mask.size(1))
    moved = {name: ft.take(value, order) for name, value in features.items() if _is_per_token(name, value, mask)}
    return {**features, **moved}, first


def _is_per_token(name: str, value: Any, mask: Tensor) -> bool:
    """Tell whether a feature has one entry per token; other float tensors may have that length by chance (images)."""
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[:2] != mask.shape:
        return False
    return value.dim() == 2 or not value.is_floating_point() or name == "inputs_embeds"


def by_name(call: Call) -> Mapping[str, Any]:
    """Return the arguments of a call by name."""
    if not call.args:
        return call.kwargs
    kind: Any = type(call.module)
    names = of_class(kind)
    if len(names) < len(call.args):
        raise TypeError(
            f"{call.where}: {len(call.args)} arguments are given by position, and its forward does not say what they "
            f"are: give them by name, model(input_ids=..., attention_mask=...)"
        )
    return {**dict(zip(names, call.args)), **call.kwargs}


def _refuse_cut_logits(call: Call, arguments: Mapping[str, Any]) -> None:
    """Refuse to compute only the logits of the last columns, which are padding once the texts come first."""
    name = next((name for name in ("logits_to_keep", "num_logits_to_keep") if name in arguments), None)
    keep = arguments[name] if name is not None else None
    if isinstance(keep, Tensor) or keep:
        raise TypeError(
            f"{call.where}: {name} is given, but it would keep other columns once every text comes first: leave it "
            f"out, and take the columns from the logits"
        )


def _number_of_rows(output: Any) -> int | None:
    """Return the number of rows of the first output that has one row per token."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    rows = next((value for value in values if isinstance(value, Tensor) and value.dim() >= 3), None)
    if rows is None and isinstance(output, Mapping):
        rows = output.get(_BY_TOKEN[0])
    return None if rows is None else rows.size(1)


class _Back:
    """Roll outputs back into the caller's order: they have ``rows`` rows, of which the last ``length`` are the text."""

    def __init__(self, first: Tensor, length: int, rows: int) -> None:
        self.rows = rows
        self.order = ft.rolled(length - first, length)

    def of(self, output: Any) -> Any:
        if isinstance(output, Mapping):
            fields = {name: self._value(name, value) for name, value in output.items()}
            return type(output)(**{name: value for name, value in fields.items() if value is not None})
        if isinstance(output, tuple):
            return tuple(self._value("", value) for value in output)
        return self._value("", output)

    def _value(self, name: str, value: Any) -> Any:
        """Return one output in the caller's order, or None for what cannot be rolled back: keys and values."""
        if isinstance(value, Tensor):
            return self._tensor(name, value)
        if isinstance(value, tuple) and all(isinstance(inner, Tensor) for inner in value):
            return tuple(self._tensor(name, inner) for inner in value)
        return value if isinstance(value, (int, float, str)) else None

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        if self._is_attention(name, tensor):
            if tensor.size(2) == self.rows:
                tensor = self._dimension(tensor.transpose(1, 2)).transpose(1, 2)
            return self._dimension(tensor.transpose(1, 3)).transpose(1, 3)
        by_token = tensor.dim() >= 3 or name in _BY_TOKEN  # other outputs of two dimensions are per text
        return self._dimension(tensor) if by_token and tensor.size(1) == self.rows else tensor

    def _is_attention(self, name: str, tensor: Tensor) -> bool:
        """Tell whether these are attention weights, which have no name in a tuple."""
        if tensor.dim() != 4 or name:
            return tensor.dim() == 4 and name.endswith("attentions")
        return tensor.size(2) == self.rows <= tensor.size(3)

    def _dimension(self, tensor: Tensor) -> Tensor:
        """Roll the text's part of dimension 1, which is behind the virtual tokens."""
        virtual = tensor.size(1) - self.order.size(1)
        if not virtual:
            return ft.take(tensor, self.order)
        return torch.cat([tensor[:, :virtual], ft.take(tensor[:, virtual:], self.order)], dim=1)
