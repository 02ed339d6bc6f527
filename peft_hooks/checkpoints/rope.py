"""Rotary positions in a config, in the form that transformers 4 and other engines read.

transformers 5 writes only ``rope_parameters``. Without ``rope_theta``, transformers 4 silently uses a default, and the
embeddings are wrong (off by 0.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FULL, _LOCAL = "full_attention", "sliding_attention"

# The names of theta if layers have different ones: in Gemma 3 and in ModernBERT.
_NAMES = {_FULL: ("rope_theta", "global_rope_theta"), _LOCAL: ("rope_local_base_freq", "local_rope_theta")}


def with_flat_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config that also has what ``rope_parameters`` says under the names of transformers 4."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return config
    by_layer = {kind: value for kind, value in parameters.items() if isinstance(value, dict)}
    flat: dict[str, Any] = {}
    for kind, names in _NAMES.items():
        theta = by_layer.get(kind, {}).get("rope_theta")
        if theta is not None:
            flat |= dict.fromkeys(names, theta)
    flat |= _of_one(by_layer.get(_FULL, parameters))
    return {**flat, **config}


def _of_one(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return theta, scaling and the rotated part of a head."""
    flat = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    if parameters.get("rope_type", "default") != "default":
        flat["rope_scaling"] = {name: value for name, value in parameters.items() if name != "rope_theta"}
    return flat
