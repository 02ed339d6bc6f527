"""Where the release keeps its losses, a trainer of a few steps, and the state that it trains."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from peft_hooks.testing import TEXTS

from .checks import RELEASE

ANCHORS, POSITIVES = list(TEXTS) * 2, [*TEXTS[1:], TEXTS[0]] * 2
SCORES = [1.0, 0.5, 0.0, 1.0, 0.5, 0.0] * 2


@functools.cache
def losses_of_the_release() -> Any:
    """Import the namespace of the losses, which has moved in Sentence Transformers 5.4."""
    if RELEASE >= (5, 4):
        from sentence_transformers.sentence_transformer import losses
    else:
        from sentence_transformers import losses
    return losses


def weights(model: Any, trained: bool = True) -> dict[str, Tensor]:
    """Copy what is trained, or what is frozen."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad is trained}
