"""The one file that knows how the supported releases of transformers keep keys and values.

Up to 4.4x some backbones take and give a tuple of pairs, ``[batch, heads, seq, head size]`` each; the others, and all
since 5, a ``DynamicCache``. Its argument is ``past_key_values``, since 5.24 ``cache``: the former name goes in 5.40.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

NAMES = ("cache", "past_key_values")
"""What backbones call the argument that holds keys and values. Which one is right is found out by a forward."""

NO_LAYERS = "caches have layers, which a graph can fill, since transformers 4.54"


def empty_cache(backbone: Any) -> dict[str, Any]:
    """Return what the backbone has to be given to fill with keys and values; nothing where it makes its own.

    Gemma 2 and 3 make a cache of a fixed length from 4.42 to 4.55, and take one that grows.
    """
    from transformers import DynamicCache

    fixed = hasattr(sys.modules[type(backbone).__module__], "HybridCache")
    return {"past_key_values": DynamicCache()} if fixed else {}


def can_be_traced() -> bool:
    """Tell whether ``torch.compile`` takes a cache that is filled in a graph: since 4.54, when they keep layers."""
    from transformers import DynamicCache

    return hasattr(DynamicCache(), "layers")


def cache_field(output: Mapping[str, Any]) -> str | None:
    """Return under which name an output holds keys and values, or None if it has none. The argument has that name."""
    return next((name for name in output if _is_cache(output[name])), None)


def _is_cache(value: Any) -> bool:
    if not isinstance(value, tuple):
        return hasattr(value, "get_seq_length")
    # Hidden states are a tuple of tensors.
    return bool(value) and isinstance(value[0], tuple) and all(isinstance(part, Tensor) for part in value[0])


def filled_caches(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[dict[str, Any]]:
    """Yield the arguments by which one backbone or another takes keys and values, one pair for each layer.

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
    """Return the keys and values of each layer that a cache holds, ``[batch, heads, seq, head size]`` each."""
    if isinstance(cache, (tuple, list)):
        return [(layer[0], layer[1]) for layer in cache]
    if hasattr(cache, "key_cache") and not hasattr(cache, "layers"):  # before 4.54
        return list(zip(cache.key_cache, cache.value_cache, strict=True))
    return [(layer.keys, layer.values) for layer in cache.layers]


def repeated(cache: Any, batch: int) -> Any:
    """Return the cache of one row as that of ``batch`` equal rows; it may be the same object, changed.

    The rows are one in memory: the backbone copies them as it puts the text's keys and values behind them, which
    ``cache.batch_repeat_interleave`` would do once more. Gradients of all rows flow into the one.
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
    """Tell whether a cache that was filled with ``length`` positions has no more: what follows goes into new memory.

    One of a fixed length is written to where it is, and cannot be kept for another text.
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
    """Return another cache of the same keys and values, one in memory with these: a text's go into the copy.

    Whatever else it has, such as the states of a recurrence, may be written to where it is, and is copied.
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
    """Tell whether a layer is being checkpointed in training by the class that leaves out caches (since 4.53)."""
    layers = sys.modules.get("transformers.modeling_layers")
    kind = getattr(layers, "GradientCheckpointingLayer", None)
    return kind is not None and isinstance(module, kind) and bool(module.gradient_checkpointing) and module.training
