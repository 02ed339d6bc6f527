"""The hooks that a handle attaches, and the facts about the model that they depend on, to notice when it changes."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from ..compat import sentence_transformers as releases
from ..compat.pipeline import Encoder, Pipeline
from ..hooks.call import Hook
from ..hooks.wanted import Wanted
from .plan import CHECK, LOG, MAKE, Options, plan
from .refusals import fit_positions
from .replaced import RefuseReplaced, RefuseTooLong
from .sharing import EncodePromptOnce

_FIRST = MAKE - 2


def wanted_hooks(pipeline: Pipeline, options: Options, proven: Container[str] | None = None) -> list[Wanted]:
    """Return the hooks that a model needs, and those that notice changes to it, in the order in which they run."""
    planned = [Wanted(name, hook, to, order) for name, hook, to, order in plan(pipeline, options, proven)]
    wanted = [*_watching(pipeline, planned), *planned]
    return sorted(wanted, key=lambda one: (one.order, one.name))


def _watching(pipeline: Pipeline, planned: list[Wanted]) -> Iterator[Wanted]:
    path_of, steps = pipeline.path_of, {module for _, module in pipeline.steps}
    needed: list[Any] = [one.to for one in planned if one.order not in (CHECK, LOG) and _is_needed(one.hook)]
    paths = tuple(dict.fromkeys(path_of[module] for module in needed))
    for module in dict.fromkeys(needed):
        if module in steps:
            yield Wanted(f"replaced:{path_of[module]}", RefuseReplaced(paths), module, _FIRST)
    for encoder in pipeline.encoders:
        if encoder.is_transformer and encoder.prompts and encoder.positions is not None:
            yield Wanted(f"length:{encoder.path}", RefuseTooLong(encoder.positions), encoder.entry, _FIRST)


def _is_needed(hook: Hook) -> bool:
    """Tell whether embeddings would be wrong without the hook; running a prompt's network on every row is only slow."""
    return not isinstance(hook, EncodePromptOnce)


class Snapshot(NamedTuple):
    """A snapshot of hooks with their modules, and of adapters. Modules are referenced weakly."""

    hooks: tuple[Any, ...]
    adapters: tuple[Any, ...]


def snapshot_of(pipeline: Pipeline, wanted: Iterable[Wanted]) -> Snapshot:
    """Take a snapshot of what attaching these hooks depends on."""
    hooks = tuple((one.name, type(one.hook), one.order, weakref.ref(one.to), _facts(one.hook)) for one in wanted)
    return Snapshot(hooks, tuple(map(_adapters, pipeline.encoders)))


def _facts(hook: Hook) -> dict[str, Any]:
    """Return the plain values that a hook was made with, not what it keeps for itself."""
    return {
        key: value
        for key, value in vars(hook).items()
        if isinstance(value, (bool, int, float, str, tuple, type(None)))
        or (isinstance(value, dict) and not key.startswith("_"))
    }


def _adapters(encoder: Encoder) -> tuple[Any, ...]:
    configs = getattr(encoder.outer, "peft_config", None) or {}
    known = tuple((name, releases.method_of(config), _size(config)) for name, config in configs.items())
    return encoder.path, weakref.ref(encoder.outer), known, _is_too_long(encoder)


def _size(config: Any) -> int:
    return int(config.num_virtual_tokens) if getattr(config, "is_prompt_learning", False) else 0


def _is_too_long(encoder: Encoder) -> bool:
    """Tell whether ``max_seq_length`` leaves no room for virtual tokens, because it was raised since attaching."""
    virtual = max(map(_size, encoder.prompts.values()), default=0)
    if encoder.positions is None or not virtual:
        return False
    longest = encoder.module.max_seq_length
    return longest is None or longest + virtual > encoder.positions


class Lengths:
    """The ``max_seq_length`` of every Transformer of a model, before and after it was lowered."""

    def __init__(self, encoders: Iterable[Encoder] = ()) -> None:
        self._encoders = tuple(encoders)
        self._kept = [(encoder.module, encoder.module.max_seq_length) for encoder in self._encoders]
        self._lowered: list[int | None] = []

    def lower(self) -> None:
        """Lower it where that is needed to leave room for virtual tokens, with a warning."""
        for encoder in self._encoders:
            fit_positions(encoder)
        self._lowered = [holder.max_seq_length for holder, _ in self._kept]

    def put_back(self) -> None:
        """Restore values that are still as lowered; values changed since then stay."""
        for (holder, former), lowered in zip(self._kept, self._lowered, strict=False):
            if lowered != former and holder.max_seq_length == lowered:
                holder.max_seq_length = former

    def restore(self) -> None:
        """Restore all values."""
        for holder, former in self._kept:
            if holder.max_seq_length != former:
                holder.max_seq_length = former


class Modes:
    """What probes change while they run: the active adapters, and which modules are in training mode."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._training = [module for _, module in pipeline.modules if module.training]
        peft_models = [one.outer for one in pipeline.encoders if hasattr(one.outer, "active_peft_config")]
        self._active = [(outer, outer.active_adapter) for outer in peft_models]

    def restore(self) -> None:
        """Restore them, in case an interrupt prevented the probe from doing so."""
        for outer, name in self._active:
            outer.active_adapter = name
        for module in self._training:
            module.training = True
