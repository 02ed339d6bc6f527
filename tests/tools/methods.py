"""PEFT methods for the tiny models: configs that fit the backbone, and parameters that clearly matter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

VIRTUAL_TOKENS = 4


class Unavailable(Exception):
    """The installed releases do not support this method on this backbone; the message says why."""


def backbone_of(model: Any) -> Any:
    """Return what the first module's forward calls: `model` since Sentence Transformers 5.4, `auto_model` before."""
    return getattr(model[0], _attribute(model))


def put_backbone(model: Any, backbone: Any) -> None:
    """Set what the first module's forward calls."""
    setattr(model[0], _attribute(model), backbone)


def _attribute(model: Any) -> str:
    return "model" if "model" in model[0]._modules else "auto_model"


def embedding_width(backbone: Any) -> int:
    """Return the width of a word embedding, which differs from `hidden_size` on ALBERT and small ELECTRAs."""
    return int(backbone.get_input_embeddings().weight.shape[1])


def key_value_shape(config: Any) -> tuple[int, int]:
    """Return the number of key-value heads and the head size, which PEFT before 0.18 gets wrong on Qwen3 and Gemma."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return int(kv_heads), int(size)


def _prompt(name: str, model: Any, kw: dict[str, Any], **defaults: Any) -> Any:
    """Build the config of a method that puts rows in front of the word embeddings."""
    backbone = backbone_of(model)
    width = embedding_width(backbone)
    return _config(
        name,
        token_dim=width,
        num_layers=int(backbone.config.num_hidden_layers),
        num_attention_heads=int(backbone.config.num_attention_heads),
        **{"num_virtual_tokens": VIRTUAL_TOKENS, **defaults, **kw},
    )


def _cache(name: str, model: Any, kw: dict[str, Any], **defaults: Any) -> Any:
    """Build the config of a method that puts keys and values in front of each layer's own.

    `token_dim` counts the key-value heads only. PEFT's own correction for grouped queries leaves this value unchanged,
    and releases without that correction need it.
    """
    config = backbone_of(model).config
    kv_heads, size = key_value_shape(config)
    return _config(
        name,
        token_dim=kv_heads * size,
        num_layers=int(config.num_hidden_layers),
        num_attention_heads=kv_heads,
        **{"num_virtual_tokens": VIRTUAL_TOKENS, **defaults, **kw},
    )


def _config(name: str, **arguments: Any) -> Any:
    import peft

    cls = getattr(peft, name, None)
    if cls is None:
        raise Unavailable(f"peft {peft.__version__} has no {name}")
    return cls(task_type="FEATURE_EXTRACTION", **arguments)


def prompt_tuning(model: Any, **kw: Any) -> Any:
    """Rows of an embedding, in front of the text's."""
    return _prompt("PromptTuningConfig", model, kw)


def p_tuning(model: Any, **kw: Any) -> Any:
    """Rows of an embedding, through an MLP."""
    return _prompt("PromptEncoderConfig", model, kw, encoder_hidden_size=24)


def p_tuning_lstm(model: Any, **kw: Any) -> Any:
    """Rows of an embedding, through a bidirectional LSTM of two layers and an MLP."""
    return p_tuning(model, encoder_reparameterization_type="LSTM", encoder_num_layers=2, **kw)


def multitask_prompt_tuning(model: Any, **kw: Any) -> Any:
    """Rows of an embedding, times a low-rank matrix per task."""
    return _prompt("MultitaskPromptTuningConfig", model, kw, num_tasks=3, num_ranks=2)


def prefix_tuning(model: Any, **kw: Any) -> Any:
    """Keys and values of each layer."""
    return _cache("PrefixTuningConfig", model, kw)


def prefix_tuning_projection(model: Any, **kw: Any) -> Any:
    """Keys and values of each layer, made by an MLP from rows of an embedding."""
    return prefix_tuning(model, prefix_projection=True, encoder_hidden_size=24, **kw)


def cartridge(model: Any, **kw: Any) -> Any:
    """Keys and values of each layer, the first of them frozen."""
    return _cache("CartridgeConfig", model, kw, num_frozen_tokens=1)


# The attention's input projections and one more layer, so that weights of both orientations matter.
_TARGETS = {
    "albert": ["query", "value", "ffn"],
    "deberta-v2": ["query_proj", "value_proj", "dense"],
    "distilbert": ["q_lin", "v_lin", "lin1"],
    "gpt2": ["c_attn", "c_fc"],
    "modernbert": ["Wqkv", "Wi"],
    "mpnet": ["q", "v", "dense"],
    "opt": ["q_proj", "v_proj", "fc1"],
    "phi3": ["qkv_proj", "down_proj"],
    "t5": ["q", "v", "wo"],
}
_ENCODER_TARGETS = ["query", "value", "dense"]
_DECODER_TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(model: Any, **kw: Any) -> Any:
    """Low-rank changes to some of the backbone's linear layers."""
    config = backbone_of(model).config
    names = {name.rpartition(".")[2] for name, _ in backbone_of(model).named_modules()}
    usual = _DECODER_TARGETS if "q_proj" in names else _ENCODER_TARGETS
    targets = _TARGETS.get(config.model_type, usual)
    defaults = {"r": 3, "lora_alpha": 12, "target_modules": targets, "fan_in_fan_out": config.model_type == "gpt2"}
    return _config("LoraConfig", **{**defaults, **kw})


METHODS = {
    "prompt_tuning": prompt_tuning,
    "p_tuning": p_tuning,
    "multitask_prompt_tuning": multitask_prompt_tuning,
    "prefix_tuning": prefix_tuning,
    "cartridge": cartridge,
    "lora": lora,
}
"""The five prompt-learning methods and LoRA: `METHODS[name](model, **kw)` returns a PEFT config."""

VARIANTS = {"p_tuning_lstm": p_tuning_lstm, "prefix_tuning_projection": prefix_tuning_projection}
"""Variants of two of the methods."""

ROW_METHODS = ("prompt_tuning", "p_tuning", "p_tuning_lstm", "multitask_prompt_tuning")
"""The methods that lengthen `token_embeddings`."""

CACHE_METHODS = ("prefix_tuning", "prefix_tuning_projection", "cartridge")
"""The methods that use `past_key_values`."""

NO_CACHE = ("albert", "deberta-v2", "distilbert", "modernbert", "mpnet", "t5")
"""The backbones that ignore or reject `past_key_values`, on every release: hooks put a prefix into their attention."""


def pipeline_of(model: Any) -> Callable[[dict[str, Any]], Tensor]:
    """Return the pipeline as a function of features."""
    transformer, pooling = model[0], model[1]
    return lambda features: pooling(transformer(features))["sentence_embedding"]


def put_adapter(model: Any, method: str, *, adapter_name: str = "default", seed: int = 0, **kw: Any) -> Any:
    """Add an adapter where the model's forward runs, with seeded parameters that clearly matter.

    Args:
        model: A SentenceTransformer; its backbone is replaced by the PeftModel.
        method: A name in METHODS or VARIANTS.
        adapter_name: The adapter's name in PEFT.
        seed: The seed of the parameters.
        **kw: For the method's config.

    Returns:
        The PeftModel, in eval mode.

    Raises:
        Unavailable: If the installed PEFT lacks the method.
    """
    from peft import get_peft_model

    config = {**METHODS, **VARIANTS}[method](model, **kw)
    backbone = backbone_of(model)
    peft_model = get_peft_model(backbone, config, adapter_name=adapter_name).eval()
    with torch.no_grad():
        scale = float(backbone.get_input_embeddings()(torch.arange(4, backbone.config.vocab_size)).std())
        fill_adapter(peft_model, adapter_name, seed, 1.0 if method in CACHE_METHODS else scale)
    put_backbone(model, peft_model)
    return peft_model


def fill_adapter(peft_model: Any, adapter_name: str, seed: int, scale: float) -> None:
    """Replace the adapter's parameters; prompt rows, or keys and values, get a standard deviation of about `scale`."""
    generator = torch.Generator().manual_seed(seed)
    if not peft_model.active_peft_config.is_prompt_learning:
        for name, parameter in sorted(peft_model.named_parameters()):
            if f".{adapter_name}." in name and "lora_" in name:
                parameter.copy_(0.3 * _noise(parameter, generator))
        return
    encoder = peft_model.prompt_encoder[adapter_name]
    for name, parameter in sorted(encoder.named_parameters()):
        fan_in = 1 if parameter.ndim < 2 or "embedding" in name or "prefix_task" in name else parameter.shape[1]
        parameter.copy_(_noise(parameter, generator) * (1.5 / fan_in) ** 0.5)
    rows = _rows(peft_model, encoder, adapter_name)
    for parameter in _last_parameters(encoder):
        parameter.mul_(scale / rows.std())


def _noise(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=generator)


def _rows(peft_model: Any, encoder: Any, adapter_name: str) -> torch.Tensor:
    indices = peft_model.prompt_tokens[adapter_name].unsqueeze(0)
    more = (torch.tensor([0]),) if "task_ids" in inspect.signature(encoder.forward).parameters else ()
    rows: torch.Tensor = encoder(indices, *more)
    return rows.clone()


def _last_parameters(encoder: Any) -> list[torch.Tensor]:
    """Return the parameters that the encoder's output is linear in."""
    for name in ("mlp_head", "transform"):
        if hasattr(encoder, name):
            return list(getattr(encoder, name)[-1].parameters())
    embeddings = [getattr(encoder, f"{kind}_embedding", None) for kind in ("frozen", "trainable")]
    return [e for e in embeddings if e is not None] or [encoder.embedding.weight]
