"""``register_prompt_mask_hooks``: which hooks a model needs, and their life as one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from . import _backbones as backbones
from . import _releases as releases
from ._describe import HookTable
from ._dimensions import AssertDimensions, Bindings
from ._dispatch import dispatchers
from ._hook import Hook
from ._log import LogShapes
from ._mask import ExtendPromptMask, PreparePooling, VirtualTokens, check_policy
from ._positions import AlignPositions, RefuseLeftPadding
from ._refuse import fit_positions, refuse_left_padding, refuse_task, refuse_what_cannot_be_right
from ._registry import HookRegistry
from ._task import SelectTask
from .errors import HookError

# Lower runs first: what is right is made, then checked, then logged.
MAKE, CHECK, LOG = 0, 100, 200


@dataclass(frozen=True)
class Options:
    """What ``register_prompt_mask_hooks`` was asked for. The hooks on a model are marked with it."""

    virtual_tokens: VirtualTokens = "auto"
    task_id: int | None = None
    check: bool = True
    log: bool = False

    def __post_init__(self) -> None:
        check_policy(self.virtual_tokens)
        if self.task_id is not None:
            SelectTask(self.task_id)


class Planned(NamedTuple):
    """A hook that is to be attached."""

    name: str
    hook: Hook
    to: nn.Module
    order: int


class HookHandle:
    """The hooks that ``register_prompt_mask_hooks`` put on a model. As a context manager, removes them at the end."""

    def __init__(self, model: nn.Module, options: Options, registry: HookRegistry | None = None) -> None:
        self.options = options
        self.registry = registry or HookRegistry(model, owner=options)
        self._undo: list[Callable[[], None]] = []
        if registry is None:
            self._attach(model)
        _handles[model] = self

    def _attach(self, model: nn.Module) -> None:
        try:
            for _, transformer in releases.transformers_of(model):
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
        self.registry.clear()
        while self._undo:
            self._undo.pop()()

    def refresh(self) -> None:
        """Attach anew, after adapters were added or deleted."""
        model = self.registry.model
        self.remove()
        refuse_what_cannot_be_right(model, self.options.task_id)
        self._attach(model)

    def describe(self) -> HookTable:
        """List the hooks: module, role, order, calls, and why one never fired, where that is known."""
        return self.registry.describe()

    @contextlib.contextmanager
    def switched(self, **options: Any) -> Iterator[HookHandle]:
        """Use other options for the length of a block; those not given stay as they are."""
        former, model = self.options, self.registry.model
        refuse_task(model, options.get("task_id"))
        with self.registry.replaced():
            self.options = replace(former, **options)
            try:
                for planned in plan(model, self.options):
                    self.registry.attach(planned.hook, planned.to, planned.name, planned.order)
                yield self
            finally:
                self.options = former

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in asdict(self.options).items())
        return f"HookHandle({options}, {len(self.registry)} hooks)"


_handles: weakref.WeakKeyDictionary[nn.Module, HookHandle] = weakref.WeakKeyDictionary()


def handle_of(model: nn.Module) -> HookHandle | None:
    """Return the handle of the hooks on ``model``, also when they came along with a copied or unpickled model."""
    handle = _handles.get(model)
    if handle is not None and handle.active:
        return handle
    owner = next((found.owner for _, _, found in dispatchers(model) if isinstance(found.owner, Options)), None)
    return None if owner is None else HookHandle(model, owner, HookRegistry.adopt(model, owner))


def register_prompt_mask_hooks(
    model: nn.Module,
    *,
    virtual_tokens: VirtualTokens = "auto",
    task_id: int | None = None,
    check: bool = True,
    log: bool = False,
) -> HookHandle:
    """Attach everything that makes a prompt-tuned Sentence Transformers model right, until ``handle.remove()``.

    With the hooks on, an embedding is the same alone and in any batch, left- or right-padded. What cannot be right is
    refused by name. Attach before ``torch.compile``. A second call with the same options returns the same handle.

    Args:
        model: A ``SentenceTransformer`` (or another model of the library) with a PEFT adapter on its Transformer.
        virtual_tokens: ``"auto"``: virtual tokens count in mean, max, weighted-mean and last-token pooling, as in
            Sentence Transformers 3.3 to 6.1; ``cls`` and consumers of single tokens read the text's own. ``"pool"``:
            exactly what 3.3 to 6.1 computed. ``"ignore"``: kept in ``token_embeddings``, masked out of pooling.
            ``"strip"``: cut from ``token_embeddings`` and hidden states.
        task_id: The task of multitask prompt tuning.
        check: Assert named dimensions on the Transformer and Pooling in every forward.
        log: Log shapes at DEBUG on the logger ``peft_hooks``.

    Returns:
        The handle: a context manager with ``remove()`` and ``describe()``.

    Raises:
        TypeError: If ``model`` is no module.
        UnsupportedModelError: If the embeddings cannot be right with this model and adapter.
        HookError: If the model is compiled already, or has the hooks with other options.
        ValueError: If an option is wrong.
    """
    options = Options(virtual_tokens, task_id, check, log)
    handle = handle_of(model) if isinstance(model, nn.Module) else None
    if handle is not None:
        if handle.options == options:
            return handle
        raise HookError(
            f"the model has the hooks with other options, {handle!r}: call `.remove()` on that handle first, or use "
            f"`with prompt_mask_hooks(model, ...)` for a block"
        )
    refuse_what_cannot_be_right(model, task_id)
    return HookHandle(model, options)


@contextlib.contextmanager
def prompt_mask_hooks(model: nn.Module, **options: Any) -> Iterator[HookHandle]:
    """Attach what ``register_prompt_mask_hooks`` attaches for the length of a block, and leave no trace after it.

    Blocks nest: inside a block, or with hooks registered, the given options hold for the inner block and the others
    stay as they are. Not thread-safe: the model has the hooks for every thread.

    Args:
        model: As in ``register_prompt_mask_hooks``.
        **options: ``virtual_tokens``, ``task_id``, ``check``, ``log``.

    Yields:
        The handle.

    Raises:
        TypeError: If an option is unknown, and what ``register_prompt_mask_hooks`` raises.
    """
    outer = handle_of(model) if isinstance(model, nn.Module) else None
    block = register_prompt_mask_hooks(model, **options) if outer is None else outer.switched(**options)
    with block as handle:
        yield handle


def plan(model: nn.Module, options: Options) -> Iterator[Planned]:
    """Yield the hooks that ``model`` needs, for every Transformer and Pooling of it."""
    bindings, poolings = Bindings(), releases.poolings_of(model)
    policy: VirtualTokens = "strip" if options.virtual_tokens == "auto" and not poolings else options.virtual_tokens
    causes: dict[int, str] = {}
    missing = releases.missing_in_prompt_length(model)
    for path, transformer in releases.transformers_of(model):
        if not releases.has_adapter(transformer):
            continue
        for name, config in releases.prompt_configs(transformer).items():
            what = f"num_virtual_tokens of the {releases.method_of(config)} adapter {name!r}"
            causes.setdefault(config.num_virtual_tokens, what)
        yield Planned(f"mask:{path}", ExtendPromptMask(policy), transformer, MAKE)
        yield from _plan_backbone(path, transformer, options)
        if options.check:
            hook = AssertDimensions(outputs=TRANSFORMER_OUTPUT, bindings=bindings, starts=True, causes=causes)
            yield Planned(f"check:{path}", hook, transformer, CHECK)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), transformer, LOG)
    for path, pooling in poolings:
        yield Planned(f"pooling:{path}", PreparePooling(options.virtual_tokens, missing), pooling, MAKE)
        if options.check:
            yield Planned(f"check:{path}", pooling_contract(pooling, bindings, causes), pooling, CHECK)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), pooling, LOG)


TRANSFORMER_OUTPUT = {"token_embeddings": "batch seq hidden", "attention_mask": "batch seq"}


def pooling_contract(pooling: nn.Module, bindings: Bindings, causes: dict[int, str]) -> AssertDimensions:
    """Return the contract of a Pooling module, its declared widths included."""
    width, pooled = releases.pooling_widths(pooling)
    return AssertDimensions(
        inputs={"token_embeddings": f"batch seq width={width}", "attention_mask": "batch seq"},
        outputs={"sentence_embedding": f"batch {pooled}"},
        bindings=bindings,
        ends=True,
        causes=causes,
    )


def _plan_backbone(path: str, transformer: Any, options: Options) -> Iterator[Planned]:
    """Yield what the adapter's own modules need: positions, a task, and right padding where nothing else helps."""
    outer = releases.backbone_of(transformer)
    distance = refuse_left_padding(path, transformer)
    if distance is not None:
        yield Planned(f"padding:{path}", RefuseLeftPadding(distance), transformer, MAKE - 1)
    if hasattr(outer, "active_peft_config") and backbones.accepts(releases.plain_backbone(transformer), "position_ids"):
        hook = AlignPositions(backbones.position_offset(transformer))
        yield Planned(f"positions:{path}", hook, outer.base_model, MAKE)
    for number, encoder in enumerate(releases.prompt_encoders(transformer, "MULTITASK_PROMPT_TUNING")):
        yield Planned(f"task:{path}:{number}", SelectTask(options.task_id), encoder, MAKE)
