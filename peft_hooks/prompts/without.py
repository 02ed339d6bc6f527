"""``without_adapter``: the base model's embeddings for a ``with`` block."""

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
    """Switch off every adapter of a model for a ``with`` block, so that it gives the base model's embeddings.

    ``PeftModel.disable_adapter()`` raises ``UnboundLocalError`` on encoders, and leaves a replaced ``forward`` behind
    (it swaps the model's methods: https://github.com/huggingface/peft/pull/1502).
    This works with any PEFT method, leaves every module as it found it, even if the block raises, and nests. Hooks may
    be on the model or not; they do nothing if there are no virtual tokens. Not thread-safe: the adapters are off for
    every thread. Add, delete and switch adapters outside the block.

    Args:
        model: A ``SentenceTransformer`` (or another model of that library); without an adapter it stays as it is.

    Raises:
        TypeError: If ``model`` is not a module.
        UnsupportedModelError: If it is not a Sentence Transformers model.

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
    switches = [state.AdapterSwitch(encoder.module) for encoder in read_pipeline(model).encoders]

    def off() -> None:
        for switch in switches:
            switch.off()

    def on() -> None:
        for switch in reversed(switches):
            switch.on()

    yield from block(off, on)
