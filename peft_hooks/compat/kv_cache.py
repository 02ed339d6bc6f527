"""The only file that knows how the supported releases of transformers keep keys and values.

Up to 4.4x some backbones take and return a tuple of pairs, ``[batch, heads, seq, head size]`` each; the others, and all
since 5.0, a ``DynamicCache``. The argument is ``past_key_values``; since 5.24 it is ``cache``, and 5.40 will remove the
former name.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

NAMES = ("cache", "past_key_values")
"""Names of the argument that holds keys and values. A forward finds out which one a backbone takes."""

NO_LAYERS = "caches have layers, which a graph can fill, since transformers 4.54"


def empty_cache(backbone: Any) -> dict[str, Any]:
    """Return the argument with an empty cache for the backbone to fill; empty if it makes its own.

    From 4.42 to 4.55 Gemma 2 and 3 make a cache of fixed length, but take one that grows.
    """
    from transformers import DynamicCache

    fixed = hasattr(sys.modules[type(backbone).__module__], "HybridCache")
    return {"past_key_values": DynamicCache()} if fixed else {}


def can_be_traced() -> bool:
    """Tell whether ``torch.compile`` handles a cache that is filled in a graph: since 4.54, when caches got layers."""
    from transformers import DynamicCache

    return hasattr(DynamicCache(), "layers")


def cache_field(output: Mapping[str, Any]) -> str | None:
    """Return the name under which an output holds keys and values, which the argument has too; None without any."""
    return next((name for name in output if _is_cache(output[name])), None)


def _is_cache(value: Any) -> bool:
    if not isinstance(value, tuple):
        return hasattr(value, "get_seq_length")
    # Not hidden states, which are a tuple of tensors.
    return bool(value) and isinstance(value[0], tuple) and all(isinstance(part, Tensor) for part in value[0])


def filled_caches(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[dict[str, Any]]:
    """Yield the arguments in which backbones take keys and values, one alternative after the other.

    Args:
        pairs: Keys and values of each layer, ``[batch, heads, seq, head size]``.
    """
    from transformers import DynamicCache

    for name in NAMES:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(pairs):
            cache.update(keys, values, layer)
        yield {name: cache}
    yield {"past_key_values": tuple(pairs)}


def pairs_of(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each layer in a cache, ``[batch, heads, seq, head size]`` each."""
    if isinstance(cache, (tuple, list)):
        return [(layer[0], layer[1]) for layer in cache]
    if hasattr(cache, "key_cache") and not hasattr(cache, "layers"):  # before 4.54
        return list(zip(cache.key_cache, cache.value_cache, strict=True))
    return [(layer.keys, layer.values) for layer in cache.layers]


def repeated(cache: Any, batch: int) -> Any:
    """Return the cache of one row expanded to ``batch`` equal rows; it may be the same object, modified.

    The rows share memory: the backbone copies them when it appends the text's keys and values, and
    ``cache.batch_repeat_interleave`` would copy them once more. The gradients of all rows flow into the single one.
    """

    def rows(part: Any) -> Any:
        return part.expand(batch, *part.shape[1:])

    if isinstance(cache, tuple):
        return tuple(tuple(map(rows, layer)) for layer in cache)
    if hasattr(cache, "key_cache") and not hasattr(cache, "layers"):  # before 4.54
        cache.key_cache, cache.value_cache = list(map(rows, cache.key_cache)), list(map(rows, cache.value_cache))
        return cache
    for layer in cache.layers:
        layer.keys, layer.values = rows(layer.keys), rows(layer.values)
    return cache


_OF_TOKENS = ("keys", "values", "key_cache", "value_cache")


def grows(cache: Any, length: int) -> bool:
    """Tell whether a cache filled with ``length`` positions has no more, so that appending allocates new memory.

    A cache of fixed length is written to in place, and cannot be kept for another text.
    """
    parts = cache if isinstance(cache, tuple) else _tokens_in(cache)
    return all(part.size(-2) <= length for layer in parts for part in layer)


def _tokens_in(cache: Any) -> Iterator[tuple[Tensor, ...]]:
    for holder in cache.layers if hasattr(cache, "layers") else [cache]:
        for name in _OF_TOKENS:
            part = getattr(holder, name, None)
            if part is not None:
                yield (part,) if isinstance(part, Tensor) else tuple(part)


def copied(cache: Any) -> Any:
    """Return a cache that shares the memory of these keys and values; those of a text are appended to the copy only.

    Everything else in it, such as recurrent states, may be written to in place, and is cloned.
    """
    if isinstance(cache, tuple):
        return cache
    other = _copied(cache)
    if hasattr(cache, "layers"):
        other.layers = [_copied(layer) for layer in cache.layers]
    return other


def _copied(holder: Any) -> Any:
    other = copy.copy(holder)
    rest = {name: _cloned(value) for name, value in vars(holder).items() if name not in _OF_TOKENS}
    vars(other).update(rest)
    return other


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_cloned(part) for part in value]
    if isinstance(value, dict):
        return {key: _cloned(part) for key, part in value.items()}
    return value


def throws_caches_away(module: nn.Module) -> bool:
    """Tell whether a layer in training is checkpointed by the class that drops caches (since 4.53)."""
    layers = sys.modules.get("transformers.modeling_layers")
    kind = getattr(layers, "GradientCheckpointingLayer", None)
    return kind is not None and isinstance(module, kind) and bool(module.gradient_checkpointing) and module.training
