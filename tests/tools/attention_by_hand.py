"""Compute encoders that keep no keys and values by hand: S queries and V + S keys per layer, float64, one text.

There is no padding. The layers are written out from the weights alone, so a prefix is simply more rows of keys and
values. No part of a backbone's forward runs, except for the bucketing of relative positions. BERT is included, as
it has a cache to compare with.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Pairs = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer, each `[virtual, heads * head size]`."""


def rows_behind(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    """Compute the rows of a text that follows a prefix.

    Args:
        plain: The backbone, float64.
        ids: `[tokens]`.
        pairs: The prefix.

    Returns:
        `[tokens, hidden]`.
    """
    return _KINDS[plain.config.model_type](plain, ids, pairs)


def _linear(module: Any, x: Tensor) -> Tensor:
    return functional.linear(x, module.weight, module.bias)


def _norm(module: Any, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], module.weight, getattr(module, "bias", None), module.eps)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(len(x), heads, -1).transpose(0, 1)


def _mix(scores: Tensor, values: Tensor) -> Tensor:
    """Return an attention's output for scores `[heads, S, V + S]` and values `[heads, V + S, size]`."""
    return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None, bias: Any = 0.0) -> Tensor:
    q, k, v = (_heads(x, heads) for x in (q, k, v))
    return _mix(q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias, v)


def _behind(pair: tuple[Tensor, Tensor], key: Any, value: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a layer: first the prefix's, then the text's."""
    return torch.cat([pair[0], _linear(key, x)]), torch.cat([pair[1], _linear(value, x)])


def _places(ids: Tensor, pairs: Pairs) -> Tensor:
    """Return the positions of the text, which follow the prefix."""
    return torch.arange(len(ids)) + len(pairs[0][0])


def _embedded(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    """Return the normalized sum of word, absolute position and segment embeddings."""
    parts = plain.embeddings
    offset = 2 if plain.config.model_type == "mpnet" else 0
    x = parts.word_embeddings.weight[ids] + parts.position_embeddings.weight[_places(ids, pairs) + offset]
    if hasattr(parts, "token_type_embeddings"):
        x = x + parts.token_type_embeddings.weight[0]
    return _norm(parts.LayerNorm, x)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    inner = functional.gelu(_linear(layer.intermediate.dense, x))
    return _norm(layer.output.LayerNorm, _linear(layer.output.dense, inner) + x)


def _bert(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    x = _embedded(plain, ids, pairs)
    for layer, pair in zip(plain.encoder.layer, pairs):
        own = layer.attention.self
        keys, values = _behind(pair, own.key, own.value, x)
        mixed = _attend(_linear(own.query, x), keys, values, plain.config.num_attention_heads)
        out = layer.attention.output
        x = _feed_forward(layer, _norm(out.LayerNorm, _linear(out.dense, mixed) + x))
    return x


def _mpnet(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    x, config, virtual = _embedded(plain, ids, pairs), plain.config, len(pairs[0][0])
    encoder = plain.encoder
    distance = torch.arange(virtual + len(ids))[None] - _places(ids, pairs)[:, None]
    buckets = encoder.relative_position_bucket(distance, num_buckets=config.relative_attention_num_buckets)
    bias = encoder.relative_attention_bias.weight[buckets].permute(2, 0, 1)
    for layer, pair in zip(encoder.layer, pairs):
        own = layer.attention.attn
        keys, values = _behind(pair, own.k, own.v, x)
        mixed = _attend(_linear(own.q, x), keys, values, config.num_attention_heads, bias=bias)
        x = _feed_forward(layer, _norm(layer.attention.LayerNorm, _linear(own.o, mixed) + x))
    return x


def _distilbert(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    x = _embedded(plain, ids, pairs)
    for layer, pair in zip(plain.transformer.layer, pairs):
        own = layer.attention
        keys, values = _behind(pair, own.k_lin, own.v_lin, x)
        mixed = _attend(_linear(own.q_lin, x), keys, values, plain.config.n_heads)
        x = _norm(layer.sa_layer_norm, _linear(own.out_lin, mixed) + x)
        x = _norm(layer.output_layer_norm, _linear(layer.ffn.lin2, functional.gelu(_linear(layer.ffn.lin1, x))) + x)
    return x


def _albert(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    from transformers.activations import ACT2FN

    act = ACT2FN[plain.config.hidden_act]
    x = _linear(plain.encoder.embedding_hidden_mapping_in, _embedded(plain, ids, pairs))
    layer = plain.encoder.albert_layer_groups[0].albert_layers[0]
    own = layer.attention
    for pair in pairs:
        keys, values = _behind(pair, own.key, own.value, x)
        mixed = _attend(_linear(own.query, x), keys, values, plain.config.num_attention_heads)
        x = _norm(own.LayerNorm, x + _linear(own.dense, mixed))
        x = _norm(layer.full_layer_layer_norm, _linear(layer.ffn_output, act(_linear(layer.ffn, x))) + x)
    return x


def _t5(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    def rms(module: Any, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt() * module.weight

    x, stack, virtual = plain.shared.weight[ids], plain.encoder, len(pairs[0][0])
    first = stack.block[0].layer[0].SelfAttention
    distance = torch.arange(virtual + len(ids))[None] - _places(ids, pairs)[:, None]
    sizes = first.relative_attention_num_buckets, first.relative_attention_max_distance
    buckets = first._relative_position_bucket(distance, True, *sizes)
    bias = first.relative_attention_bias.weight[buckets].permute(2, 0, 1)
    for block, pair in zip(stack.block, pairs):
        own, normed = block.layer[0].SelfAttention, rms(block.layer[0].layer_norm, x)
        keys, values = _behind(pair, own.k, own.v, normed)
        x = x + _linear(own.o, _attend(_linear(own.q, normed), keys, values, plain.config.num_heads, 1.0, bias))
        dense, normed = block.layer[1].DenseReluDense, rms(block.layer[1].layer_norm, x)
        x = x + _linear(dense.wo, functional.relu(_linear(dense.wi, normed)))
    return rms(stack.final_layer_norm, x)


def _deberta_v2(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    heads, size = plain.config.num_attention_heads, plain.config.hidden_size // plain.config.num_attention_heads
    x = _norm(plain.embeddings.LayerNorm, plain.embeddings.word_embeddings.weight[ids])
    span, positions = plain.encoder.layer[0].attention.self.pos_ebd_size, plain.encoder.rel_embeddings.weight
    if getattr(plain.encoder, "LayerNorm", None) is not None:
        positions = _norm(plain.encoder.LayerNorm, positions)
    positions = positions[: 2 * span]
    behind = _places(ids, pairs)[:, None] - torch.arange(len(pairs[0][0]) + len(ids))[None]  # query minus key
    to_key, to_query = ((way + span).clamp(0, 2 * span - 1).expand(heads, -1, -1) for way in (behind, behind.T))
    for layer, pair in zip(plain.encoder.layer, pairs):
        own = layer.attention.self
        keys, values = (_heads(part, heads) for part in _behind(pair, own.key_proj, own.value_proj, x))
        queries = _heads(_linear(own.query_proj, x), heads)
        names = ("key_proj", "query_proj") if own.share_att_key else ("pos_key_proj", "pos_query_proj")
        key_places, query_places = (_heads(_linear(getattr(own, name), positions), heads) for name in names)
        scores = queries @ keys.transpose(1, 2)
        scores = scores + (queries @ key_places.transpose(1, 2)).gather(2, to_key)
        scores = scores + (keys @ query_places.transpose(1, 2)).gather(2, to_query).transpose(1, 2)
        out = layer.attention.output
        mixed = _mix(scores / math.sqrt(3 * size), values)
        x = _feed_forward(layer, _norm(out.LayerNorm, _linear(out.dense, mixed) + x))
    return x


def _modernbert(plain: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    config, heads = plain.config, plain.config.num_attention_heads
    x = _norm(plain.embeddings.norm, plain.embeddings.tok_embeddings.weight[ids])
    text, every = _places(ids, pairs), torch.arange(len(pairs[0][0]) + len(ids))
    for number, (layer, pair) in enumerate(zip(plain.layers, pairs)):
        theta, window = _rotation_and_window(config, number)
        normed = x if number == 0 else _norm(layer.attn_norm, x)
        query, key, value = _linear(layer.attn.Wqkv, normed).chunk(3, -1)
        queries = _rotated(_heads(query, heads), text, theta)
        keys = _rotated(_heads(torch.cat([pair[0], key]), heads), every, theta)
        scores = queries @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
        if window is not None:
            scores = scores.masked_fill((text[:, None] - every[None]).abs() > window, -math.inf)
        x = x + _linear(layer.attn.Wo, _mix(scores, _heads(torch.cat([pair[1], value]), heads)))
        inner, gate = _linear(layer.mlp.Wi, _norm(layer.mlp_norm, x)).chunk(2, -1)
        x = x + _linear(layer.mlp.Wo, functional.gelu(inner) * gate)
    return _norm(plain.final_norm, x)


def _rotation_and_window(config: Any, layer: int) -> tuple[float, int | None]:
    kinds = getattr(config, "layer_types", None)
    full = kinds[layer] == "full_attention" if kinds else layer % config.global_attn_every_n_layers == 0
    by_kind = getattr(config, "rope_parameters", None)
    if by_kind:
        theta = by_kind["full_attention" if full else "sliding_attention"]["rope_theta"]
    else:
        theta = config.global_rope_theta if full else config.local_rope_theta
    return theta, None if full else config.local_attention // 2


def _rotated(x: Tensor, places: Tensor, theta: float) -> Tensor:
    size = x.shape[-1]
    inverse = theta ** (-torch.arange(0, size, 2).double() / size)
    angles = (places[:, None].double() * inverse).repeat(1, 2)
    turned = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
    return x * angles.cos() + turned * angles.sin()


_KINDS = {
    "albert": _albert,
    "bert": _bert,
    "deberta-v2": _deberta_v2,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
    "t5": _t5,
}

BY_HAND = tuple(_KINDS)
"""The architectures written out here."""
