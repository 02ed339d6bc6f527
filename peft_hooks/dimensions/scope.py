"""``assert_dimensions``: contracts on the modules of a model for a ``with`` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from .._public import public
from ..compat.torch_internals import takes_hooks
from ..hooks.registry import HookRegistry
from ..hooks.selectors import Selector
from .bindings import Bindings
from .contracts import Both, causes_of, checks
from .hook import AssertDimensions, OnError
from .spec import Contract

Contracts = Mapping[Selector, Contract | Both]

# The hook that begins a forward runs before those that bind.
_BEGIN, _CHECK = 0, 1


@public
@contextlib.contextmanager
def assert_dimensions(
    model: nn.Module,
    contracts: Contracts | None = None,
    *,
    on_error: OnError = "raise",
    causes: Mapping[int, str] | None = None,
) -> Iterator[HookRegistry]:
    """Check named dimensions in every forward of ``model`` inside the block, and leave no trace after it.

    A name means one size in all modules of one forward. Works on any model. If no contracts are given, each module of a
    Sentence Transformers model is checked against what ``contract_of`` returns.

    Args:
        model: Any ``nn.Module``.
        contracts: By selector, as ``HookRegistry.attach`` takes it: the contract of the module's inputs, or a pair of
            contracts for its inputs and its outputs. See ``AssertDimensions`` for how to write them.
        on_error: ``"raise"`` a ``DimensionError``, or ``"warn"`` with a ``DimensionWarning``.
        causes: Hints for the message by size difference in ``seq``. By default the virtual tokens of the model's
            adapters.

    Yields:
        The registry of the hooks; ``describe()`` says where they are and whether they were called.

    Raises:
        ValueError: If a contract cannot be read, or none is given and none is known for any module.
        SelectorError: If a selector matches no module.
        HookError: If a module is already compiled.
        DimensionError: In the forward.

    Example:
        >>> import torch
        >>> from peft_hooks import assert_dimensions
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> with assert_dimensions(model, {"0": {"": "batch ... 4"}, "1": ({}, {"": "b 2"})}):
        ...     model(torch.zeros(7, 5, 4))
        Traceback (most recent call last):
        ...
        peft_hooks.DimensionError: Linear '1' output: the tensor is [7, 5, 2], but should have 2 dimensions (b 2)
    """
    registry = HookRegistry(model)
    try:
        if contracts is None:
            _attach_known(registry, causes, on_error)
        else:
            _attach(registry, contracts, causes, on_error)
        yield registry
    finally:
        registry.clear()


def _attach_known(registry: HookRegistry, causes: Mapping[int, str] | None, on_error: OnError) -> None:
    model = registry.model
    for path, module, hook in checks(model, causes=causes_of(model) if causes is None else causes, on_error=on_error):
        registry.attach(hook, module, f"check:{path}", _CHECK)
    if not len(registry):
        raise ValueError(
            f"{type(model).__name__} has no module of Sentence Transformers, whose contracts are known: give your own, "
            f"such as {{'encoder': {{'input': 'batch seq hidden'}}}}"
        )


def _attach(registry: HookRegistry, contracts: Contracts, causes: Mapping[int, str] | None, on_error: OnError) -> None:
    model = registry.model
    # Sentence Transformers before 5.7 calls the steps of its pipeline, never the pipeline itself.
    pipeline = isinstance(model, nn.Sequential)
    bindings = Bindings(joined=pipeline)
    causes = causes_of(model) if causes is None else causes
    step = next(model.children(), None) if pipeline else None
    for module, name in ((model, "forward"), (step, "first step")):
        if module is not None and takes_hooks(module):
            registry.attach(AssertDimensions(bindings=bindings, starts=True), module, name, _BEGIN)
    for number, (selector, contract) in enumerate(contracts.items()):
        inputs, outputs = contract if isinstance(contract, tuple) else (contract, {})
        hook = AssertDimensions(inputs, outputs, bindings=bindings, causes=causes, on_error=on_error)
        name = selector if isinstance(selector, str) and selector else getattr(selector, "__name__", "root")
        registry.attach(hook, selector, f"check {number}: {name}", _CHECK)
