"""``register_prompt_mask_hooks``: the life of a model's hooks as one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat.tested import warn_if_untested
from ..errors import HookError
from ..hooks.dispatcher import dispatchers
from ..hooks.registry import HookRegistry
from ..hooks.table import HookTable
from .mask import VirtualTokens
from .plan import Options, options_of, plan
from .refusals import fit_positions, level_of_caller, refuse_options, refuse_what_cannot_be_right
from .sharing_plan import Share, remarks


class HookHandle:
    """The hooks that ``register_prompt_mask_hooks`` put on a model. As a context manager, removes them at the end.

    ``register_prompt_mask_hooks`` makes it; there is one for a model. It does not keep the model alive.

    Attributes:
        options: What the hooks were asked for.
        registry: The ``HookRegistry`` that they are in; hooks of one's own go into another.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter
        >>> from peft_hooks.testing import tiny_model
        >>> handle = add_prompt_adapter(tiny_model("bert"), PromptTuningConfig(num_virtual_tokens=4), check=False)
        >>> handle
        HookHandle(virtual_tokens='auto', task_id=None, check=False, log=False, share_prompt='auto', 5 hooks)
        >>> handle.remove()
        >>> handle.active
        False
    """

    def __init__(self, model: nn.Module, options: Options, registry: HookRegistry | None = None) -> None:
        self.options = options
        self.registry = registry or HookRegistry(model, owner=options)
        self._undo: list[Callable[[], None]] = []
        self._removed = False
        if registry is None:
            self._attach(model)
        _handles[model] = self

    def _attach(self, model: nn.Module) -> None:
        try:
            for _, transformer in cross.inputs_of(model):
                undo = fit_positions(transformer)
                if undo is not None:
                    self._undo.append(undo)
            for planned in plan(model, self.options):
                self.registry.attach(planned.hook, planned.to, planned.name, planned.order)
        except BaseException:
            self.remove()
            raise

    @property
    def active(self) -> bool:
        """Whether the hooks are on the model."""
        return len(self.registry) > 0

    def remove(self) -> None:
        """Take every hook off and put ``max_seq_length`` back if it was lowered. A second call does nothing."""
        self._removed = True
        self.registry.clear()
        while self._undo:
            self._undo.pop()()

    def refresh(self) -> None:
        """Attach anew, after adapters were added or deleted."""
        model = self.registry.model
        self.remove()
        refuse_what_cannot_be_right(model, self.options.task_id, self.options.virtual_tokens)
        self._attach(model)
        self._removed = False

    def describe(self) -> HookTable:
        """List the hooks: module, role, order, calls, why one never fired, and why virtual tokens are not shared."""
        said = remarks(self.registry.model, self.options.share_prompt, self.registry)
        return replace(self.registry.describe(), remarks=tuple(said))

    @contextlib.contextmanager
    def switched(self, **options: Any) -> Iterator[HookHandle]:
        """Use other options for the length of a block; those not given stay as they are."""
        former, model = self.options, self.registry.model
        block = replace(former, **options)
        refuse_options(model, options.get("task_id"), block.virtual_tokens)
        proven = frozenset(self.registry) if block.share_prompt == former.share_prompt else None
        with self.registry.replaced(block):  # a copy that is made in the block has the block's options
            self.options = block
            try:
                for planned in plan(model, self.options, proven):
                    self.registry.attach(planned.hook, planned.to, planned.name, planned.order)
                yield self
            finally:
                self.options = former

    def __enter__(self) -> HookHandle:
        if self._removed:
            raise HookError("these hooks were removed: attach them again, register_prompt_mask_hooks(model)")
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in asdict(self.options).items())
        return f"HookHandle({options}, {len(self.registry)} hooks)"


_handles: weakref.WeakKeyDictionary[nn.Module, HookHandle] = weakref.WeakKeyDictionary()


def handle_of(model: nn.Module) -> HookHandle | None:
    """Return the handle of the hooks on ``model``, also when they came along with a copied or unpickled model.

    Raises:
        HookError: If ``model`` shares a module with another model, whose hooks are on it.
    """
    handle = _handles.get(model)
    if handle is not None and handle.active:
        return handle
    found = [entry for entry in dispatchers(model) if isinstance(entry[2].owner, Options)]
    hooked = {module for _, module, _ in found}
    covered = hooked.issuperset(pooling for _, pooling in releases.poolings_of(model))
    for other, its in list(_handles.items()):
        if its.active and not hooked.isdisjoint(other.modules()):
            if covered and other in set(model.modules()):  # torch.compile(other), DataParallel(other)
                return its
            raise HookError(f"a part of it has the hooks of another, {its!r}: call `.remove()` on that handle first")
    whole = covered and all(path == dispatcher.path for path, _, dispatcher in found)
    for owner in {dispatcher.owner for _, _, dispatcher in found if isinstance(dispatcher.owner, Options)}:
        if whole:
            return HookHandle(model, owner, HookRegistry.adopt(model, owner))
        HookRegistry.adopt(model, owner).clear()  # of a model of which a part was copied, and do not fit this one
    return None


def register_prompt_mask_hooks(
    model: nn.Module,
    *,
    virtual_tokens: VirtualTokens = "auto",
    task_id: int | None = None,
    check: bool = True,
    log: bool = False,
    share_prompt: Share = "auto",
) -> HookHandle:
    """Attach everything that makes a prompt-tuned Sentence Transformers model right, until ``handle.remove()``.

    With the hooks on, an embedding is the same alone and in any batch, left- or right-padded. What cannot be right is
    refused by name. A second call with the same options returns the same handle. Attach before ``torch.compile``, which
    leaves out what comes later: https://docs.pytorch.org/docs/stable/torch.compiler_nn_module.html

    The methods: prompt tuning (https://arxiv.org/abs/2104.08691), P-tuning (https://arxiv.org/abs/2103.10385),
    multitask prompt tuning (https://arxiv.org/abs/2303.02861), prefix tuning (https://arxiv.org/abs/2101.00190) and
    cartridges (https://arxiv.org/abs/2506.06266). What Sentence Transformers did about them from 3.3 to 6.1, and why
    virtual tokens count: https://github.com/huggingface/sentence-transformers/pull/3000

    In a ``CrossEncoder`` the head reads the text's own first token (BERT and its kin) or last token (decoders), as it
    was trained to. The adapter's task type must be ``SEQ_CLS``: with others PEFT drops the segment ids of a pair. In a
    ``SparseEncoder`` and a ``MultiVectorEncoder`` only the text's tokens count.

    Args:
        model: A ``SentenceTransformer``, ``SparseEncoder``, ``MultiVectorEncoder`` or ``CrossEncoder`` with a PEFT
            adapter on its Transformer (a ``CrossEncoder`` before 5.4: on its ``model``).
        virtual_tokens: ``"auto"``: virtual tokens count in mean, max, weighted-mean and last-token pooling, as in
            Sentence Transformers 3.3 to 6.1; ``cls``, the head of a CrossEncoder and consumers of single tokens read
            the text's own. ``"pool"``: exactly what 3.3 to 6.1 computed, with ``share_prompt=False`` to the last bit.
            ``"ignore"``: kept in ``token_embeddings``, masked out of pooling.
            ``"strip"``: cut from ``token_embeddings`` and hidden states.
        task_id: The task of multitask prompt tuning.
        check: Assert named dimensions in every forward, on every module that ``contract_of`` knows.
        log: Log shapes at DEBUG on the logger ``peft_hooks``.
        share_prompt: ``"auto"``: in a causal backbone, compute the virtual tokens once per forward and not once for
            each row, where a small forward proves that to be exact; ``handle.describe()`` says where it is not.
            Networks that make prompts run on one row, too. ``False``: as PEFT does. ``True``: refuse what is not exact.

    Returns:
        The handle: a context manager with ``remove()`` and ``describe()``.

    Raises:
        TypeError: If ``model`` is no module.
        UnsupportedModelError: If the embeddings cannot be right with this model and adapter.
        HookError: If the model is compiled already, or has the hooks with other options.
        ValueError: If an option is wrong.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, check_padding_invariance, register_prompt_mask_hooks
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> model = tiny_model("bert")
        >>> add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4)).remove()  # a model without hooks
        >>> handle = register_prompt_mask_hooks(model)
        >>> model.encode(list(TEXTS)).shape  # float32[texts, width], whatever the texts beside one
        (6, 32)
        >>> check_padding_invariance(model, TEXTS).ok
        True
        >>> handle is register_prompt_mask_hooks(model)
        True
        >>> handle.remove()
    """
    options = Options(virtual_tokens, task_id, check, log, share_prompt)
    root = cross.root_of(model)
    handle = handle_of(root) if isinstance(root, nn.Module) else None
    if handle is not None:
        if handle.options == options:
            return handle
        raise HookError(
            f"the model has the hooks with other options, {handle!r}: call `.remove()` on that handle first, or use "
            f"`with prompt_mask_hooks(model, ...)` for a block"
        )
    warn_if_untested(level_of_caller())
    refuse_what_cannot_be_right(root, task_id, virtual_tokens)
    return HookHandle(root, options)


@contextlib.contextmanager
def prompt_mask_hooks(model: nn.Module, **options: Any) -> Iterator[HookHandle]:
    """Attach what ``register_prompt_mask_hooks`` attaches for the length of a block, and leave no trace after it.

    Blocks nest: inside a block, or with hooks registered, the given options hold for the inner block and the others
    stay as they are. Not thread-safe: the model has the hooks for every thread.

    Args:
        model: As in ``register_prompt_mask_hooks``.
        **options: ``virtual_tokens``, ``task_id``, ``check``, ``log``, ``share_prompt``.

    Yields:
        The handle.

    Raises:
        TypeError: If an option is unknown, and what ``register_prompt_mask_hooks`` raises.

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
    options_of(options)
    root = cross.root_of(model)
    outer = handle_of(root) if isinstance(root, nn.Module) else None
    block = register_prompt_mask_hooks(model, **options) if outer is None else outer.switched(**options)
    with block as handle:
        yield handle
