"""Tell whether two forwards of a module can differ, because of dropout and similar layers in training."""

from __future__ import annotations

from typing import Any

from torch import nn

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def has_random(module: nn.Module) -> bool:
    """Tell whether two forwards of a module can differ, or parts of one run twice, which happens only in training."""
    return module.training and any(map(_is_random, module.modules()))


def _is_random(module: Any) -> bool:
    """Tell whether a module in training draws random numbers, or runs twice (gradient checkpointing)."""
    if not module.training:
        return False
    if isinstance(module, _DROPOUTS):
        return bool(module.p > 0)
    # Attention keeps its probability as a number, `attention_dropout`; an LSTM has `dropout`, OPT `layerdrop`.
    own = vars(module)
    return bool(own.get("gradient_checkpointing")) or any(
        isinstance(value, float) and value > 0 and ("drop" in name or "jitter" in name) for name, value in own.items()
    )
