"""What the doctor puts on modules for the length of a block: functions that see what goes in and what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Given = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Is told a module's path, the module, and the positional and the named arguments of its forward."""

Made = Callable[[str, nn.Module, Any], Any]
"""Is told a module's path, the module, and what came out. What it returns replaces that, unless it is None."""


@contextlib.contextmanager
def tapped(
    modules: Iterable[tuple[str, nn.Module]],
    *,
    came: Given | None = None,
    got: Given | None = None,
    gave: Made | None = None,
) -> Iterator[None]:
    """Call functions in every forward of some modules, for the length of a block.

    Args:
        modules: The modules, with their paths. Scripted ones are left out: PyTorch takes no hook on them.
        came: Called before any hook that is there already.
        got: Called after them, with what the module's own forward gets.
        gave: Called after all hooks, with what came out. Not called if the forward raised.
    """
    with contextlib.ExitStack() as handles:
        for path, module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if came is not None:
                before = module.register_forward_pre_hook(_given(path, came), prepend=True, with_kwargs=True)
                handles.callback(before.remove)
            if got is not None:
                ready = module.register_forward_pre_hook(_given(path, got), with_kwargs=True)
                handles.callback(ready.remove)
            if gave is not None:
                handles.callback(module.register_forward_hook(_made(path, gave)).remove)
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
    """Return the first argument of a forward, which is what modules of a pipeline pass on."""
    return args[0] if args else next(iter(kwargs.values()), None)


def copied(features: Mapping[str, Any]) -> dict[str, Any]:
    """Copy features, tensors too: modules change the dict, and before 5.4 the embeddings, in place."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in features.items()}
