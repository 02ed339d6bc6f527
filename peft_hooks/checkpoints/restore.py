"""Puts saved adapters on a backbone, trainable or not, and checks that they are what was saved.

PEFT refuses to load any prompt-learning adapter for training. If its saved form has all the weights, it can be trained
anyway; P-tuning, and prefix tuning with a projection, are saved as the computed rows without the network that computes
them, which ``save`` writes next to it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat import sentence_transformers as releases
from ..compat.backbones import backbone_sizes as sizes
from ..errors import LoadError
from .checked import check_adapter, check_network
from .folder import ADAPTER, WEIGHTS, check_values, check_weights, read_json

ENCODER = "prompt_encoder.safetensors"
"""The weights of a prompt encoder of which PEFT saves only the output."""


def put_adapters(
    transformer: Any, folders: Mapping[str, Path], active: str, *, trainable: bool, base_model: str
) -> None:
    """Put the adapters in ``folders`` on the Transformer, and make ``active`` the active one.

    Raises:
        LoadError: If one is damaged or does not fit the backbone, or if ``trainable`` is set and one cannot be trained.
    """
    former = peft_model = releases.backbone_of(transformer)
    for name, folder in folders.items():
        config = read_config(folder, trainable)
        config.base_model_name_or_path = base_model
        try:
            _compare_sizes(config, sizes(transformer, releases.method_of(config)))
            peft_model = _add(peft_model, name, config, first=peft_model is former)
            _fill(peft_model, name, folder)
        except LoadError:
            raise
        except Exception as error:  # whatever a release raises for a config or weights that do not fit
            raise LoadError(
                f"{folder / WEIGHTS}: the adapter {name!r} does not fit the base model {base_model}: "
                f"{type(error).__name__}: {error}"
            ) from error
    peft_model.set_adapter(active)
    if not trainable:
        peft_model.requires_grad_(False)
    releases.put_backbone(transformer, peft_model)


def _compare_sizes(config: Any, expected: Mapping[str, int]) -> None:
    """Raise ValueError if a prompt does not have the backbone's sizes; PEFT would notice only in the first forward."""
    keys = ("token_dim", "num_layers") if releases.method_of(config) in releases.PREFIX_METHODS else ("token_dim",)
    for key in keys if config.is_prompt_learning else ():
        if getattr(config, key) != expected[key]:
            raise ValueError(f"its {key} is {getattr(config, key)}, but the backbone's is {expected[key]}")


def read_config(folder: Path, trainable: bool) -> Any:
    """Return the PEFT config in a folder.

    Raises:
        LoadError: If it is damaged, its method runs code or reads other models, or it cannot be trained.
    """
    found = read_json(folder / ADAPTER)
    if "peft_type" not in found:
        raise LoadError(f"{folder / ADAPTER}: it has no peft_type, so it is not a PEFT adapter")
    if found["peft_type"] == "XLORA" or found.get("megatron_config"):
        raise LoadError(f"{folder / ADAPTER}: it names other adapters or code to import, which are not loaded")
    check_weights(folder / WEIGHTS)
    check_adapter(folder)
    if trainable and (folder / ENCODER).is_file():
        check_weights(folder / ENCODER)
        check_network(folder, folder / ENCODER)
    from peft import PeftConfig
    from peft import __version__ as peft_version

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # an unknown method, or an option of a later release
        raise LoadError(
            f"{folder / ADAPTER}: could not be loaded: {type(error).__name__}: {error}: "
            f"it may need a later PEFT than the installed {peft_version}"
        ) from error
    if trainable and computed(config) and not (folder / ENCODER).is_file():
        raise LoadError(
            f"{folder / WEIGHTS}: PEFT saves {releases.method_of(config)} as the rows that its network computes, "
            f"without the network, so it cannot be trained further: load it with is_trainable=False, or save the model "
            f"that was trained with peft_hooks.save(model, path), which writes {ENCODER} as well"
        )
    config.inference_mode = not trainable
    return config


def computed(config: Any) -> bool:
    """Tell whether PEFT saves the output of the prompt's network instead of its weights."""
    method = releases.method_of(config)
    return method == "P_TUNING" or (method == "PREFIX_TUNING" and bool(config.prefix_projection))


def _add(model: Any, name: str, config: Any, first: bool) -> Any:
    """Add an adapter with arbitrary weights, without reading the tokenizer or file that its config starts from."""
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel

    plain, start = config, getattr(config, "prompt_tuning_init", None)
    if start is not None:
        plain = copy.copy(config)
        plain.prompt_tuning_init = type(start)("RANDOM")
    if first:
        model = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, plain, name)
    else:
        model.add_adapter(name, plain)
    if start is not None:
        plain.prompt_tuning_init = start
    return model


def _fill(peft_model: Any, name: str, folder: Path) -> None:
    """Load the weights of an existing adapter, and compare what PEFT would save of it with what was saved."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    config = peft_model.peft_config[name]
    check_values(folder / WEIGHTS)
    network = {}
    if computed(config) and not config.inference_mode:
        check_weights(folder / ENCODER)
        check_values(folder / ENCODER)
        network = load_file(folder / ENCODER)
        peft_model.prompt_encoder[name].load_state_dict(network, strict=True)
    else:
        peft_model.load_adapter(str(folder), name, is_trainable=not config.inference_mode)
    peft_model.eval()
    saved = load_file(folder / WEIGHTS)
    with torch.no_grad():
        now = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    missing = sorted(set(now) - set(saved))
    if missing:
        raise LoadError(f"{folder / WEIGHTS}: incomplete: {len(missing)} weights are missing, the first {missing[0]}")
    for key in now if config.is_prompt_learning else ():
        if not _equal_but_for_rounding(now[key].cpu(), saved[key], network.values()):
            origin = ENCODER if network else "the model"
            raise LoadError(
                f"{folder / WEIGHTS}: its {key} does not belong to {origin}: they come from different saves"
            )


def _equal_but_for_rounding(now: Tensor, saved: Tensor, computed_from: Iterable[Tensor]) -> bool:
    """Tell whether rows are those that were saved, up to the rounding of the coarsest dtype that they went through.

    Measured with P-tuning, its LSTM and prefix tuning up to a width of 1024: float16 and bfloat16 move a row by 0.7
    times their precision, relative to the largest component; the rows of another network are off by about 1.
    """
    types = [tensor.dtype for tensor in (now, saved, *computed_from) if tensor.is_floating_point()]
    precision = max([torch.finfo(kind).eps for kind in types], default=0.0)
    limit = max(1e-3, 4 * precision) * float(saved.float().abs().max())
    return bool((now.float() - saved.float()).abs().max() <= limit)
