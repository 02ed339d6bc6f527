"""Checks that a model just saved comes back the same: it is loaded again, and the embeddings of both are compared.

Only adapters are saved; the base model comes from where it was loaded. Whatever was changed on it in memory is lost: a
trained weight, an epsilon, a replaced module. Only loading it again reveals all of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..compat.quiet import quiet
from ..errors import SaveError
from ..prompts import probes
from ..prompts.attach import prompt_mask_hooks
from ..prompts.plan import Options
from .base_model import ReadOptions
from .embeddings import apart, dtype_of, embeddings_of, random_as_before
from .loading import read_model
from .manifest import Saved
from .sample import TOLERANCE, TOLERANCES

_LARGEST = 4 << 30
"""Bytes of weights up to which a model is loaded again: for a while there are two copies."""

_SHOWN = 3


def refuse_another(model: Any, folder: Path, saved: Saved) -> None:
    """Raise SaveError if the model saved in ``folder`` comes back as a different one.

    Does nothing if that cannot be told: the base model is not here, or is too large to have twice.
    """
    split = any(hasattr(part, "hf_device_map") for part in model.modules())
    if not saved.embeddings or _bytes_of(model) > _LARGEST or split:
        return
    try:
        with quiet(), random_as_before():
            loaded = read_model(str(folder), ReadOptions(device="cpu")).model
            with prompt_mask_hooks(loaded, **(saved.options or asdict(Options()))):
                again = embeddings_of(loaded, saved.embeddings["texts"])
    except Exception:  # `load` will say why
        return
    far = apart(again.get("numbers"), saved.embeddings["numbers"])
    dtype, differs = dtype_of(model), None
    if far > probes.tolerance_of(dtype) / 10:
        differs = _what_differs(model, loaded)
    # Other devices and attention kernels round differently: if both are close, something else must differ by name.
    if differs is None and far > TOLERANCES.get(dtype, TOLERANCE):
        differs = "its weights are all the same, so something else was changed"
    if differs is not None:
        raise SaveError(
            f"a different model would be loaded again, with embeddings {far:.0e} of their length apart: {differs}. "
            f"Only the adapter is saved, not its base model: {_way_out(model, saved)}"
        )


def _bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _what_differs(model: nn.Module, loaded: nn.Module) -> str | None:
    """Return, as text, the weights or settings of modules that differ between the two; None if there are none."""
    weights = [name for name in _weights_apart(model, loaded) if "pooler" not in name]  # may be random in both
    if weights:
        more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
        return f"the base model's files have other values for {', '.join(weights[:_SHOWN])}{more}"
    theirs = dict(loaded.named_modules())
    for name, module in model.named_modules():
        other = theirs.get(name)
        if other is not None and type(other) is type(module) and other.extra_repr() != module.extra_repr():
            return f"{name} is {_own_line(module)}, and would be {_own_line(other)}"
    return None


def _own_line(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


def _weights_apart(model: nn.Module, loaded: nn.Module) -> Iterator[str]:
    theirs = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        other = theirs.get(name)
        if other is None or not torch.equal(tensor.detach().cpu(), other.detach().cpu()):
            yield name


def _way_out(model: Any, saved: Saved) -> str:
    transformers = releases.transformers_of(model)
    for path, transformer in transformers:
        if releases.prompt_configs(transformer) and state.is_peft_model(releases.backbone_of(transformer)):
            name = "model" if "model" in dict(transformer.named_children()) else "auto_model"
            where = f"model.get_submodule({path!r}).{name}" if len(transformers) > 1 else f"model[0].{name}"
            return (
                f"save the base model first, `base = {where}.get_base_model()`, `base.save_pretrained(folder)`, "
                f"`base.name_or_path = folder`, and then this model again"
            )
    return "save the model without its adapter first, then put the adapter on the model loaded from there"
