"""Adapters that hand a backbone the right keys and values in the wrong places."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModelForFeatureExtraction


class Swapped(PeftModelForFeatureExtraction):
    """Mixes up keys and values, as PEFT 0.18 and 0.19 do on a Gemma 3 of two layers."""

    def get_prompt(self, *args: Any, **kwargs: Any) -> Any:
        return rearranged(super().get_prompt(*args, **kwargs), lambda pairs: [(values, keys) for keys, values in pairs])


class Reversed(PeftModelForFeatureExtraction):
    """Gives the last layer what is the first one's."""

    def get_prompt(self, *args: Any, **kwargs: Any) -> Any:
        return rearranged(super().get_prompt(*args, **kwargs), lambda pairs: pairs[::-1])


def rearranged(cache: Any, how: Any) -> Any:
    """Return a cache of the same kind with its pairs of keys and values in another order."""
    if isinstance(cache, (tuple, list)):
        return tuple(torch.stack(pair) for pair in how([tuple(pair) for pair in cache]))
    from transformers import DynamicCache

    layers = getattr(cache, "layers", None)
    if layers is None:
        pairs = list(zip(cache.key_cache, cache.value_cache))
    else:
        pairs = [(layer.keys, layer.values) for layer in layers]
    other = DynamicCache()
    for number, (keys, values) in enumerate(how(pairs)):
        other.update(keys, values, number)
    return other
