"""The one file that reads what PyTorch keeps private of a module: its hooks, children, calls, whether it is compiled.

There is no public way to list the hooks of a module, which is what finds those of a copied or unpickled model, those
that somebody else attached, and those that were left behind; nor to ask whether a module is compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

_FORWARD = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
_ALL = {**_FORWARD, "_backward_pre_hooks": "backward pre-hook", "_backward_hooks": "backward hook"}


class Held(NamedTuple):
    """A hook as a module holds it.

    Attributes:
        kind: ``"forward hook"``, or another of PyTorch's four kinds.
        key: What PyTorch keeps it by: another hook has another.
        hook: What is called.
    """

    kind: str
    key: int
    hook: Any


def hooks_of(module: nn.Module) -> Iterator[Held]:
    """Yield every hook on a module itself, those of its submodules not among them."""
    for attribute, kind in _ALL.items():
        # A ScriptModule has no backward hooks.
        for key, hook in getattr(module, attribute, {}).items():
            yield Held(kind, key, hook)


def forward_hooks_of(module: nn.Module) -> list[Any]:
    """Return what is called around a module's forward, pre-hooks first."""
    return [hook for attribute in _FORWARD for hook in getattr(module, attribute).values()]


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule that is registered under ``name``, or None.

    Not ``getattr``: since 5.4 of Sentence Transformers a module assigned to ``auto_model`` is hidden behind a property
    of that name. And ``getattr`` costs a microsecond, as Python first raises an AttributeError and drops it.
    """
    children = module._modules
    return children[name] if name in children else None  # noqa: SIM401 - those of a ScriptModule have no `get`


def has_children(module: nn.Module) -> bool:
    """Tell whether there are modules inside; ``children()`` makes two generators and a set to tell."""
    return bool(module._modules)


def is_compiled(module: nn.Module) -> bool:
    """Tell whether ``torch.compile(module)`` made this module, or ``module.compile()`` was called."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # slow to import, and if no one did, nothing is compiled
    if dynamo is None:
        return False
    return isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None


def calls_of(module: nn.Module) -> int:
    """Return how many calls of ``module`` are running in this thread."""
    running, code = 0, nn.Module._call_impl.__code__  # of which each call has one frame
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        running += frame.f_code is code and frame.f_locals.get("self") is module
        frame = frame.f_back
    return running


def is_checkpointing() -> bool:
    """Tell whether gradient checkpointing is what runs this code: a forward that is computed again, for a backward."""
    module = sys.modules.get("torch.utils.checkpoint")
    frame: FrameType | None = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_code.co_filename == module.__file__:  # type: ignore[union-attr]
            return True
        frame = frame.f_back
    return False
