"""Prefix tuning and gradient checkpointing: refused where the one throws away what the other adds."""

from __future__ import annotations

from ..compat.kv_cache import throws_caches_away
from ..errors import UnsupportedModelError
from ..hooks.call import Call, Hook


class RefuseCheckpointing(Hook):
    """Refuse gradient checkpointing where it drops the cache that a prefix is. Goes on the Transformer module.

    Since transformers 4.53 a layer that is checkpointed runs without ``past_key_values``; the mask still covers the
    prefix, so that the forward fails deep in the attention. It may be switched on after the hooks are attached, so it
    is looked for when a forward of training begins.

    Raises:
        UnsupportedModelError: In the forward, in training, while gradient checkpointing is on.
    """

    def before(self, call: Call) -> None:
        if call.module.training and any(map(throws_caches_away, call.module.modules())):
            raise UnsupportedModelError(
                f"{call.where}: its prefix is a cache (past_key_values), which gradient checkpointing throws away in"
                " training: call gradient_checkpointing_disable() of the backbone, or give the trainer"
                " gradient_checkpointing=False"
            )
