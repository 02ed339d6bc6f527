"""What the hooks need to know of a backbone's architecture: its positions, its cache, its sizes."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

from torch import nn

from . import sentence_transformers as releases


def model_type(transformer: Any) -> str:
    """Return the backbone's architecture by its config name: ``"bert"``."""
    backbone = releases.plain_backbone(transformer)
    return str(getattr(backbone.config, "model_type", type(backbone).__name__))


def accepts(backbone: nn.Module, argument: str) -> bool:
    """Tell whether the backbone's forward names ``argument``; one that is only swallowed by ``**kwargs`` is ignored."""
    return argument in inspect.signature(backbone.forward).parameters


def position_offset(transformer: Any) -> int:
    """Return the first position id of a Transformer's backbone."""
    return first_position(releases.plain_backbone(transformer))


def first_position(backbone: nn.Module) -> int:
    """Return a backbone's first position id: ``padding_idx + 1`` in those of RoBERTa's kind, 0 in others."""
    found = _first_positions.get(backbone)
    if found is None:
        found = _first_positions[backbone] = _find_first_position(backbone)
    return found


# Looking for it is a walk through all modules, and it is asked for whenever hooks are attached.
_first_positions: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def _find_first_position(backbone: nn.Module) -> int:
    for module in backbone.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0


def position_count(transformer: Any) -> int | None:
    """Return how many tokens the backbone has positions for, or None if there is no limit (T5)."""
    count = getattr(releases.plain_backbone(transformer).config, "max_position_embeddings", None)
    if not isinstance(count, int) or count <= 0:
        return None
    return count - position_offset(transformer)


def window_of(config: Any) -> int | None:
    """Return how many positions a layer of the backbone attends over at most, or None if all see all before them."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    found = [getattr(config, name, None) for name in names if getattr(config, f"use_{name}", True)]
    return min((window for window in found if isinstance(window, int) and window > 0), default=None)


def backbone_sizes(transformer: Any, method: str) -> dict[str, int]:
    """Return what a prompt-learning config needs to know of the backbone, where PEFT looks in the wrong place.

    PEFT reads ``hidden_size``, ``n_embd`` or ``d_model`` of the config: DistilBERT has ``dim``, and word embeddings of
    ALBERT and small ELECTRAs are narrower than ``hidden_size``. A prefix has the shape of the key-value heads, which
    PEFT before 0.18 computes without ``head_dim`` (Qwen3, Gemma): https://github.com/huggingface/peft/pull/2883
    """
    backbone: Any = releases.plain_backbone(transformer)
    heads = _first_of(backbone.config, "num_attention_heads", "n_heads", "n_head", "num_heads")
    layers = _first_of(backbone.config, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    width = int(backbone.get_input_embeddings().weight.shape[1])
    if method in releases.PREFIX_METHODS:
        hidden = _first_of(backbone.config, "hidden_size", "dim", "n_embd", "d_model")
        head_size = getattr(backbone.config, "head_dim", None) or hidden // heads
        heads = getattr(backbone.config, "num_key_value_heads", None) or heads
        width = heads * head_size
    return {"token_dim": width, "num_attention_heads": heads, "num_layers": layers}


def _first_of(config: Any, *names: str) -> int:
    return next(int(getattr(config, name)) for name in names if getattr(config, name, None) is not None)
