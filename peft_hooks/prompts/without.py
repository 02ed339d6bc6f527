"""``without_adapter``: the base model's embeddings, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from .._public import public
from ..compat import peft_state as state
from ..compat.pipeline import read_pipeline
from ..hooks.undo import block


@public
@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Switch every adapter of a model off for the length of a block: it gives the base model's embeddings.

    ``PeftModel.disable_adapter()`` raises ``UnboundLocalError`` on encoders, and leaves a replaced ``forward`` behind
    (it swaps the model's methods: https://github.com/huggingface/peft/pull/1502).
    This takes any method, leaves every module as it found it, also when the block raises, and nests. Hooks may be on
    the model or not; they do nothing where there are no virtual tokens. Not thread-safe: the adapters are off for every
    thread. Add, delete and switch adapters outside of the block.

    Args:
        model: A ``SentenceTransformer`` (or another model of the library); one without an adapter stays as it is.

    Raises:
        TypeError: If ``model`` is no module.
        UnsupportedModelError: If it is no Sentence Transformers model.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, without_adapter
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> base = model.encode("a cat")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> with without_adapter(model):
        ...     bool(abs(model.encode("a cat") - base).max() < 1e-6)
        True
    """
    bared = [state.Bared(encoder.module) for encoder in read_pipeline(model).encoders]

    def off() -> None:
        for one in bared:
            one.off()

    def on() -> None:
        for one in reversed(bared):
            one.on()

    yield from block(off, on)
