"""Put a prefix into the attention of encoders without a key-value cache, in rows in front of the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._format import shape_of
from .._public import public
from ..compat.kv_cache import pairs_of
from ..errors import HookError
from ..hooks.call import Call, Hook
from .padding import by_name
from .prefix_record import Piece, Places


class _Prefix:
    """A prefix on its way through a backbone.

    Attributes:
        pairs: Keys and values of each layer, ``[batch, heads, virtual, head size]``.
        virtual: How many rows the prefix takes in front of the text.
        rows: How many rows there are in total, or None until those in front are added.
        calls: How often each projection was called, by its path.
        put: How many times keys, values or both were put in.
    """

    __slots__ = ("calls", "pairs", "put", "rows", "virtual")

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs
        self.virtual = pairs[0][0].size(2)
        self.rows: int | None = None
        self.calls: dict[str, int] = {}
        self.put = 0


def _prefix_around(call: Call) -> _Prefix | None:
    """Return the prefix of the backbone that this call is inside of, or is."""
    for one in (call, *call.enclosing()):
        prefix: _Prefix | None = one.notes.get(PutPrefixInAttention)
        if prefix is not None:
            return prefix
    return None


@public
class PutPrefixInAttention(Hook):
    """Let an encoder without a key-value cache attend to a prefix. Goes on PEFT's ``base_model``, the backbone.

    Prefix tuning and cartridges are keys and values in front of the text's own in every layer. PEFT passes them as a
    cache, ``past_key_values``, which MPNet, DistilBERT, ALBERT, DeBERTa, ModernBERT and T5's encoder reject or ignore.
    This hook takes the cache out of the call. Other hooks, which ``register_prompt_mask_hooks`` attaches with it, put
    as many rows in front of the text as the prefix has, overwrite these rows with its keys and values where a layer
    projects them, and cut them off the output. The text sees nothing else of them: its rows are those of ``seq``
    queries and ``virtual + seq`` keys, as on a backbone with a cache, and so are the gradients. It costs as much as
    ``virtual`` more tokens.

    The text's positions follow those of the prefix, as on a backbone with a cache. Where positions enter the attention
    itself (relative distances, rotation), the prefix has positions from 0 on; where a layer attends within a window
    (ModernBERT), it sees as much of the prefix as the window covers.

    When the hooks are attached, small forwards find out which modules project keys and values, and check that the rows
    of a text are correct. Prefix tuning: https://arxiv.org/abs/2101.00190

    Args:
        places: Where the backbone's attention takes keys and values.

    Raises:
        HookError: In the forward, if part of the prefix was not put in: the backbone has changed, or runs texts without
            padding as one (flash attention of ModernBERT).

    Example:
        >>> from peft import PrefixTuningConfig
        >>> from peft_hooks import add_prompt_adapter, check_padding_invariance
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> model = tiny_model("mpnet")
        >>> handle = add_prompt_adapter(model, PrefixTuningConfig(num_virtual_tokens=4))
        >>> print(handle.describe().remarks[0])
        prefix of Transformer '0': put into the attention of 2 layers, in rows in front of the text
        >>> check_padding_invariance(model, TEXTS).ok
        True
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self._expected = sum(layer is not None for one in places.projections for layer in one.layers)

    def before(self, call: Call) -> None:
        cache = call.kwargs.get("past_key_values")
        if cache is None:
            return
        call.kwargs = {key: value for key, value in call.kwargs.items() if key != "past_key_values"}
        call.notes[PutPrefixInAttention] = _Prefix(pairs_of(cache))

    def after(self, call: Call, output: Any) -> Any:
        prefix: _Prefix | None = call.notes.get(PutPrefixInAttention)
        if prefix is None:
            return None
        if prefix.put != self._expected:
            raise HookError(
                f"{call.where}: {prefix.put} of {self._expected} keys and values of the prefix reached its attention, "
                f"because the backbone has changed since the hooks were attached: call `handle.refresh()`"
            )
        return cut(output, prefix.rows, prefix.virtual)

    def __repr__(self) -> str:
        return f"PutPrefixInAttention({self.places.layers} layers)"


class PutRowsInFront(Hook):
    """Put as many rows in front of the text as the prefix has, and cut them off. Goes on what embeds the text.

    Their contents do not matter, since their keys and values are overwritten. They are copies of the text's first row,
    ``float[batch, virtual, hidden]``, which is extreme for no layer.

    Args:
        scale: Factor for these rows: a probe changes it to check that they do not matter.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def before(self, call: Call) -> None:
        prefix = _prefix_around(call)
        if prefix is None:
            return
        given = by_name(call)
        words = given.get("inputs_embeds")
        if words is None:
            words = call.module.get_input_embeddings()(given["input_ids"])  # type: ignore[operator]
        front = words[:, :1].detach() * self.scale if words.size(1) else words.new_zeros(len(words), 1, words.size(2))
        rows = torch.cat([front.expand(-1, prefix.virtual, -1), words], dim=1)
        prefix.rows = rows.size(1)
        call.notes[self] = prefix.rows, prefix.virtual
        rest = {key: value for key, value in given.items() if key not in ("input_ids", "inputs_embeds")}
        call.args, call.kwargs = (), {**_longer(call, rest, words, prefix.virtual), "inputs_embeds": rows}

    def after(self, call: Call, output: Any) -> Any:
        return cut(output, *call.notes[self]) if self in call.notes else None


def _longer(call: Call, given: dict[str, Any], words: Tensor, virtual: int) -> dict[str, Any]:
    """Extend arguments that have one entry per token to one per row; PEFT's mask already has them."""
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.shape[:2] != words.shape[:2]:
            continue
        if name not in ("attention_mask", "token_type_ids"):
            raise HookError(
                f"{call.where}: {name} is given for each token of the text, but its values for the prefix are not "
                f"known: leave it out"
            )
        given[name] = torch.constant_pad_nd(value, (virtual, 0), int(name == "attention_mask"))
    return given


class CutRowsInFront(Hook):
    """Cut off the rows in front of the text. Goes on the layers, before a pooler that reads the first row."""

    def after(self, call: Call, output: Any) -> Any:
        prefix = _prefix_around(call)
        return None if prefix is None else cut(output, prefix.rows, prefix.virtual)


def cut(output: Any, rows: int | None, virtual: int) -> Any:
    """Cut the first ``virtual`` rows off every tensor that has ``rows`` rows; the columns of attentions stay."""
    if isinstance(output, Tensor):
        if output.dim() == 4 and output.shape[2:] == (rows, rows):
            return output[:, :, virtual:]
        return output[:, virtual:] if output.dim() >= 3 and output.size(1) == rows else output
    if isinstance(output, Mapping):
        return type(output)(**{name: cut(value, rows, virtual) for name, value in output.items()})
    if isinstance(output, (tuple, list)):
        return type(output)(cut(value, rows, virtual) for value in output)
    return output


class OverwriteRows(Hook):
    """Overwrite the rows in front with the prefix's keys and values. Goes on a module that projects keys or values.

    Args:
        layers: The layer that each call of the module in a forward belongs to, or None if a call does not return rows
            of the text: ALBERT calls one module for all layers, DeBERTa calls some a second time, for positions.
        pieces: What its columns are.
    """

    def __init__(self, layers: tuple[int | None, ...], pieces: tuple[Piece, ...]) -> None:
        self.layers = layers
        self.pieces = pieces

    def after(self, call: Call, output: Any) -> Any:
        prefix = _prefix_around(call)
        if prefix is None or prefix.rows is None:
            return None
        number = prefix.calls.get(call.path, 0)
        prefix.calls[call.path] = number + 1
        layer = self.layers[number] if number < len(self.layers) else None
        if layer is None:
            return None
        if output.dim() != 3 or output.size(1) != prefix.rows:
            raise HookError(
                f"{call.where} returns {shape_of(output)} where {prefix.rows} rows of each text are expected, "
                f"{prefix.virtual} of them in front: attention that runs without padding has no room for a prefix. Set "
                f'attn_implementation to "sdpa" or "eager"'
            )
        prefix.put += 1
        return torch.cat([self._front(prefix, layer, output), output[:, prefix.virtual :]], dim=1)

    def _front(self, prefix: _Prefix, layer: int, output: Tensor) -> Tensor:
        """Return the contents of the rows in front, ``[batch, virtual, width]``."""
        parts = []
        for source, start, stop in self.pieces:
            if source == "own":
                parts.append(output[:, : prefix.virtual, start:stop])
                continue
            heads = prefix.pairs[layer][source == "values"]
            flat = heads.transpose(1, 2).flatten(2)
            parts.append(flat[:, :, start:stop].to(output.device, output.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
