"""What the hooks need to know about a backbone's architecture: its positions, its windows, its sizes."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from . import sentence_transformers as releases


def model_type(transformer: Any) -> str:
    """Return the backbone's architecture under its name in the config: ``"bert"``."""
    backbone = releases.plain_backbone(transformer)
    return str(getattr(backbone.config, "model_type", type(backbone).__name__))


def accepts(backbone: nn.Module, argument: str) -> bool:
    """Tell whether the backbone's forward names ``argument``; being swallowed by ``**kwargs`` does not count."""
    return argument in inspect.signature(backbone.forward).parameters


def is_of_transformers(hook: Any) -> bool:
    """Tell whether a hook belongs to transformers itself, which collects hidden states by hooks (since 5.0)."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "transformers"


def position_offset(transformer: Any) -> int:
    """Return the first position id of a Transformer's backbone."""
    return first_position(releases.plain_backbone(transformer))


def first_position(backbone: nn.Module) -> int:
    """Return a backbone's first position id: ``padding_idx + 1`` in RoBERTa and similar architectures, otherwise 0."""
    found = _first_positions.get(backbone)
    if found is None:
        found = _first_positions[backbone] = _find_first_position(backbone)
    return found


# Finding it takes a walk through all modules, and it is needed whenever hooks are attached.
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
    """Return the smallest window that a layer of the backbone attends within, or None if the config has none.

    What a number means is guessed from its name. It only decides how long a probe has to be, or up to which length the
    result of one is valid.
    """
    values = vars(config).items()  # attribute access raises if a number differs by layer
    found = [value for name, value in values if _is_window(name, value) and vars(config).get(f"use_{name}", True)]
    return min(found, default=None)


# Parts of names of numbers that look like window lengths, but are not.
_NO_LENGTH = ("layer", "pattern", "stride", "expert", "num_", "mamba", "audio", "speech", "vision")


def _is_window(name: str, value: Any) -> bool:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return False
    named = any(word in name for word in ("window", "chunk", "local_attention"))
    return named and not any(part in name for part in _NO_LENGTH)


def backbone_sizes(transformer: Any, method: str) -> dict[str, int]:
    """Return the sizes that a prompt-learning config needs, where PEFT would look in the wrong place.

    PEFT reads ``hidden_size``, ``n_embd`` or ``d_model`` from the config: DistilBERT has ``dim``, and the word
    embeddings of ALBERT and small ELECTRAs are narrower than ``hidden_size``. A prefix has the shape of the key-value
    heads, which PEFT before 0.18 computes without ``head_dim`` (Qwen3, Gemma):
    https://github.com/huggingface/peft/pull/2883

    Raises:
        UnsupportedModelError: If the method is a prefix, and the config has no attention heads (FNet, Mamba, RWKV).
    """
    backbone: Any = releases.plain_backbone(transformer)
    config = backbone.config
    heads = _first_of(config, "num_attention_heads", "n_heads", "n_head", "num_heads")
    layers = _first_of(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    if method not in releases.PREFIX_METHODS:
        width = int(backbone.get_input_embeddings().weight.shape[1])
        # PEFT requires heads and layers for every method; virtual tokens among the word embeddings have neither.
        return {"token_dim": width, "num_attention_heads": heads or 1, "num_layers": layers or 1}
    hidden = _first_of(config, "hidden_size", "dim", "n_embd", "d_model")
    try:
        head_size = getattr(config, "head_dim", None) or (hidden or 0) // (heads or 1)
        heads = heads and (getattr(config, "num_key_value_heads", None) or heads)
    except Exception:  # transformers raises its own error for what differs by layer (Gemma 4)
        heads = None
    if not (heads and layers and hidden and isinstance(heads, int)):
        raise UnsupportedModelError(
            f"{method} puts keys and values of one shape before those of each layer, but the config of the backbone "
            f"{model_type(transformer)!r} names no attention heads that all layers have: use PROMPT_TUNING or "
            f"P_TUNING (virtual tokens among the inputs), or LORA"
        )
    return {"token_dim": heads * head_size, "num_attention_heads": heads, "num_layers": layers}


def _first_of(config: Any, *names: str) -> int | None:
    found = (_number(config, name) for name in names)
    return next((value for value in found if value is not None), None)


def _number(config: Any, name: str) -> int | None:
    try:
        value = getattr(config, name, None)
    except Exception:  # as above
        return None
    return value if isinstance(value, int) else None
