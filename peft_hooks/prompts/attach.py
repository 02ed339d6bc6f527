"""``register_prompt_mask_hooks`` and ``prompt_mask_hooks``: attach the hooks permanently, or for a ``with`` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from .._public import public
from ..compat.pipeline import Pipeline, read_pipeline
from ..compat.tested import warn_if_untested
from ..errors import HookError
from ..hooks.undo import block
from .handle import HookHandle, adopt_handle
from .mask import VirtualTokens
from .plan import HookOptions, Options, options_of
from .refusals import level_of_caller
from .sharing_plan import Share
from .task import TaskId

if TYPE_CHECKING:
    from typing_extensions import Unpack


@public
def register_prompt_mask_hooks(
    model: nn.Module,
    *,
    virtual_tokens: VirtualTokens = "auto",
    task_id: TaskId = None,
    check: bool = True,
    log: bool = False,
    share_prompt: Share = "auto",
) -> HookHandle:
    """Attach all hooks that a prompt-tuned Sentence Transformers model needs, until ``handle.remove()``.

    With the hooks on, an embedding is the same alone and in any batch, left- or right-padded. A model that cannot be
    made correct is refused, with the reason. A second call with the same options returns the same handle, and attaches
    again if the model has changed: a module replaced, an adapter added. Attach before ``torch.compile``, which leaves
    out later hooks: https://docs.pytorch.org/docs/stable/torch.compiler_nn_module.html

    The methods: prompt tuning (https://arxiv.org/abs/2104.08691), P-tuning (https://arxiv.org/abs/2103.10385),
    multitask prompt tuning (https://arxiv.org/abs/2303.02861), prefix tuning (https://arxiv.org/abs/2101.00190) and
    cartridges (https://arxiv.org/abs/2506.06266). On encoders without a key-value cache (MPNet, DistilBERT, ALBERT,
    DeBERTa, ModernBERT, T5's) a prefix is put into the attention: see ``PutPrefixInAttention``.
    What Sentence Transformers did about virtual tokens from 3.3 to 6.1, and why they count:
    https://github.com/huggingface/sentence-transformers/pull/3000

    In a ``CrossEncoder`` the head reads the text's own first token (BERT and similar architectures) or last token
    (decoders), as it was trained to. The adapter's task type must be ``SEQ_CLS``: with any other PEFT drops the segment
    ids of a pair. In a ``SparseEncoder`` and a ``MultiVectorEncoder`` only the text's tokens count.

    Args:
        model: A ``SentenceTransformer``, ``SparseEncoder``, ``MultiVectorEncoder`` or ``CrossEncoder`` with a PEFT
            adapter on its Transformer (a ``CrossEncoder`` before 5.4: on its ``model``).
        virtual_tokens: ``"auto"``: virtual tokens count in mean, max, weighted-mean and last-token pooling, as in
            Sentence Transformers 3.3 to 6.1; ``cls``, the head of a CrossEncoder and consumers of single tokens read
            the text's own. ``"pool"``: exactly what 3.3 to 6.1 computed, with ``share_prompt=False`` to the last bit.
            ``"ignore"``: kept in ``token_embeddings``, masked out of pooling.
            ``"strip"``: cut from ``token_embeddings`` and hidden states.
        task_id: The task of multitask prompt tuning; or a list or tensor with one for each row of the batch, for your
            own forwards only, because ``encode`` sorts its texts. Ids that a caller passes to the ``PeftModel`` win.
        check: Assert named dimensions in every forward, on every module that ``contract_of`` knows.
        log: Log shapes at DEBUG level on the logger ``peft_hooks``.
        share_prompt: ``"auto"``: in a causal backbone, compute the virtual tokens once per forward instead of once per
            row, where a small forward proves that this is exact; ``handle.describe()`` says where it is not.
            Networks that make prompts also run on one row. ``False``: as PEFT does. ``True``: refuse what is not exact.
            ``"keep"``: like ``"auto"``, and in ``no_grad`` and ``inference_mode`` keep what was computed from the
            prompt for later forwards. It is for weights that do not change: most changes are noticed, and it is
            computed again; after one that leaves no sign (``weight.data.add_()``, a write through NumPy) call
            ``handle.refresh()``.

    Returns:
        The handle: a context manager with ``remove()`` and ``describe()``.

    Raises:
        TypeError: If ``model`` is not a module.
        UnsupportedModelError: If the embeddings cannot be correct with this model and adapter.
        HookError: If the model is already compiled, or has hooks with other options.
        ValueError: If an option is wrong.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, check_padding_invariance, register_prompt_mask_hooks
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> model = tiny_model("bert")
        >>> add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4)).remove()  # a model without hooks
        >>> handle = register_prompt_mask_hooks(model)
        >>> model.encode(list(TEXTS)).shape  # float32[texts, width], whatever else is in the batch
        (6, 32)
        >>> check_padding_invariance(model, TEXTS).ok
        True
        >>> handle is register_prompt_mask_hooks(model)
        True
        >>> handle.remove()
    """
    options = Options(virtual_tokens, task_id, check, log, share_prompt)
    pipeline = read_pipeline(model)
    handle = adopt_handle(pipeline.root, pipeline)
    if handle is None:
        handle = _new(pipeline, options)
        handle.attach(pipeline)
        return handle
    if handle.options != options:
        raise HookError(
            f"the model already has hooks with other options, {handle!r}: call `.remove()` on that handle first, or "
            f"use `with prompt_mask_hooks(model, ...)` for a block"
        )
    if not handle.fits():
        handle.refresh()
    return handle


def _new(pipeline: Pipeline, options: Options) -> HookHandle:
    """Return a handle that has attached nothing yet, after a warning if a release is newer than those tested."""
    warn_if_untested(level_of_caller())
    return HookHandle(pipeline.root, options)


@public
@contextlib.contextmanager
def prompt_mask_hooks(model: nn.Module, **options: Unpack[HookOptions]) -> Iterator[HookHandle]:
    """Attach what ``register_prompt_mask_hooks`` attaches for a ``with`` block, and leave no trace after it.

    Blocks nest: inside a block, or with hooks registered, the given options hold for the inner block and the others
    stay as they are. Not thread-safe: the hooks are on the model for every thread.

    Args:
        model: As in ``register_prompt_mask_hooks``.
        **options: ``virtual_tokens``, ``task_id``, ``check``, ``log``, ``share_prompt``.

    Yields:
        The handle.

    Raises:
        TypeError: If an option is unknown; and whatever ``register_prompt_mask_hooks`` raises.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, prompt_mask_hooks
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> with prompt_mask_hooks(model, virtual_tokens="ignore") as handle:
        ...     handle.options.virtual_tokens
        'ignore'
        >>> handle.options.virtual_tokens
        'auto'
    """
    chosen = options_of(options)
    pipeline = read_pipeline(model)
    outer = adopt_handle(pipeline.root, pipeline)
    if outer is not None:
        if not outer.fits():
            outer.refresh()
        yield from outer.block(options)
        return
    handle = _new(pipeline, chosen)

    def enter() -> HookHandle:
        handle.attach(pipeline)
        return handle

    yield from block(enter, handle.remove)
