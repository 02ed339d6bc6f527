"""What the doctor attaches to modules within a block: functions that see what goes in and what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Given = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Called with a module's path, the module, and the positional and keyword arguments of its forward."""

Made = Callable[[str, nn.Module, Any], Any]
"""Called with a module's path, the module and its output. What it returns replaces the output, unless it is None."""


@contextlib.contextmanager
def tapped(
    modules: Iterable[tuple[str, nn.Module]],
    *,
    given: Given | None = None,
    received: Given | None = None,
    returned: Made | None = None,
) -> Iterator[None]:
    """Call functions in every forward of some modules, within a block.

    Args:
        modules: The modules, with their paths. Scripted modules are skipped: PyTorch accepts no hooks on them.
        given: Called before any hook that is already there, with what the caller gave.
        received: Called after these hooks, with what the module's own forward gets.
        returned: Called after all hooks, with the output. Not called if the forward raised.
    """
    with contextlib.ExitStack() as handles:
        for path, module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if given is not None:
                before = module.register_forward_pre_hook(_given(path, given), prepend=True, with_kwargs=True)
                handles.callback(before.remove)
            if received is not None:
                ready = module.register_forward_pre_hook(_given(path, received), with_kwargs=True)
                handles.callback(ready.remove)
            if returned is not None:
                handles.callback(module.register_forward_hook(_made(path, returned)).remove)
        yield


def _given(path: str, tell: Given) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tell(path, module, args, kwargs)

    return hook


def _made(path: str, tell: Made) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return tell(path, module, output)

    return hook


def features_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a forward: in a pipeline, the features."""
    return args[0] if args else next(iter(kwargs.values()), None)


def copied(features: Mapping[str, Any]) -> dict[str, Any]:
    """Copy features with their tensors: modules change the dict and, before 5.4, the embeddings in place."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in features.items()}
