"""The reference that embeddings are compared with: one text, no padding, computed by hand in float64.

No forward of PEFT or Sentence Transformers and no code of this library runs here. Only the backbone runs, rebuilt
without hooks or adapters; what the adapter adds is computed from its parameters; pooling is written out.
(Some backbones compute norms and rotary angles in float32 whatever their dtype, so expect agreement to about 1e-6.)
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention_by_hand import rows_behind
from .methods import NO_CACHE

CACHE_TYPES = ("PREFIX_TUNING", "CARTRIDGE")


class NoReference(Exception):
    """The backbone ignores or rejects `past_key_values`, so no embedding with this adapter is right."""


def reference_embedding(
    model: Any,
    text: str,
    *,
    pooling: str | tuple[str, ...] = "mean",
    virtual_tokens: str = "auto",
    task_id: int | None = None,
    prompt: str = "",
    include_prompt: bool = True,
) -> Tensor:
    """Compute the sentence embedding that a model should return, before any Normalize module.

    Args:
        model: A SentenceTransformer whose backbone is a PeftModel, or a plain backbone.
        text: The text.
        pooling: One or more modes; several are concatenated in the order given.
        virtual_tokens: `"auto"`, `"pool"`, `"ignore"` or `"strip"`.
        task_id: The task of multitask prompt tuning.
        prompt: The prompt to put before the text.
        include_prompt: Whether pooling counts the prompt's tokens.

    Returns:
        `[hidden * modes]`, float64.

    Raises:
        NoReference: If the adapter needs `past_key_values` and the backbone ignores or rejects them.
    """
    ids = _token_ids(model, prompt + text)
    rows = reference_token_embeddings(model, prompt + text, task_id=task_id)
    virtual = len(rows) - len(ids)
    skipped = 0 if include_prompt or not prompt else _prompt_length(model, prompt)
    if virtual_tokens in ("ignore", "strip"):
        rows, virtual = rows[virtual:], 0
    modes = (pooling,) if isinstance(pooling, str) else pooling
    if virtual_tokens == "pool" and virtual:
        counted, first = list(range(skipped, len(rows))), 0
    else:
        counted = [*range(virtual), *range(virtual + skipped, len(rows))]
        first = virtual + skipped
    return torch.cat([_pool(rows, counted, first, mode) for mode in modes])


def reference_token_embeddings(model: Any, text: str, *, task_id: int | None = None) -> Tensor:
    """Compute the token embeddings of a single text: the virtual tokens' rows, if any, then the text's.

    Returns:
        `[virtual + tokens, hidden]`, float64.

    Raises:
        NoReference: If the adapter needs `past_key_values` and the backbone ignores or rejects them.
    """
    wrapped = wrapped_backbone(model)
    ids = torch.tensor([_token_ids(model, text)])
    plain = plain_backbone(wrapped)
    with torch.no_grad():
        kind = _peft_type(wrapped)
        if kind in (None, "LORA"):
            return _rows(plain, _all(ids.shape[1]), input_ids=ids)
        virtual = wrapped.active_peft_config.num_virtual_tokens
        if kind in CACHE_TYPES:
            return _rows_after_cache(plain, ids, key_values(wrapped))
        both = _behind_prompt(plain, ids, prompt_rows(wrapped, task_id))
        return _rows(plain, _all(virtual + ids.shape[1]), inputs_embeds=both)


def reference_rows_of_padded(wrapped: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Compute the rows of one text that follows a prompt, including tokens that `mask` does not count.

    Positions are consecutive, whether tokens count or not.

    Args:
        wrapped: The backbone with its adapter.
        ids: `[1, tokens]`.
        mask: `[1, tokens]`.

    Returns:
        `[virtual + tokens, hidden]`, float64.
    """
    plain = plain_backbone(wrapped)
    with torch.no_grad():
        both = _behind_prompt(plain, ids, prompt_rows(wrapped, None))
        wide = torch.cat([_all(both.shape[1] - ids.shape[1]), mask], dim=1)
        return _rows(plain, wide, inputs_embeds=both)


def _behind_prompt(plain: Any, ids: Tensor, prompt: Tensor) -> Tensor:
    """Return the input of the plain backbone: the prompt's rows, then the word embeddings."""
    return torch.cat([prompt.unsqueeze(0), plain.get_input_embeddings()(ids)], dim=1)


def _all(length: int) -> Tensor:
    """Return the mask of one text without padding."""
    return torch.ones(1, length, dtype=torch.int64)


def _rows(plain: Any, mask: Tensor, **inputs: Any) -> Tensor:
    """Run the plain backbone on one text."""
    with float64_by_default():
        output = plain(attention_mask=mask, return_dict=True, **inputs)
    rows: Tensor = output.last_hidden_state[0]
    if rows.dtype != torch.float64:
        raise TypeError(f"the reference came out as {rows.dtype}")
    return rows


def _rows_after_cache(plain: Any, ids: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Run the plain backbone on one text after the keys and values; raise if the backbone does not use them."""
    virtual, name = pairs[0][0].shape[2], type(plain).__name__
    if plain.config.model_type in NO_CACHE:
        flat = [(keys[0].transpose(0, 1).flatten(1), values[0].transpose(0, 1).flatten(1)) for keys, values in pairs]
        return rows_behind(plain, ids[0], flat)
    try:
        rows = _rows(plain, _all(virtual + ids.shape[1]), input_ids=ids, past_key_values=_cache(plain, pairs))
    except (TypeError, RuntimeError) as error:
        raise NoReference(f"{name} rejects past_key_values: {type(error).__name__}: {error}") from error
    if torch.equal(rows, _rows(plain, _all(ids.shape[1]), input_ids=ids)):
        raise NoReference(f"{name} ignores past_key_values")
    return rows


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    """Let masks created inside the forward hold float64's smallest number (transformers before 4.5x needs it)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- pooling ----------------------------------------------------------------------------------------------------------


def _pool(rows: Tensor, counted: list[int], first: int, mode: str) -> Tensor:
    """Pool the counted rows; in weightedmean a row's weight is its position among all rows, counted or not."""
    chosen = rows[counted]
    if mode == "cls":
        return rows[first]
    if mode == "lasttoken":
        return rows[counted[-1]]
    if mode == "max":
        return chosen.amax(dim=0)
    if mode == "mean":
        return chosen.sum(dim=0) / len(counted)
    if mode == "mean_sqrt_len_tokens":
        return chosen.sum(dim=0) / math.sqrt(len(counted))
    if mode == "weightedmean":
        weights = torch.tensor([index + 1 for index in counted], dtype=rows.dtype)
        return (chosen * weights.unsqueeze(1)).sum(dim=0) / weights.sum()
    raise ValueError(f"unknown pooling mode {mode!r}")


# --- texts ------------------------------------------------------------------------------------------------------------


def _token_ids(model: Any, text: str) -> list[int]:
    limit = model[0].max_seq_length
    cut = {} if limit is None else {"truncation": True, "max_length": limit}
    return list(model.tokenizer(text.strip(), **cut)["input_ids"])


def _prompt_length(model: Any, prompt: str) -> int:
    """Count the prompt's tokens as 5.0 and later do: without the last one if it is a special token."""
    ids = _token_ids(model, prompt)
    return len(ids) - (ids[-1] in model.tokenizer.all_special_ids)


# --- the backbone without PEFT ----------------------------------------------------------------------------------------


def wrapped_backbone(model: Any) -> Any:
    return model[0].model if "model" in model[0]._modules else model[0].auto_model


def _peft_type(wrapped: Any) -> str | None:
    config = getattr(wrapped, "active_peft_config", None)
    return None if config is None else str(getattr(config.peft_type, "value", config.peft_type))


def plain_backbone(wrapped: Any) -> Any:
    """Rebuild the backbone from its config and weights, with LoRA merged by hand."""
    kind = _peft_type(wrapped)
    base = wrapped if kind is None else wrapped.base_model.model if kind == "LORA" else wrapped.base_model
    weights = {name: value.detach().double() for name, value in base.state_dict().items()}
    if kind == "LORA":
        weights = _merged(wrapped, base, weights)
    plain = type(base)(copy.deepcopy(base.config)).double().eval()
    plain.load_state_dict(weights, strict=True)
    return plain


def _merged(wrapped: Any, base: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the plain layers, plus scale * B @ A where the active adapter has LoRA weights."""
    config, adapter = wrapped.active_peft_config, _active(wrapped)
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    merged = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    found = 0
    for name, first in weights.items():
        if not name.endswith(f".lora_A.{adapter}.weight"):
            continue
        layer = name[: -len(f".lora_A.{adapter}.weight")]
        change = scale * weights[f"{layer}.lora_B.{adapter}.weight"] @ first
        transposed = type(base.get_submodule(layer).base_layer).__name__ == "Conv1D"
        merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + (change.T if transposed else change)
        found += 1
    if not found:
        raise ValueError(f"no LoRA weights of adapter {adapter!r} found")
    return merged


# --- what the adapter adds --------------------------------------------------------------------------------------------


def _active(wrapped: Any) -> str:
    active = wrapped.active_adapter
    return str(active if isinstance(active, str) else active[0])


def _parameters(wrapped: Any) -> dict[str, Tensor]:
    encoder = wrapped.prompt_encoder[_active(wrapped)]
    return {name: value.detach().double() for name, value in encoder.named_parameters()}


def prompt_rows(wrapped: Any, task_id: int | None) -> Tensor:
    """Compute the rows in front of the word embeddings, `[virtual, width]`."""
    config, weights = wrapped.active_peft_config, _parameters(wrapped)
    rows = weights["embedding.weight"]
    kind = _peft_type(wrapped)
    if kind == "MULTITASK_PROMPT_TUNING":
        if task_id is None:
            raise ValueError("multitask prompt tuning needs a task_id")
        return rows * (weights["prefix_task_cols"][task_id] @ weights["prefix_task_rows"][task_id])
    if kind == "PROMPT_TUNING" or config.inference_mode:
        return rows
    if kind != "P_TUNING":
        raise ValueError(f"no reference for {kind}")
    if "lstm_head.weight_ih_l0" in weights:
        layer = 0
        while f"lstm_head.weight_ih_l{layer}" in weights:
            directions = [_lstm(rows, weights, f"l{layer}"), _lstm(rows.flip(0), weights, f"l{layer}_reverse").flip(0)]
            rows = torch.cat(directions, dim=1)
            layer += 1
        return _linear(_linear(rows, weights, "mlp_head.0").clamp(min=0), weights, "mlp_head.2")
    rows = _linear(rows, weights, "mlp_head.0").clamp(min=0)
    rows = _linear(rows, weights, "mlp_head.2").clamp(min=0)
    return _linear(rows, weights, "mlp_head.4")


def _linear(rows: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _lstm(rows: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Run one direction of one layer of an LSTM from a zero state."""
    inward, recurrent = weights[f"lstm_head.weight_ih_{name}"], weights[f"lstm_head.weight_hh_{name}"]
    bias = weights[f"lstm_head.bias_ih_{name}"] + weights[f"lstm_head.bias_hh_{name}"]
    hidden = cell = torch.zeros(recurrent.shape[1], dtype=rows.dtype)
    states = []
    for row in rows:
        enter, forget, candidate, leave = (inward @ row + recurrent @ hidden + bias).chunk(4)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        states.append(hidden)
    return torch.stack(states)


def key_values(wrapped: Any) -> list[tuple[Tensor, Tensor]]:
    """Compute each layer's keys and values, `[1, heads, virtual, head size]` each."""
    config, weights = wrapped.active_peft_config, _parameters(wrapped)
    if _peft_type(wrapped) == "CARTRIDGE":
        flat = torch.cat([weights[f"{k}_embedding"] for k in ("frozen", "trainable") if f"{k}_embedding" in weights])
    elif "transform.0.weight" in weights and not config.inference_mode:
        flat = _linear(weights["embedding.weight"], weights, "transform.0").tanh()
        flat = _linear(flat, weights, "transform.2")
    else:
        flat = weights["embedding.weight"]
    heads, width = config.num_attention_heads, config.token_dim
    pairs = []
    for layer in range(config.num_layers):
        halves = []
        for half in range(2):  # a virtual token's row holds layer 0's keys, layer 0's values, layer 1's keys, ...
            start = (2 * layer + half) * width
            part = flat[:, start : start + width]
            halves.append(torch.stack([part[:, h * width // heads : (h + 1) * width // heads] for h in range(heads)]))
        pairs.append((halves[0].unsqueeze(0), halves[1].unsqueeze(0)))
    return pairs


def _cache(plain: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    """Return the keys and values as a cache that the backbone reads on this release."""
    if getattr(plain, "_supports_cache_class", True):
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(pairs):
            cache.update(keys, values, layer)
        return cache
    return tuple(pairs)
