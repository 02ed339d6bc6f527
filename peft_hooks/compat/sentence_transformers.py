"""The only file that knows how the supported releases of Sentence Transformers and PEFT differ.

What a forward can measure (``ExtendPromptMask``) is not looked up here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from .st_modules import outermost
from .torch_internals import child_of

PREFIX_METHODS = ("PREFIX_TUNING", "CARTRIDGE")
"""Methods that put keys and values before the text and return no rows of their own."""

# Pooling's modes: one `pooling_mode` since 5.4, a flag for each before.
MODE_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def pooling_modes(pooling: nn.Module) -> frozenset[str]:
    """Return what a Pooling module computes: ``"cls"``, ``"max"``, ``"mean"``, ``"weightedmean"``, ``"lasttoken"``."""
    mode = getattr(pooling, "pooling_mode", None)
    if mode is None:
        return frozenset(mode for mode, flag in MODE_FLAGS.items() if getattr(pooling, flag, False))
    return frozenset((mode,) if isinstance(mode, str) else mode)


def count_of_modes(pooling: nn.Module) -> int:
    """Return how many parts a Pooling module's embedding has; since 5.4 a mode may occur twice."""
    mode = getattr(pooling, "pooling_mode", None)
    return len(pooling_modes(pooling)) if mode is None or isinstance(mode, str) else len(mode)


def _class(module_name: str, name: str) -> type | None:
    """Return a class if its module is loaded: if it was never imported, the model cannot contain an instance."""
    return getattr(sys.modules.get(module_name), name, None)


def transformer_class() -> type[nn.Module] | None:
    """Return the class of Sentence Transformers' Transformer module, which moved in 5.4."""
    moved = _class("sentence_transformers.base.modules.transformer", "Transformer")
    return moved or _class("sentence_transformers.models.Transformer", "Transformer")


def pooling_class() -> type[nn.Module] | None:
    """Return the class of Sentence Transformers' Pooling module, which moved in 5.4."""
    moved = _class("sentence_transformers.sentence_transformer.modules.pooling", "Pooling")
    return moved or _class("sentence_transformers.models.Pooling", "Pooling")


def is_cross_encoder(model: Any) -> bool:
    """Tell whether ``model`` is a CrossEncoder: a plain object before 4.0, then a module, and since 5.4 a pipeline."""
    kind = _class("sentence_transformers", "CrossEncoder")
    return kind is not None and isinstance(model, kind)


def peft_class() -> type[nn.Module] | None:
    """Return ``peft.PeftModel``, if PEFT is loaded."""
    return _class("peft", "PeftModel")


def backbone_of(transformer: Any) -> Any:
    """Return what the Transformer's forward runs: its attribute ``model`` since 5.4, ``auto_model`` before."""
    if isinstance(transformer, nn.Module):  # runs in every forward, and attribute access would take ten times as long
        for name in ("model", "auto_model"):
            backbone = child_of(transformer, name)
            if backbone is not None:
                return backbone
    return transformer.model if hasattr(transformer, "model") else transformer.auto_model


def put_backbone(transformer: Any, backbone: nn.Module) -> None:
    """Put ``backbone`` where the Transformer's forward finds it.

    Since 5.4 ``auto_model`` is a property without a setter: assigning to it registers a submodule that nothing calls.
    """
    setattr(transformer, "model" if "model" in dict(transformer.named_children()) else "auto_model", backbone)


def stray_backbone(transformer: Any) -> nn.Module | None:
    """Return a module that was assigned to ``auto_model`` on a release that never calls it (5.4 and later), or None."""
    children = dict(transformer.named_children())
    return children.get("auto_model") if "model" in children else None


def active_config(transformer: Any) -> Any:
    """Return the config of the active PEFT adapter, or None. Runs in every forward: no imports, no ``isinstance``."""
    try:
        return getattr(backbone_of(transformer), "active_peft_config", None)
    except AttributeError:
        return None  # not a Transformer of Sentence Transformers, but a stand-in in a user's test


def active_virtual_tokens(transformer: Any) -> int:
    """Return how many rows the active adapter adds in front of the text; 0 for LoRA and prefix methods."""
    config = active_config(transformer)
    if config is None or not config.is_prompt_learning or config.peft_type in PREFIX_METHODS:
        return 0
    return int(config.num_virtual_tokens)


def method_of(config: Any) -> str:
    """Return the name of a PEFT config's method: ``"PROMPT_TUNING"``."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def adapter_summary(transformer: Any) -> str:
    """Return the active adapter as text: ``the active PROMPT_TUNING adapter 'default'``."""
    config = active_config(transformer)
    if config is None:
        return "no PEFT adapter (the Transformer has none)"
    return f"the active {method_of(config)} adapter {backbone_of(transformer).active_adapter!r}"


def _transformer_classes() -> list[type[nn.Module]]:
    # Before 5.4 a SparseEncoder's Transformer has its own class, with the same attributes.
    masked = _class("sentence_transformers.sparse_encoder.models.MLMTransformer", "MLMTransformer")
    return [kind for kind in (transformer_class(), masked) if kind is not None]


def transformers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the Transformer modules of a Sentence Transformers model with their paths; a Router has several."""
    return list(outermost(model, *_transformer_classes()))


def poolings_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the Pooling modules of a Sentence Transformers model with their paths."""
    kind = pooling_class()
    if kind is None:
        return []
    return [found for found in outermost(model, kind, *_transformer_classes()) if isinstance(found[1], kind)]


def find_roles(model: nn.Module) -> Mapping[str, list[str]]:
    """Return the paths of the roles ``"transformer"``, ``"backbone"`` and ``"pooling"``; empty for any other model.

    With an adapter, the backbone is PEFT's ``base_model``: hooks on the ``PeftModel`` never fire since 5.4.
    """
    transformers = transformers_of(model)
    if not transformers:
        return {}
    path_of = {module: path for path, module in model.named_modules()}
    backbones = [backbone_of(transformer) for _, transformer in transformers]
    inner = [module.base_model if hasattr(module, "active_peft_config") else module for module in backbones]
    return {
        "transformer": [path for path, _ in transformers],
        "backbone": [path_of[module] for module in inner],
        "pooling": [path for path, _ in poolings_of(model)],
    }


def prompt_encoders(transformer: Any, method: str) -> Iterator[nn.Module]:
    """Yield the prompt encoders of the Transformer's adapters of one method, such as ``"MULTITASK_PROMPT_TUNING"``."""
    backbone = backbone_of(transformer)
    for name, config in getattr(backbone, "peft_config", {}).items():
        if method_of(config) == method:
            yield backbone.prompt_encoder[name]


def why_never_called(model: nn.Module, path: str) -> str | None:
    """Return why a hook at ``path`` cannot fire, if Sentence Transformers is the reason, or None."""
    for at, transformer in transformers_of(model):
        prefix = f"{at}." if at else ""
        if path == f"{prefix}model" and backbone_of(transformer) is model.get_submodule(path):
            return (
                f"since 5.4 Sentence Transformers calls {path!r}.forward() directly, which skips hooks: attach to "
                f"{at!r} or {path + '.base_model'!r}"
            )
        if path == f"{prefix}auto_model":
            return f"since 5.4 Sentence Transformers never calls {path!r}: put the adapter on {prefix + 'model'!r}"
    if path == "" and transformers_of(model):
        return "encode() of this release calls model.forward() directly, which skips hooks: attach to 'transformer'"
    return None


def has_adapter(transformer: Any) -> bool:
    """Tell whether the Transformer has an adapter: a ``PeftModel``, or LoRA layers put in with ``add_adapter``."""
    backbone = backbone_of(transformer)
    return hasattr(backbone, "peft_config") or bool(getattr(backbone, "_hf_peft_config_loaded", False))


def prompt_configs(transformer: Any) -> dict[str, Any]:
    """Return the configs of the Transformer's prompt-learning adapters by name."""
    configs: Mapping[str, Any] = getattr(backbone_of(transformer), "peft_config", None) or {}
    return {name: config for name, config in configs.items() if getattr(config, "is_prompt_learning", False)}


def forward_skips_prompts(backbone: Any) -> bool:
    """Tell whether this is a ``PeftModel`` without a task, whose forward is the base model's and adds no prompt."""
    kind = peft_class()
    return kind is not None and isinstance(backbone, kind) and type(backbone).forward is kind.forward


def plain_backbone(transformer: Any) -> Any:
    """Return the transformers model, without PEFT around it."""
    backbone = backbone_of(transformer)
    return backbone.get_base_model() if hasattr(backbone, "active_peft_config") else backbone


def missing_in_prompt_length(model: nn.Module) -> int:
    """Return how many tokens of a prompt ``prompt_length`` does not count.

    Before 5.0 it is one less than the prompt's tokens, to allow for a closing special token, even with tokenizers that
    add none (GPT-2, Llama, Mistral): https://github.com/huggingface/sentence-transformers/commit/5d7bb02e
    """
    if int(_release().split(".")[0]) >= 5:
        return 0
    tokenizers = [getattr(transformer, "tokenizer", None) for _, transformer in transformers_of(model)]
    closed = [tokenizer("a")["input_ids"][-1] in tokenizer.all_special_ids for tokenizer in filter(None, tokenizers)]
    return int(not all(closed))


def reads_pickles_alone() -> bool:
    """Tell whether Dense and other modules with weights are only saved and loaded as pickles, as in 2.7."""
    return int(_release().split(".")[0]) < 3


def _release() -> str:
    return str(getattr(sys.modules.get("sentence_transformers"), "__version__", "0"))


def cls_part(pooling: Any, width: int) -> slice | None:
    """Return which components of the embedding are ``cls``, for tokens of this width, or None if none are.

    Before 5.4 ``cls`` is always the first of several modes; since then the modes are in the user's order.
    """
    mode = getattr(pooling, "pooling_mode", "cls")
    order = (mode,) if isinstance(mode, str) else tuple(mode)
    if "cls" not in pooling_modes(pooling):
        return None
    return slice(order.index("cls") * width, (order.index("cls") + 1) * width)


def routes_of(model: nn.Module) -> list[str]:
    """Return the routes of a model's Router, for ``encode(task=...)`` (since 5.0)."""
    routers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Router"]
    return list(dict.fromkeys(route for router in routers for route in router.sub_modules))
