"""Which adapters a Transformer has, and switching them off: what PEFT has no way for that every release knows."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from . import _releases as releases


def adapter_names(transformer: Any) -> list[str]:
    """Return the names of the Transformer's adapters."""
    return list(getattr(releases.backbone_of(transformer), "peft_config", None) or ())


def active_adapter(transformer: Any) -> str:
    """Return the name of the active adapter; ``active_adapters`` is a list of a PeftModel, a method of a backbone."""
    backbone = releases.backbone_of(transformer)
    if is_peft_model(backbone):
        return str(backbone.active_adapter)
    return str(next(iter(backbone.active_adapters()), ""))


def is_peft_model(backbone: Any) -> bool:
    """Tell whether this is a ``PeftModel``, also one without any adapter left, of which nothing else can be asked."""
    kind = releases.peft_class()
    return kind is not None and isinstance(backbone, kind)


def tuner_layers(module: nn.Module) -> list[Any]:
    """Return the layers of LoRA, or another method that changes the backbone, and modules trained beside it.

    All have ``disable_adapters`` and ``enable_adapters(bool)``; the class of the latter was renamed in PEFT 0.15.
    """
    homes = (sys.modules.get("peft.tuners.tuners_utils"), sys.modules.get("peft.utils.other"))
    names = ("BaseTunerLayer", "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper")
    kinds = tuple(getattr(home, name) for home in homes for name in names if hasattr(home, name))
    return [part for part in module.modules() if isinstance(part, kinds)]


@contextlib.contextmanager
def bare(transformer: Any) -> Iterator[None]:
    """Run the Transformer without its adapters for the length of a block.

    The backbone stands in the place of the ``PeftModel``: ``PeftModel.disable_adapter()`` replaces its ``forward`` and
    leaves it replaced, and raises ``UnboundLocalError`` on encoders since transformers 4.50.
    """
    outer = releases.backbone_of(transformer)
    backbone = releases.plain_backbone(transformer)
    layers = [layer for layer in tuner_layers(backbone) if not layer.disable_adapters]
    frozen = {parameter: parameter.requires_grad for parameter in (backbone.parameters() if layers else ())}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        releases.put_backbone(transformer, backbone)
        yield
    finally:
        releases.put_backbone(transformer, outer)
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, trainable in frozen.items():  # enabling makes an adapter trainable that was not
            parameter.requires_grad = trainable
