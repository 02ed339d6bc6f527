"""Whether ``SharePrompt`` is exact on a backbone: what its class and config tell, and then a small forward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..hooks.call import Call
from .probes import at_rest, can_measure
from .sharing import SharePrompt, attends_to_both_sides, noted

# How far a row of a hidden state may be from the plain one, as a part of its length. What is wrong is off by tenths.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

VIRTUAL, LENGTH = 3, 4


def why_not_shared(transformer: Any) -> str | None:
    """Return why the virtual tokens of a Transformer's adapter are not run once for all rows, or None if they are."""
    configs = releases.prompt_configs(transformer)
    methods = {releases.method_of(config) for config in configs.values()}
    if not methods or not hasattr(releases.backbone_of(transformer), "active_peft_config"):
        return "its adapter has no virtual tokens"
    if not methods.isdisjoint(releases.PREFIX_METHODS):
        return "a prefix is keys and values from the start: the backbone runs no virtual tokens"
    if cross.is_classifier(transformer):
        return "a classifier's head reads the last position, so that padding goes before the virtual tokens"
    backbone = releases.plain_backbone(transformer)
    return _by_its_class(backbone, backbones.model_type(transformer)) or _measured(transformer, backbone)


def longest_shared(transformer: Any) -> int | None:
    """Return up to how many positions sharing is proven: a window that is longer than the probe is not seen by it."""
    return backbones.window_of(releases.plain_backbone(transformer).config)


def _by_its_class(backbone: Any, kind: str) -> str | None:
    """Return what is known without a forward, which takes longer than everything else that attaching does."""
    config = backbone.config
    if not backbones.accepts(backbone, "past_key_values"):
        return f"{kind} has no cache (past_key_values) in its forward"
    encoder = "encoder" in dict(backbone.named_children()) and not getattr(config, "is_decoder", False)
    if encoder or attends_to_both_sides(config):
        return f"{kind} attends to both sides, so that virtual tokens see the text"
    # Newer releases give a batch without padding no mask, and go by this.
    if any(getattr(module, "is_causal", None) is False for module in backbone.modules()):
        return f"a layer of {kind} attends to both sides (is_causal=False), so that virtual tokens see the text"
    window = backbones.window_of(config)
    if window is not None and window < VIRTUAL + LENGTH:
        return f"{kind} attends within a window of {window}"
    if not can_measure(backbone):
        return "nothing can be measured on a backbone whose weights have no values (meta device, fake tensors)"
    return None


class _Batch(NamedTuple):
    """Four texts after the same virtual tokens: two that differ in the last token, one padded on each side."""

    rows: Tensor
    mask: Tensor

    @classmethod
    def for_backbone(cls, backbone: Any) -> _Batch:
        embeddings = backbone.get_input_embeddings()
        first = torch.arange(VIRTUAL + LENGTH).remainder(embeddings.weight.size(0))
        ids, mask = first.repeat(4, 1), torch.ones(4, VIRTUAL + LENGTH, dtype=torch.int64)
        ids[1, -1], ids[2:, VIRTUAL:] = 0, ids[2:, VIRTUAL:].flip(1)
        mask[2, -2:], mask[3, VIRTUAL:-2] = 0, 0
        device = embeddings.weight.device
        return cls(embeddings(ids.to(device)), mask.to(device))


def _measured(transformer: Any, backbone: nn.Module) -> str | None:
    """Compare a forward of four texts with what ``SharePrompt`` makes of it."""
    kind = backbones.model_type(transformer)
    try:
        with at_rest(backbone):
            batch = _Batch.for_backbone(backbone)
            given: dict[str, Any] = {"inputs_embeds": batch.rows, "attention_mask": batch.mask}
            # Not all hidden states: newer releases put hooks on the layers when they are first asked for, for good.
            plain = backbone.forward(**given, return_dict=True)["last_hidden_state"]
            call = Call(backbone, "", (), given)
            hook = SharePrompt()
            with noted(len(batch.rows), LENGTH):
                hook.before(call)
            if call.kwargs is given:
                return (
                    f"the config of {kind} asks for more than hidden states (output_attentions, output_router_logits)"
                )
            shared = hook.after(call, backbone.forward(**call.kwargs))["last_hidden_state"]
            return _difference(plain, shared, batch.mask, kind)
    except Exception as error:  # whatever a backbone raises of a cache that it does not expect
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{kind} does not take the virtual tokens' keys and values ({type(error).__name__}: {first})"


def _difference(plain: Tensor, shared: Tensor, mask: Tensor, kind: str) -> str | None:
    """Return what is not as it has to be, or None. Plain rows alone tell whether a token sees those after it."""
    tolerance = _TOLERANCES.get(plain.dtype, 0.0)
    ahead = _apart(plain[:2, :-1], plain[:1, :-1]), _apart(plain[:, :VIRTUAL], plain[:1, :VIRTUAL])
    if not max(ahead) <= tolerance:
        return f"{kind} attends to both sides: a token's hidden state depends on those that come after it"
    apart = _apart(shared, plain, mask)
    return (
        None
        if apart <= tolerance
        else f"{kind} gives other hidden states after a cache, by {apart:.0e} of their length"
    )


def _apart(one: Tensor, other: Tensor, mask: Tensor | None = None) -> float:
    """Return how far rows are apart as a part of their length, at most over all that count; NaN if one is."""
    far = (one.double() - other.double()).norm(dim=-1) / other.double().norm(dim=-1).clamp(min=1e-30)
    return float((far if mask is None else far[mask.bool()]).max())
