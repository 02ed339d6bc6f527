"""List a Transformer's adapters, delete them, switch them off: what PEFT does not offer in every release."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from . import sentence_transformers as releases


def adapter_names(transformer: Any) -> list[str]:
    """Return the names of the Transformer's adapters."""
    return list(getattr(releases.backbone_of(transformer), "peft_config", None) or ())


def active_adapter(transformer: Any) -> str:
    """Return the active adapter's name; ``active_adapters`` is a list on a PeftModel, and a method on a backbone."""
    backbone = releases.backbone_of(transformer)
    if is_peft_model(backbone):
        return str(backbone.active_adapter)
    return str(next(iter(backbone.active_adapters()), ""))


def is_peft_model(backbone: Any) -> bool:
    """Tell whether this is a ``PeftModel``, even one with no adapter left, on which other checks would raise."""
    kind = releases.peft_class()
    return kind is not None and isinstance(backbone, kind)


def names_in(peft_model: Any) -> list[str]:
    """Return the names of the adapters of a ``PeftModel``, including one that is only partly added or deleted."""
    return list(dict.fromkeys([*peft_model.peft_config, *(name for held in _prompts(peft_model) for name in held)]))


def forget_adapter(peft_model: Any, name: str) -> None:
    """Delete an adapter that is not active, or whatever is left of it.

    ``PeftModel.delete_adapter`` came with PEFT 0.17, and did not handle prompt learning at first.
    """
    if not peft_model.active_peft_config.is_prompt_learning:
        if name in peft_model.peft_config:
            peft_model.base_model.delete_adapter(name)
        return
    for held in (*_prompts(peft_model), peft_model.peft_config):
        if name in held:
            del held[name]


def _prompts(peft_model: Any) -> list[Any]:
    """Return the containers that hold something for each prompt, by the adapter's name."""
    found = (getattr(peft_model, name, None) for name in ("prompt_encoder", "prompt_tokens"))
    return [held for held in found if held is not None]


def tuner_layers(module: nn.Module) -> list[Any]:
    """Return the layers of LoRA, or of another method that changes the backbone, and modules trained alongside.

    All have ``disable_adapters`` and ``enable_adapters(bool)``; the class of the modules was renamed in PEFT 0.15.
    """
    homes = (sys.modules.get("peft.tuners.tuners_utils"), sys.modules.get("peft.utils.other"))
    names = ("BaseTunerLayer", "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper")
    kinds = tuple(getattr(home, name) for home in homes for name in names if hasattr(home, name))
    return [part for part in module.modules() if isinstance(part, kinds)]


def wrapped_heads(module: nn.Module) -> list[Any]:
    """Return the modules that are trained and saved with an adapter: the head of a classifier, with ``SEQ_CLS``."""
    return [layer for layer in tuner_layers(module) if hasattr(layer, "original_module")]


def active_head(wrapper: Any) -> nn.Module:
    """Return the module that actually runs where a wrapper holds one that is trained with an adapter."""
    active, trained = wrapper.active_adapter, getattr(wrapper, "modules_to_save", {})
    names = [active] if isinstance(active, str) else active  # a list since PEFT 0.15
    module: nn.Module = next((trained[name] for name in names if name in trained), wrapper.original_module)
    return module


def unwrap_heads(backbone: nn.Module) -> None:
    """Restore the heads that the adapters wrapped, which PEFT cannot do for prompt learning."""
    heads = set(wrapped_heads(backbone))
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if child in heads:
                setattr(parent, name, child.original_module)


def base_parameters(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the backbone's own parameters with their names, with or without LoRA's layers in it."""
    added = {
        parameter
        for layer in tuner_layers(backbone)
        for name in (*getattr(layer, "adapter_layer_names", ()), "modules_to_save")
        for parameter in getattr(getattr(layer, name, None), "parameters", tuple)()
    }
    for name, parameter in backbone.named_parameters():
        if parameter not in added:
            yield name, parameter


def fingerprint(backbone: nn.Module) -> float | None:
    """Return a number that identifies a base model's weights, with or without LoRA's layers in it.

    It is computed from some components of each parameter, so a change to a few may be missed. Half precision changes it
    by less than one in a thousand. A pooler is left out: a checkpoint may lack it, and then it is random.
    """
    found = [
        parameter.detach().flatten()[:4096].double().abs().mean().cpu()
        for name, parameter in base_parameters(backbone)
        if parameter.is_floating_point() and "pooler" not in name
    ]
    return float(torch.stack(found).mean()) if found else None


class BareBackbone(nn.Module):
    """Stand in for a ``PeftModel``, and call the backbone so that the hooks on it run.

    Since 5.4 Sentence Transformers calls the ``forward`` of this module directly, which skips the module's own hooks.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.training = backbone.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.backbone(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("backbone"), name)


class AdapterSwitch:
    """Run a Transformer without its adapters between ``off`` and ``on``, which are safe to repeat if interrupted.

    ``PeftModel.disable_adapter()`` replaces a prompt's ``forward`` and leaves it replaced, and raises
    ``UnboundLocalError`` on encoders since transformers 4.50.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._outer = releases.backbone_of(transformer)
        self._backbone = releases.plain_backbone(transformer)
        self._layers = [layer for layer in tuner_layers(self._backbone) if not layer.disable_adapters]
        parameters = self._backbone.parameters() if self._layers else ()
        self._frozen = {parameter: parameter.requires_grad for parameter in parameters}

    def off(self) -> None:
        """Switch the adapters off."""
        for layer in self._layers:
            layer.enable_adapters(False)
        # A prompt adapter; LoRA's layers are already off.
        if is_peft_model(self._outer) and self._outer.base_model is self._backbone:
            releases.put_backbone(self._transformer, BareBackbone(self._backbone))

    def on(self) -> None:
        """Switch the adapters on again, and restore everything."""
        releases.put_backbone(self._transformer, self._outer)
        for layer in self._layers:
            layer.enable_adapters(True)
        for parameter, trainable in self._frozen.items():  # enabling also makes frozen adapters trainable
            parameter.requires_grad = trainable


def prompt_of(entry: Any) -> tuple[str, nn.Module, list[str]]:
    """Return the active adapter's name and prompt encoder, and the names of all adapters."""
    peft_model = entry if hasattr(entry, "active_peft_config") else releases.backbone_of(entry)
    name = peft_model.active_adapter
    return name, peft_model.prompt_encoder[name], list(peft_model.peft_config)
