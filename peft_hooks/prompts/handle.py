"""``HookHandle``: the life of a model's hooks as one."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, cast

from torch import nn

from .._public import public
from ..compat.pipeline import Pipeline
from ..errors import HookError, UnsupportedModelError
from ..hooks.dispatcher import Dispatcher, dispatchers_on
from ..hooks.registry import HookRegistry
from ..hooks.table import HookTable
from ..hooks.undo import attempt, block, surely
from .plan import HookOptions, Options
from .refusals import refuse_options, refuse_what_cannot_be_right
from .sharing_plan import remarks
from .watched import Lengths, Modes, looked_at, wanted_hooks

if TYPE_CHECKING:
    from typing_extensions import Unpack


@public
class HookHandle:
    """The hooks that ``register_prompt_mask_hooks`` put on a model. As a context manager, removes them at the end.

    ``register_prompt_mask_hooks`` makes it; there is one for a model. It does not keep the model alive.

    Attributes:
        registry: The ``HookRegistry`` that they are in; hooks of one's own go into another.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter
        >>> from peft_hooks.testing import tiny_model
        >>> handle = add_prompt_adapter(tiny_model("bert"), PromptTuningConfig(num_virtual_tokens=4), check=False)
        >>> handle
        HookHandle(virtual_tokens='auto', task_id=None, check=False, log=False, share_prompt='auto', 8 hooks)
        >>> handle.remove()
        >>> handle.active
        False
    """

    def __init__(self, model: nn.Module, options: Options, registry: HookRegistry | None = None) -> None:
        self.registry = registry or HookRegistry(model, owner=options)
        self._lengths = Lengths()

    @property
    def options(self) -> Options:
        """What the hooks were asked for."""
        return cast(Options, self.registry.owner)

    @property
    def active(self) -> bool:
        """Whether the hooks are on the model."""
        return len(self.registry) > 0

    def remove(self) -> None:
        """Take every hook off and put ``max_seq_length`` back if it was lowered. A second call does nothing."""
        surely(self._take_off)

    def _take_off(self) -> None:
        self.registry.reset()
        self._lengths.put_back()

    def refresh(self) -> None:
        """Attach anew, after a module was replaced or adapters were added or deleted. If refused, nothing changes.

        Raises:
            UnsupportedModelError: If the embeddings cannot be right any more; ``remove()`` takes the hooks off.
            HookError: If the model has the hooks of another handle.
        """
        self.attach(Pipeline.of(self.registry.model))

    def attach(self, pipeline: Pipeline) -> None:
        """Attach the hooks of a model that has just been read."""
        model = pipeline.root
        other = _handles.get(model)
        if other is not None and other is not self and other.active:
            raise HookError(f"the model has the hooks of another, {other!r}: call `.remove()` on that handle first")
        attempt(lambda: self._attach(pipeline), self.former(pipeline))

    def former(self, pipeline: Pipeline) -> Callable[[], None]:
        """Return what puts the hooks, and what attaching changes on the model, back as they are now."""
        state, lengths = self.registry.state, self._lengths
        now, modes = Lengths(pipeline.encoders), Modes(pipeline)

        def restore() -> None:
            self.registry.restore(state)
            now.restore()
            modes.restore()
            self._lengths = lengths

        return restore

    def _attach(self, pipeline: Pipeline) -> None:
        """Plan with the hooks set aside, so that what is measured is the model alone; then attach in one step."""
        options, former = self.options, self.registry.state
        self.registry.set_aside()
        self._lengths.put_back()
        refuse_what_cannot_be_right(pipeline, options.task_id, options.virtual_tokens)
        if not former.hooks:
            drop_leftovers(pipeline)
        self._lengths = Lengths(pipeline.encoders)
        self._lengths.lower()
        wanted = wanted_hooks(pipeline, options)
        _handles[pipeline.root] = self
        self.registry.put_back(former)
        self.registry.attach_all(wanted, note=looked_at(pipeline, wanted), path_of=pipeline.path_of)

    def fits(self) -> bool:
        """Tell whether the hooks are those that attaching would put on the model as it is now."""
        pipeline = Pipeline.of(self.registry.model)
        try:
            wanted = wanted_hooks(pipeline, self.options, frozenset(self.registry))
        except UnsupportedModelError:
            return False
        return bool(looked_at(pipeline, wanted) == self.registry.state.note)

    def adopted(self, pipeline: Pipeline) -> None:
        """Take the hooks for those of the model: they came along with a copy, of which a part may be replaced."""
        state = self.registry.state
        _handles[pipeline.root] = self
        try:
            wanted = wanted_hooks(pipeline, self.options, frozenset(self.registry))
        except UnsupportedModelError:
            return  # what refreshing them will say
        if state.where() == {(one.name, one.to) for one in wanted}:
            self.registry.restore(replace(state, note=looked_at(pipeline, wanted)))

    def describe(self) -> HookTable:
        """List the hooks: module, role, order, calls, why one never fired, and why virtual tokens are not shared."""
        said = remarks(self.registry.model, self.options.share_prompt, self.registry, self.options)
        return replace(self.registry.describe(), remarks=tuple(said))

    @contextlib.contextmanager
    def switched(self, **options: Unpack[HookOptions]) -> Iterator[HookHandle]:
        """Use other options for the length of a block; those not given stay as they are."""
        yield from self.block(options)

    def block(self, given: HookOptions) -> Iterator[HookHandle]:
        """Yield once, with these options in force."""
        pipeline, former = Pipeline.of(self.registry.model), self.registry.state
        options = replace(self.options, **given)
        refuse_options(pipeline, given.get("task_id"), options.virtual_tokens)
        proven: Container[str] | None = frozenset(self.registry)
        if options.share_prompt != self.options.share_prompt:
            proven = None

        def enter() -> HookHandle:
            self.registry.set_aside(options)  # a copy that is made in the block has the block's options
            wanted = wanted_hooks(pipeline, options, proven)
            self.registry.attach_all(wanted, note=looked_at(pipeline, wanted), path_of=pipeline.path_of)
            return self

        # Not so at the end of the block, in which the model may be trained or given another adapter.
        modes = Modes(pipeline)
        yield from block(lambda: attempt(enter, modes.restore), lambda: self.registry.put_back(former))

    def __enter__(self) -> HookHandle:
        if not self.active:
            raise HookError("these hooks were removed: attach them again, register_prompt_mask_hooks(model)")
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in asdict(self.options).items())
        return f"HookHandle({options}, {len(self.registry)} hooks)"


_handles: weakref.WeakKeyDictionary[nn.Module, HookHandle] = weakref.WeakKeyDictionary()
_OnModules = list[tuple[str, nn.Module, Dispatcher]]


def options_on(model: nn.Module) -> Options | None:
    """Return the options of the hooks on ``model``, also when they came along with a copied or unpickled model.

    Raises:
        HookError: If ``model`` shares a module with another model, whose hooks are on it.
    """
    handle = _handles.get(model)
    if handle is not None and handle.active:
        return handle.options
    pipeline = Pipeline.of(model)
    found = _hooks_in(pipeline)
    inner = _handle_inside(pipeline, found)
    return _options_of(pipeline, found) if inner is None else inner.options


def adopt_handle(model: nn.Module, pipeline: Pipeline | None = None) -> HookHandle | None:
    """Return the handle of the hooks on ``model``; make one if they came along with a copied or unpickled model.

    Raises:
        HookError: If ``model`` shares a module with another model, whose hooks are on it.
    """
    handle = _handles.get(model)
    if handle is not None and handle.active:
        return handle
    pipeline = Pipeline.of(model) if pipeline is None else pipeline
    found = _hooks_in(pipeline)
    inner = _handle_inside(pipeline, found)
    options = _options_of(pipeline, found) if inner is None else None
    if options is None:
        return inner
    handle = HookHandle(model, options, HookRegistry.adopt(model, options))
    handle.adopted(pipeline)
    return handle


def _hooks_in(pipeline: Pipeline) -> _OnModules:
    """Return the dispatchers of handles that have hooks on a model: those of its own, or of whatever it was made of."""
    found = dispatchers_on(pipeline.modules)
    return [one for one in found if isinstance(one[2].owner, Options) and one[2].entries]


def _handle_inside(pipeline: Pipeline, found: _OnModules) -> HookHandle | None:
    """Return the handle of a model that this one wraps, as ``torch.compile`` and ``DataParallel`` do."""
    hooked, poolings = {module for _, module, _ in found}, {pooling for _, pooling in pipeline.poolings}
    for other, its in list(_handles.items()):
        modules = set(other.modules()) if its.active else set()
        if hooked.isdisjoint(modules):
            continue
        if poolings <= modules and other in pipeline.path_of:
            return its
        raise HookError(f"a part of it has the hooks of another, {its!r}: call `.remove()` on that handle first")
    return None


def _options_of(pipeline: Pipeline, found: _OnModules) -> Options | None:
    """Return the options of the hooks that were found, if they are whole: on every Pooling, each where it was put."""
    hooked, poolings = {module for _, module, _ in found}, {pooling for _, pooling in pipeline.poolings}
    owners = {cast(Options, dispatcher.owner) for _, _, dispatcher in found}
    whole = poolings <= hooked and all(path == dispatcher.path for path, _, dispatcher in found)
    return owners.pop() if whole and len(owners) == 1 else None


def drop_leftovers(pipeline: Pipeline) -> None:
    """Take hooks off that no handle has: of a model of which a part was copied, or left by an interrupt."""
    found = dispatchers_on(pipeline.modules)
    for owner in {dispatcher.owner for _, _, dispatcher in found if isinstance(dispatcher.owner, Options)}:
        HookRegistry.adopt(pipeline.root, owner).reset()
