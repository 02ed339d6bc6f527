"""The one file that knows how the supported releases of transformers keep keys and values.

Up to 4.4x some backbones take and give a tuple of pairs, ``[batch, heads, seq, head size]`` each; the others, and all
since 5, a ``DynamicCache``.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def empty_cache(backbone: Any) -> Any:
    """Return what the backbone is to fill with keys and values, or None where it makes its own, a tuple or a cache.

    Before 4.54 it gives back the kind that it makes itself. Gemma 2 and 3 make one of a fixed length then.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    fixed = hasattr(sys.modules[type(backbone).__module__], "HybridCache")
    return cache if fixed or hasattr(cache, "layers") else None


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


def throws_caches_away(module: nn.Module) -> bool:
    """Tell whether a layer is being checkpointed in training by the class that leaves out caches (since 4.53)."""
    layers = sys.modules.get("transformers.modeling_layers")
    kind = getattr(layers, "GradientCheckpointingLayer", None)
    return kind is not None and isinstance(module, kind) and bool(module.gradient_checkpointing) and module.training
