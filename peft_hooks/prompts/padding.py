"""``PutPaddingLast``: every text begins at column 0 before the backbone sees it, so that padding moves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._public import public
from ..hooks.call import Call, Hook, of_class
from . import tensors as ft

_BY_TOKEN = ("start_logits", "end_logits")
"""Scores of tokens of which each is a number: by their shape they might be of texts."""


@public
class PutPaddingLast(Hook):
    """Roll every row of a batch so that its text comes first and its padding last. Goes where the text goes in.

    On a left-padded batch PEFT puts virtual tokens before the padding, or a prefix before it in the cache: positions,
    distances, attention windows and recurrent states of the text then depend on the batch (0.19 per component on a
    Qwen3 with last-token pooling and a perfectly right mask). Behind the text, padding is out of the way of all of
    them, so nothing needs to be known of the backbone. It is a roll, not a sort: what follows the text (a query
    expansion, which nothing attends to) keeps its place behind it.
    The same of causal language models: https://github.com/huggingface/peft/issues/1093

    On a Transformer module it takes the features, a dict with ``attention_mask``, ``[batch, seq]`` of any dtype, and
    ``input_ids``, ``int64[batch, seq]``, or ``inputs_embeds``, ``float[batch, seq, hidden]``. Whatever has one entry
    for each token is rolled with them (segment ids, positions of a query expansion), and the features leave rolled, so
    that ids, mask and token embeddings agree. The caller's dict stays as it was.

    On any other model, a ``PeftModel`` or an ``AutoModel``, it takes these as arguments and rolls what comes out back:
    hidden states, per-token logits and attentions are where the caller put the tokens, behind the virtual tokens. A
    cache of keys and values is left out of the output, as it is in another order than the caller's mask.

    No value is read on the host. Right-padded batches pass through the same operations and come out as they were.

    Args:
        restore: Whether to roll back what comes out of a model that is not given features.

    Raises:
        TypeError: In the forward, if ids and mask are given by position to a module that does not say what they are,
            or if only the logits of some columns are wanted.

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
    """Return the features with every text first, and where each text began; None if there is no text and mask."""
    mask, length = features.get("attention_mask"), ft.input_length(features)
    if not length or not isinstance(mask, Tensor) or mask.dim() != 2 or mask.size(1) != length:
        return None  # no text, keys and values of a text before it, or a mask of each pair of tokens
    first = ft.first_counted(mask)
    order = ft.rolled(first, mask.size(1))
    moved = {name: ft.take(value, order) for name, value in features.items() if _goes_by_token(name, value, mask)}
    return {**features, **moved}, first


def _goes_by_token(name: str, value: Any, mask: Tensor) -> bool:
    """Tell whether a feature has an entry for each token; other tensors of floats may be as long by chance (images)."""
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
    """Refuse to compute the logits of the last columns alone: they are padding once the texts come first."""
    name = next((name for name in ("logits_to_keep", "num_logits_to_keep") if name in arguments), None)
    keep = arguments[name] if name is not None else None
    if isinstance(keep, Tensor) or keep:
        raise TypeError(
            f"{call.where}: {name} is given, and the columns that it keeps are others once every text comes first: "
            f"leave it out, and take them from the logits"
        )


def _number_of_rows(output: Any) -> int | None:
    """Return how many rows the first output has that has one for each token."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    rows = next((value for value in values if isinstance(value, Tensor) and value.dim() >= 3), None)
    if rows is None and isinstance(output, Mapping):
        rows = output.get(_BY_TOKEN[0])
    return None if rows is None else rows.size(1)


class _Back:
    """Rolls what a model gives back: ``rows`` rows, of which the last ``length`` are the text's."""

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
        """Return one output in the caller's order; None for what cannot be: keys and values."""
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
        by_token = tensor.dim() >= 3 or name in _BY_TOKEN  # other rows of two are by text
        return self._dimension(tensor) if by_token and tensor.size(1) == self.rows else tensor

    def _is_attention(self, name: str, tensor: Tensor) -> bool:
        """Tell whether these are weights of pairs of tokens, which in a tuple have no name."""
        if tensor.dim() != 4 or name:
            return tensor.dim() == 4 and name.endswith("attentions")
        return tensor.size(2) == self.rows <= tensor.size(3)

    def _dimension(self, tensor: Tensor) -> Tensor:
        """Roll the text's part of dimension 1, which stands behind the virtual tokens."""
        virtual = tensor.size(1) - self.order.size(1)
        if not virtual:
            return ft.take(tensor, self.order)
        return torch.cat([tensor[:, :virtual], ft.take(tensor[:, virtual:], self.order)], dim=1)
