"""What a handle attaches, and what of the model that depends on: so that it can tell when the model was changed."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..hooks.call import Hook
from ..hooks.wanted import Wanted
from .plan import CHECK, LOG, MAKE, Options, plan
from .refusals import fit_positions
from .replaced import RefuseReplaced, RefuseTooLong
from .sharing import EncodePromptOnce

_FIRST = MAKE - 2


def wanted_hooks(model: nn.Module, options: Options, proven: Container[str] | None = None) -> list[Wanted]:
    """Return the hooks that ``model`` needs, and those that see when it is changed, in the order in which they run."""
    planned = [Wanted(name, hook, to, order) for name, hook, to, order in plan(model, options, proven)]
    wanted = [*_watching(model, planned), *planned]
    return sorted(wanted, key=lambda one: (one.order, one.name))


def _watching(model: nn.Module, planned: list[Wanted]) -> Iterator[Wanted]:
    path_of = {module: path for path, module in model.named_modules()}
    needed: list[Any] = [one.to for one in planned if one.order not in (CHECK, LOG) and _is_needed(one.hook)]
    paths = tuple(dict.fromkeys(path_of[module] for module in needed))
    steps = {module for _, module in modules.steps_of(model)}
    for module in dict.fromkeys(needed):
        if module in steps:
            yield Wanted(f"replaced:{path_of[module]}", RefuseReplaced(paths), module, _FIRST)
    for path, transformer in releases.transformers_of(model):
        positions = backbones.position_count(transformer)
        if positions is not None and releases.prompt_configs(transformer):
            yield Wanted(f"length:{path}", RefuseTooLong(positions), transformer, _FIRST)


def _is_needed(hook: Hook) -> bool:
    """Tell whether an embedding is wrong without the hook: a prompt's network may run for each row as well."""
    return not isinstance(hook, EncodePromptOnce)


class Seen(NamedTuple):
    """What was looked at: hooks with their modules, and adapters. Modules are referred to weakly."""

    hooks: tuple[Any, ...]
    adapters: tuple[Any, ...]


def looked_at(model: nn.Module, wanted: Iterable[Wanted]) -> Seen:
    """Take down what attaching these hooks depends on."""
    hooks = tuple((one.name, type(one.hook), one.order, weakref.ref(one.to), _facts(one.hook)) for one in wanted)
    return Seen(hooks, tuple(_adapters(path, holder) for path, holder in cross.inputs_of(model)))


def _facts(hook: Hook) -> dict[str, Any]:
    """Return what a hook was made with, as far as it is plain: not what it keeps for itself."""
    return {
        key: value
        for key, value in vars(hook).items()
        if isinstance(value, (bool, int, float, str, tuple, type(None)))
        or (isinstance(value, dict) and not key.startswith("_"))
    }


def _adapters(path: str, holder: Any) -> tuple[Any, ...]:
    backbone = releases.backbone_of(holder)
    configs = getattr(backbone, "peft_config", None) or {}
    known = tuple((name, releases.method_of(config), _size(config)) for name, config in configs.items())
    return path, weakref.ref(backbone), known, _is_too_long(holder)


def _size(config: Any) -> int:
    return int(config.num_virtual_tokens) if getattr(config, "is_prompt_learning", False) else 0


def _is_too_long(holder: Any) -> bool:
    """Tell whether ``max_seq_length`` leaves no room for the virtual tokens: raised after the hooks were attached."""
    positions, longest = backbones.position_count(holder), holder.max_seq_length
    virtual = max(map(_size, releases.prompt_configs(holder).values()), default=0)
    if positions is None or not virtual:
        return False
    return longest is None or longest + virtual > positions


class Lengths:
    """How long texts may be, of every Transformer of a model: as it was, and as it was lowered."""

    def __init__(self, kept: Iterable[tuple[Any, int | None]] = ()) -> None:
        self._kept = list(kept)
        self._lowered: list[int | None] = []

    @classmethod
    def of(cls, model: nn.Module) -> Lengths:
        """Take down those of now."""
        return cls((holder, holder.max_seq_length) for _, holder in cross.inputs_of(model))

    def lower(self, model: nn.Module) -> None:
        """Leave room for virtual tokens, with a warning."""
        for holder, _ in self._kept:
            fit_positions(holder)
        self._lowered = [holder.max_seq_length for holder, _ in self._kept]

    def put_back(self) -> None:
        """Put those back that are still as they were lowered; what was changed since stays."""
        for (holder, former), lowered in zip(self._kept, self._lowered, strict=False):
            if lowered != former and holder.max_seq_length == lowered:
                holder.max_seq_length = former

    def restore(self) -> None:
        """Put all back."""
        for holder, former in self._kept:
            if holder.max_seq_length != former:
                holder.max_seq_length = former


class Modes:
    """What small forwards at attaching change for their length: the active adapters, and what is being trained."""

    def __init__(self, model: nn.Module) -> None:
        self._training = [module for module in model.modules() if module.training]
        backbones = [releases.backbone_of(holder) for _, holder in cross.inputs_of(model)]
        self._active = [(outer, outer.active_adapter) for outer in backbones if hasattr(outer, "active_peft_config")]

    def restore(self) -> None:
        """Put them back, where an interrupt hit what would have done so."""
        for outer, name in self._active:
            outer.active_adapter = name
        for module in self._training:
            module.training = True
