"""Refuse gradient checkpointing where it throws away a prefix."""

from __future__ import annotations

from torch import nn

from ..compat.kv_cache import throws_caches_away
from ..errors import UnsupportedModelError
from ..hooks.call import Call, Hook


class RefuseCheckpointing(Hook):
    """Refuse gradient checkpointing where it drops the prefix. Goes on the Transformer module.

    Since transformers 4.53 a checkpointed layer runs without ``past_key_values``; the mask still covers the prefix, so
    the forward fails deep in the attention. A prefix that hooks put into the attention is no longer there when a layer
    runs again for the backward pass. Checkpointing may be switched on after the hooks are attached, so this is checked
    whenever a training forward begins.

    Args:
        in_attention: Whether hooks put the prefix into the attention.

    Raises:
        UnsupportedModelError: In the forward, in training, while gradient checkpointing is on.
    """

    def __init__(self, in_attention: bool = False) -> None:
        self.in_attention = in_attention

    def before(self, call: Call) -> None:
        if not call.module.training:
            return
        found = _checkpoints if self.in_attention else throws_caches_away
        if not any(map(found, call.module.modules())):
            return
        what = "keys and values that are put into the attention" if self.in_attention else "a cache (past_key_values)"
        raise UnsupportedModelError(
            f"{call.where}: its prefix is {what}, which gradient checkpointing throws away in training: call the "
            f"backbone's gradient_checkpointing_disable(), or give the trainer gradient_checkpointing=False"
        )


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False)) and module.training
