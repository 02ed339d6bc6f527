"""What was changed on a base model after it was loaded: settings of its config, and its dtypes.

The base model's weights and config are not saved with an adapter, so a different model would come back without these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..errors import LoadError, UnsupportedModelError
from .folder import CONFIG, read_json

# What the installed release writes, what the weights themselves tell, and what could name code.
_NO_SETTINGS = ("transformers_version", "dtype", "torch_dtype", "auto_map", "quantization_config", "trust_remote_code")


def changed_settings(backbone: Any, base: str | None) -> dict[str, Any]:
    """Return the settings in which a backbone's config differs from its base model's; none if that is not here.

    Raises:
        UnsupportedModelError: If tokens were added: nothing saves their embeddings.
    """
    try:
        original = type(backbone.config).from_pretrained(base, local_files_only=True).to_dict()
    except Exception:  # gone, only in memory, of another class: each release has its own error
        return {}
    now = json.loads(json.dumps(backbone.config.to_dict(), default=str))
    original = json.loads(json.dumps(original, default=str))
    changed = {key: now[key] for key in now if now[key] != original.get(key) and _is_setting(key)}
    if "vocab_size" in changed:
        raise UnsupportedModelError(
            f"the backbone has {now['vocab_size']} tokens and its base model {base} has {original.get('vocab_size')}: "
            f"nothing saves the embeddings of the added ones: first save the model with them, without the adapter, and "
            f"train on that"
        )
    return {**changed, **_cut_lists(now, original)}


def _cut_lists(now: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """Return the lists with one entry per layer, without the entries of layers that were removed at the end.

    A config that is changed after loading keeps these entries, and then cannot be loaded from a file.
    """
    layers, former = now.get("num_hidden_layers"), original.get("num_hidden_layers")
    if not isinstance(layers, int) or not isinstance(former, int) or layers >= former:
        return {}
    lists = {key: value for key, value in now.items() if isinstance(value, list) and len(value) == former}
    return {key: value[:layers] for key, value in lists.items() if _is_setting(key)}


def _is_setting(key: str) -> bool:
    return not key.startswith("_") and not key.endswith("_implementation") and key not in _NO_SETTINGS


def change_settings(folder: Path, settings: dict[str, Any], named_by: Path) -> None:
    """Write settings to the config in a temporary folder, where it may be a link to the base model's.

    Raises:
        LoadError: If one could make a release run code.
    """
    refused = next((key for key in settings if not _is_setting(key)), None)
    if refused is not None:
        raise LoadError(f"{named_by}: its settings have {refused}, which could name code: a model's code is never run")
    if settings:
        config = {**read_json(folder / CONFIG), **settings}
        (folder / CONFIG).unlink()
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def types_of(model: nn.Module) -> dict[str, str]:
    """Return the dtypes of a model, apart from its adapters.

    One for the parameters of each module of the pipeline, unless they are mixed, and one for each buffer: rotary
    frequencies stay float32 when a model is loaded in another dtype.
    """
    found = {}
    for name, part in _parts(model).items():
        kinds = {parameter.dtype for _, parameter in state.base_parameters(part) if parameter.is_floating_point()}
        if len(kinds) == 1:
            found[name] = _name_of(kinds.pop())
        for key, buffer in part.named_buffers():
            if buffer.is_floating_point():
                found[f"{name}:{key}"] = _name_of(buffer.dtype)
    return found


def put_types(model: nn.Module, types: dict[str, str]) -> None:
    """Cast the modules of a pipeline that has no adapters yet."""
    for name, part in _parts(model).items():
        for parameter in part.parameters():
            parameter.data = _cast(parameter.data, types.get(name))
        for key, buffer in list(part.named_buffers()):
            at, _, last = key.rpartition(".")
            setattr(part.get_submodule(at), last, _cast(buffer, types.get(f"{name}:{key}")))


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """Return each module of the pipeline by its path, with the backbone in place of a Transformer."""
    inner = dict(releases.transformers_of(model))
    parts = {path: releases.plain_backbone(transformer) for path, transformer in inner.items()}
    for name, child in model.named_children():
        if not any(path == name or path.startswith(f"{name}.") for path in parts):
            parts[name] = child
    return parts


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cast(tensor: Tensor, kind: str | None) -> Tensor:
    dtype = getattr(torch, kind or "", None)
    wanted = isinstance(dtype, torch.dtype) and dtype.is_floating_point and tensor.is_floating_point()
    return tensor.to(dtype) if wanted else tensor
