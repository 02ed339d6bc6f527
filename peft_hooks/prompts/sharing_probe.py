"""Check by small forwards whether ``SharePrompt`` is exact on a backbone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..hooks.call import Call
from . import probes
from .sharing import SharePrompt, attends_to_both_sides
from .text import NoteText, Text

# The shortest probe: virtual tokens, tokens of the text, and rows.
VIRTUAL, LENGTH, ROWS = 3, 4, 2


def why_not_shared(transformer: Any) -> str | None:
    """Return why a Transformer's virtual tokens cannot run once for all rows, or None if they can."""
    configs = releases.prompt_configs(transformer)
    methods = {releases.method_of(config) for config in configs.values()}
    if not methods or not hasattr(releases.backbone_of(transformer), "active_peft_config"):
        return "its adapter has no virtual tokens"
    if not methods.isdisjoint(releases.PREFIX_METHODS):
        return "a prefix is keys and values from the start: there are no virtual tokens to share"
    if cross.is_classifier(transformer):
        return "a classifier's head reads the last position, so that padding goes before the virtual tokens"
    backbone, kind = releases.plain_backbone(transformer), backbones.model_type(transformer)
    encoder = "encoder" in dict(backbone.named_children()) and not getattr(backbone.config, "is_decoder", False)
    if encoder or attends_to_both_sides(backbone.config):  # the probe would find this too, but is slow
        return f"{kind} attends to both sides, so that virtual tokens see the text"
    if not probes.can_measure(backbone):
        return probes.NO_VALUES
    sizes = dict.fromkeys([(VIRTUAL, LENGTH), _largest(transformer)])
    return next((reason for size in sizes if (reason := _measured(backbone, kind, *size)) is not None), None)


def longest_shared(transformer: Any) -> int | None:
    """Return up to how many positions sharing is proven, or None for all: no probe shows a window beyond its length."""
    window = backbones.window_of(releases.plain_backbone(transformer).config)
    return None if window is None or sum(_largest(transformer)) > window + 1 else window


def _largest(transformer: Any) -> tuple[int, int]:
    """Return the numbers of virtual tokens and of text tokens in the longest probe.

    If affordable, these are all virtual tokens, and a text of maximal length, or one that exceeds the window.
    """
    backbone, configs = releases.plain_backbone(transformer), releases.prompt_configs(transformer).values()
    virtual = max(config.num_virtual_tokens for config in configs)
    length, window = probes.longest_text(transformer, virtual), backbones.window_of(backbone.config)
    if window is not None:
        length = min(length, max(LENGTH, window + 2))
    fits = virtual + length <= probes.affordable(backbone, 4 * ROWS)
    return (virtual, length) if fits else (VIRTUAL, LENGTH)


class _Batch(NamedTuple):
    """Two texts after the same virtual tokens."""

    rows: Tensor
    mask: Tensor

    @classmethod
    def full(cls, backbone: Any, virtual: int, length: int) -> _Batch:
        """Make texts that differ in the last token. Newer releases use no mask for a batch without padding."""
        ids = _ids(backbone, virtual + length)
        ids[1, -1] = ids[0, 0]
        return cls(backbone.get_input_embeddings()(ids), torch.ones_like(ids))

    @classmethod
    def padded(cls, backbone: Any, virtual: int, length: int) -> _Batch:
        """Make a text, and the same text reversed with its second half replaced by padding."""
        ids = _ids(backbone, virtual + length)
        ids[1, virtual:] = ids[1, virtual:].flip(0)
        mask = torch.ones_like(ids)
        mask[1, virtual + (length + 1) // 2 :] = 0
        return cls(backbone.get_input_embeddings()(ids), mask)


def _ids(backbone: Any, length: int) -> Tensor:
    weight = backbone.get_input_embeddings().weight
    return torch.arange(length, device=weight.device).remainder(weight.size(0)).repeat(ROWS, 1)


def _measured(backbone: nn.Module, kind: str, virtual: int, length: int) -> str | None:
    """Compare plain forwards of two texts, with and without padding, with what ``SharePrompt`` returns for them."""
    try:
        with probes.at_rest(backbone):
            full, padded = _Batch.full(backbone, virtual, length), _Batch.padded(backbone, virtual, length)
            plain = _plain(backbone, full), _plain(backbone, padded)
            reason = _sees_ahead(backbone, kind, *plain, virtual)
            if reason is not None:
                return reason
            for batch, rows in zip((full, padded), plain, strict=True):
                shared = _shared(backbone, batch, length)
                if shared is None:
                    return (
                        f"{kind} has no cache of keys and values that a text could follow, or its config asks for "
                        f"more than hidden states (output_attentions, output_router_logits)"
                    )
                apart = probes.apart(shared, rows, batch.mask)
                if not apart <= probes.tolerance_of(rows.dtype):
                    return f"{kind} gives other hidden states after a cache, by {apart:.0e} of their length"
    except Exception as error:  # whatever a backbone raises for a cache that it does not expect
        return f"{kind} does not take the virtual tokens' keys and values ({probes.in_a_line(error)})"
    return None


def _plain(backbone: nn.Module, batch: _Batch) -> Tensor:
    # Not all hidden states: on the first request newer releases put hooks on the layers, and leave them there.
    output = backbone.forward(inputs_embeds=batch.rows, attention_mask=batch.mask, return_dict=True)
    rows: Tensor = output["last_hidden_state"]
    return rows


def _shared(backbone: nn.Module, batch: _Batch, length: int) -> Tensor | None:
    """Return the rows that ``SharePrompt`` returns, or None if it steps aside."""
    given = {"inputs_embeds": batch.rows, "attention_mask": batch.mask, "return_dict": True}
    call, hook = Call(backbone, "", (), given), SharePrompt()
    call._outer = Call(backbone, "", (), {})
    call._outer.notes[NoteText] = Text(backbone, len(batch.rows), length)
    hook.before(call)
    if call.kwargs is given:
        return None
    rows: Tensor = hook.after(call, backbone.forward(**call.kwargs))["last_hidden_state"]
    return rows


def _sees_ahead(backbone: nn.Module, kind: str, full: Tensor, padded: Tensor, virtual: int) -> str | None:
    """Return a reason if a token sees later tokens, or None. Told by plain forwards, without a cache."""
    of_text = probes.apart(full[1:, :-1], full[:1, :-1])
    of_prompt = probes.apart(padded[:, :virtual], full[:1, :virtual])
    if max(of_text, of_prompt) <= probes.tolerance_of(full.dtype):
        return None
    if any(getattr(module, "is_causal", None) is False for module in backbone.modules()):
        return f"a layer of {kind} attends to both sides (is_causal=False), so that virtual tokens see the text"
    return f"{kind} attends to both sides: a token's hidden state depends on those that come after it"
