"""Small forwards at attaching time that measure what a backbone does, so that nothing has to be assumed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import backbones
from ..compat import sentence_transformers as releases


def prefix_is_used(transformer: Any, adapter: str) -> str | None:
    """Return why the backbone does not use the prefix of ``adapter``, or None if it does.

    The backbone's signature tells of those that have no cache; of the others, a forward on three tokens with the
    prefix is compared with one without. Nothing can be measured on meta or fake tensors: then the signature decides.
    """
    peft_model: Any = releases.backbone_of(transformer)
    backbone = peft_model.get_base_model()
    if not _takes_cache(peft_model, backbone):
        return "has no cache (past_key_values) in its forward, where a prefix would go"
    if not can_measure(backbone):
        return None
    ids = torch.tensor([[1, 2, 3]], device=next(backbone.parameters()).device)
    mask = torch.ones_like(ids)
    with probing(peft_model, adapter):
        try:
            with_prefix = peft_model(input_ids=ids, attention_mask=mask)[0]
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"rejects a prefix ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        without = backbone(input_ids=ids, attention_mask=mask)[0]
    return "ignores the prefix: its output is the same without" if torch.equal(with_prefix, without) else None


def _takes_cache(peft_model: Any, backbone: Any) -> bool:
    """Tell whether keys and values get to layers that read them, by the signatures on their way."""
    if backbones.accepts(backbone, "past_key_values"):
        return True
    # Before a head are the layers: PEFT calls them itself for SEQ_CLS, a masked-language model hands them its kwargs.
    handed_on = type(peft_model).__name__.endswith("ForSequenceClassification") or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(backbone.forward).parameters.values()
    )
    layers = getattr(backbone, backbone.base_model_prefix, None)
    return handed_on and layers is not None and backbones.accepts(layers, "past_key_values")


def can_measure(module: nn.Module) -> bool:
    """Tell whether a forward of ``module`` gives values: not on the meta device, not on fake tensors."""
    parameter = next(module.parameters(), None)
    return parameter is not None and type(parameter.data) is Tensor and parameter.device.type != "meta"


@contextlib.contextmanager
def probing(peft_model: Any, adapter: str) -> Iterator[None]:
    """Run forwards of one adapter without gradients and dropout, and leave the model as it was."""
    former = peft_model.active_adapter
    peft_model.active_adapter = adapter
    try:
        with at_rest(peft_model):
            yield
    finally:
        peft_model.active_adapter = former


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Run a block without gradients and dropout, and leave the model as it was."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
