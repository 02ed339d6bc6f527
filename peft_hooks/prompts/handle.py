"""``HookHandle``: remove, refresh or switch all hooks of a model at once."""

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
from .watched import Lengths, Modes, snapshot_of, wanted_hooks

if TYPE_CHECKING:
    from typing_extensions import Unpack


@public
class HookHandle:
    """The hooks that ``register_prompt_mask_hooks`` put on a model. As a context manager, it removes them at the end.

    ``register_prompt_mask_hooks`` makes the handle, one per model. It does not keep the model alive.

    Attributes:
        registry: The ``HookRegistry`` of these hooks; put your own hooks into another one.

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
        """The options that the hooks were attached with."""
        return cast(Options, self.registry.owner)

    @property
    def active(self) -> bool:
        """Whether the hooks are on the model."""
        return len(self.registry) > 0

    def remove(self) -> None:
        """Remove every hook, and restore ``max_seq_length`` if it was lowered. A second call does nothing."""
        surely(self._take_off)

    def _take_off(self) -> None:
        self.registry.reset()
        self._lengths.put_back()

    def refresh(self) -> None:
        """Attach again, after a module was replaced or adapters were added or deleted. If refused, nothing changes.

        Raises:
            UnsupportedModelError: If the embeddings can no longer be correct; ``remove()`` removes the hooks.
            HookError: If the model has the hooks of another handle.
        """
        self.attach(Pipeline.of(self.registry.model))

    def attach(self, pipeline: Pipeline) -> None:
        """Attach the hooks to a model that has just been read into ``pipeline``."""
        model = pipeline.root
        other = _active_on(model)
        if other is not None and other is not self:
            raise HookError(f"the model has the hooks of another handle, {other!r}: call `.remove()` on it first")
        attempt(lambda: self._attach(pipeline), self.former(pipeline))

    def former(self, pipeline: Pipeline) -> Callable[[], None]:
        """Return a function that restores the hooks, and what attaching changes on the model, to the current state."""
        state, lengths = self.registry.state, self._lengths
        now, modes = Lengths(pipeline.encoders), Modes(pipeline)

        def restore() -> None:
            self.registry.restore(state)
            now.restore()
            modes.restore()
            self._lengths = lengths

        return restore

    def _attach(self, pipeline: Pipeline) -> None:
        """Plan with the hooks set aside, so that the bare model is measured; then attach in one step."""
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
        self.registry.attach_all(wanted, note=snapshot_of(pipeline, wanted), path_of=pipeline.path_of)

    def fits(self) -> bool:
        """Tell whether attaching to the model as it is now would give the same hooks."""
        pipeline = Pipeline.of(self.registry.model)
        try:
            wanted = wanted_hooks(pipeline, self.options, frozenset(self.registry))
        except UnsupportedModelError:
            return False
        return bool(snapshot_of(pipeline, wanted) == self.registry.state.note)

    def adopted(self, pipeline: Pipeline) -> None:
        """Take over the hooks that came along with a copied model, parts of which may have been replaced."""
        state = self.registry.state
        _handles[pipeline.root] = self
        try:
            wanted = wanted_hooks(pipeline, self.options, frozenset(self.registry))
        except UnsupportedModelError:
            return  # `refresh` will say so
        if state.where() == {(one.name, one.to) for one in wanted}:
            self.registry.restore(replace(state, note=snapshot_of(pipeline, wanted)))

    def describe(self) -> HookTable:
        """List the hooks: module, role, order, calls, why one never fired, and whether virtual tokens are shared."""
        said = remarks(self.registry.model, self.options.share_prompt, self.registry, self.options)
        return replace(self.registry.describe(), remarks=tuple(said))

    @contextlib.contextmanager
    def switched(self, **options: Unpack[HookOptions]) -> Iterator[HookHandle]:
        """Use other options for a ``with`` block; options that are not given stay as they are."""
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
            self.registry.set_aside(options)  # a copy made inside the block has the block's options
            wanted = wanted_hooks(pipeline, options, proven)
            self.registry.attach_all(wanted, note=snapshot_of(pipeline, wanted), path_of=pipeline.path_of)
            return self

        # Modes are not restored at the end of the block, which may train the model or switch adapters.
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
    """Return the options of the hooks on ``model``, even if they came along with a copied or unpickled model.

    Raises:
        HookError: If ``model`` shares a module with another model, whose hooks are on it.
    """
    found = _active_on(model) or _found_in(Pipeline.of(model))
    return found.options if isinstance(found, HookHandle) else found


def adopt_handle(model: nn.Module, pipeline: Pipeline | None = None) -> HookHandle | None:
    """Return the handle of the hooks on ``model``; make one if they came along with a copied or unpickled model.

    Raises:
        HookError: If ``model`` shares a module with another model, whose hooks are on it.
    """
    handle = _active_on(model)
    if handle is not None:
        return handle
    pipeline = Pipeline.of(model) if pipeline is None else pipeline
    found = _found_in(pipeline)
    if not isinstance(found, Options):
        return found
    handle = HookHandle(model, found, HookRegistry.adopt(model, found))
    handle.adopted(pipeline)
    return handle


def _active_on(model: nn.Module) -> HookHandle | None:
    """Return the handle of a model, if its hooks are on."""
    handle = _handles.get(model)
    return handle if handle is not None and handle.active else None


def _found_in(pipeline: Pipeline) -> HookHandle | Options | None:
    """Return the handle of a model that this one wraps, or the options of hooks that came along without a handle."""
    # Dispatchers of the model's own handle, or of handles of models that its parts come from.
    on_it = dispatchers_on(pipeline.modules)
    found = [one for one in on_it if isinstance(one[2].owner, Options) and one[2].entries]
    return _handle_inside(pipeline, found) or _options_of(pipeline, found)


def _handle_inside(pipeline: Pipeline, found: _OnModules) -> HookHandle | None:
    """Return the handle of a model that this one wraps, as ``torch.compile`` and ``DataParallel`` wrap models."""
    hooked, poolings = {module for _, module, _ in found}, {pooling for _, pooling in pipeline.poolings}
    for other, its in list(_handles.items()):
        modules = set(other.modules()) if its.active else set()
        if hooked.isdisjoint(modules):
            continue
        if poolings <= modules and other in pipeline.path_of:
            return its
        raise HookError(f"part of the model has the hooks of another handle, {its!r}: call `.remove()` on it first")
    return None


def _options_of(pipeline: Pipeline, found: _OnModules) -> Options | None:
    """Return the options of the hooks found, if they are complete: on every Pooling, each at its original path."""
    hooked, poolings = {module for _, module, _ in found}, {pooling for _, pooling in pipeline.poolings}
    owners = {cast(Options, dispatcher.owner) for _, _, dispatcher in found}
    whole = poolings <= hooked and all(path == dispatcher.path for path, _, dispatcher in found)
    return owners.pop() if whole and len(owners) == 1 else None


def drop_leftovers(pipeline: Pipeline) -> None:
    """Remove hooks that belong to no handle: copied with part of another model, or left by an interrupt."""
    found = dispatchers_on(pipeline.modules)
    for owner in {dispatcher.owner for _, _, dispatcher in found if isinstance(dispatcher.owner, Options)}:
        HookRegistry.adopt(pipeline.root, owner).reset()
