"""What a trace must know of the model besides its calls: adapters that learn prompts, modules that hide from hooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..compat import sentence_transformers as releases


class Adapter(NamedTuple):
    """The active adapter of one ``PeftModel``, of a method that learns prompts.

    Attributes:
        path: Where the ``PeftModel`` sits.
        name: The adapter's name.
        method: ``"PROMPT_TUNING"``.
        virtual_tokens: ``num_virtual_tokens`` of its config.
    """

    path: str
    name: str
    method: str
    virtual_tokens: int

    def __str__(self) -> str:
        return f"the active {self.method} adapter {self.name!r}"


class Gap(NamedTuple):
    """A module that ran, since modules inside it were called, but whose own call was never seen."""

    path: str
    module: str


def find_peft_models(modules: Mapping[nn.Module, tuple[str, ...]]) -> list[tuple[str, nn.Module]]:
    """Return every ``PeftModel`` with its path."""
    kind = releases.peft_class()
    return [] if kind is None else [(paths[0], module) for module, paths in modules.items() if isinstance(module, kind)]


def find_adapters(peft_models: Iterable[tuple[str, Any]]) -> tuple[Adapter, ...]:
    """Return the active adapters that learn prompts."""
    found = []
    for path, peft_model in peft_models:
        config = peft_model.active_peft_config
        if getattr(config, "is_prompt_learning", False) and config.num_virtual_tokens:
            name = str(peft_model.active_adapter)
            found.append(Adapter(path, name, releases.method_of(config), int(config.num_virtual_tokens)))
    return tuple(found)


def find_gaps(taps: Sequence[Any], called: Collection[str]) -> tuple[Gap, ...]:
    """Return the modules that were watched and never called while modules inside them were."""
    around = {""} if called else set()
    for path in called:
        while "." in path:
            path = path.rpartition(".")[0]
            around.add(path)
    return tuple(
        Gap(tap.paths[0], tap.kind)
        for tap in taps
        if tap.runs
        and tap.recorded
        and not any(path in called for path in tap.paths)
        and any(path in around for path in tap.paths)
    )
