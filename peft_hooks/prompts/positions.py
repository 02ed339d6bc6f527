"""``AlignPositions``: position ids that do not depend on padding."""

from __future__ import annotations

from ..compat.backbones import first_position
from ..errors import UnsupportedModelError
from ..hooks.call import Call, Hook
from .tensors import positions


class AlignPositions(Hook):
    """Number the tokens that count, whatever the padding. Goes on PEFT's ``base_model``, the backbone.

    On a left-padded batch PEFT puts virtual tokens before the padding, or a prefix before it in the cache, and the
    backbone counts positions from there: the text's positions, and so its embedding, depend on the batch (0.19 per
    component on a Qwen3 with last-token pooling and a perfectly right mask). Position ids counted over the extended
    attention mask make it independent. Position ids that the caller gives are left alone.
    The same of causal language models: https://github.com/huggingface/peft/issues/1093

    The hook reads ``attention_mask``, ``[batch, past + seq]`` of any dtype, and ``inputs_embeds`` or ``input_ids``,
    and adds ``position_ids``, ``int64[batch, seq]``. It reads no value on the host.

    Args:
        offset: The first position: ``padding_idx + 1`` in backbones of RoBERTa's kind, 0 in others. None: what the
            module that the hook is on has, found in its first forward.
        beyond: Whether padding after the text counts on, too, as a query expansion needs it. A pipeline that reads
            only what its mask counts does without, in a third of the time.

    Raises:
        TypeError: In the forward, by the backbone, if it takes no position ids (T5, DistilBERT).

    Example:
        >>> import torch
        >>> from peft_hooks import AlignPositions, Call
        >>> mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]])  # two virtual tokens, then padding on the left
        >>> call = Call(torch.nn.Identity(), "", (), {"inputs_embeds": torch.zeros(2, 5, 8), "attention_mask": mask})
        >>> AlignPositions().before(call)
        >>> call.kwargs["position_ids"]
        tensor([[0, 1, 1, 2, 3],
                [0, 1, 2, 3, 4]])
    """

    def __init__(self, offset: int | None = None, beyond: bool = True) -> None:
        self.offset = offset
        self.beyond = beyond

    def before(self, call: Call) -> None:
        kwargs = call.kwargs
        mask = kwargs.get("attention_mask")
        tokens = kwargs.get("inputs_embeds")
        tokens = kwargs.get("input_ids") if tokens is None else tokens
        if mask is None or tokens is None or mask.dim() != 2 or kwargs.get("position_ids") is not None:
            return
        offset = first_position(call.module) if self.offset is None else self.offset
        call.kwargs = {**kwargs, "position_ids": positions(mask, tokens.size(1), offset, self.beyond)}


class RefuseLeftPadding(Hook):
    """Refuse left padding where the backbone measures distances over it. Goes on the Transformer module.

    T5 and DeBERTa have no absolute positions to align, MPNet adds a bias by distance, ModernBERT and sliding windows
    cut by distance: with virtual tokens before the padding, the text is as far from them as the batch makes it.

    Args:
        reason: What the backbone does, for the message.

    Raises:
        UnsupportedModelError: In the forward, while the Transformer's tokenizer pads on the left.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def before(self, call: Call) -> None:
        if getattr(getattr(call.module, "tokenizer", None), "padding_side", "right") == "left":
            raise UnsupportedModelError(left_padding_message(call.where, self.reason))


def left_padding_message(where: str, reason: str) -> str:
    """Return the message for a tokenizer that pads on the left where that cannot be right."""
    return (
        f"{where}: the tokenizer pads on the left, and {reason}, so that an embedding "
        f'would depend on its batch: set `model.tokenizer.padding_side = "right"`'
    )
