"""The one file that reads what PyTorch keeps private of a module: its hooks, children, calls, whether it is compiled.

There is no public way to list the hooks of a module, which is what finds those of a copied or unpickled model, those
that somebody else attached, and those that were left behind; nor to ask whether a module is compiled.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils.hooks import RemovableHandle

_FORWARD = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
_ALL = {**_FORWARD, "_backward_pre_hooks": "backward pre-hook", "_backward_hooks": "backward hook"}


class ModuleHook(NamedTuple):
    """A hook as a module holds it.

    Attributes:
        kind: ``"forward hook"``, or another of PyTorch's four kinds.
        key: The key under which PyTorch keeps it; no two hooks share one.
        hook: The callable.
    """

    kind: str
    key: int
    hook: Any


def hooks_of(module: nn.Module) -> Iterator[ModuleHook]:
    """Yield every hook on a module itself, not on its submodules."""
    for attribute, kind in _ALL.items():
        # A ScriptModule has no backward hooks.
        for key, hook in getattr(module, attribute, {}).items():
            yield ModuleHook(kind, key, hook)


def hooked_modules(root: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules at and below ``root`` that have hooks. Asked in every forward: no set and no paths."""
    waiting = [root]
    while waiting:
        module = waiting.pop()
        held = module._forward_hooks or module._forward_pre_hooks
        # A ScriptModule has no backward hooks.
        if held or getattr(module, "_backward_hooks", None) or getattr(module, "_backward_pre_hooks", None):
            yield module
        waiting += [child for child in module._modules.values() if child is not None]


_GLOBAL = tuple(f"_global{attribute}" for attribute in _ALL)


def has_global_hooks() -> bool:
    """Tell whether there are hooks that PyTorch runs on every module (``register_module_forward_hook``)."""
    return any(getattr(torch_modules, attribute, None) for attribute in _GLOBAL)


def forward_hooks_of(module: nn.Module) -> list[Any]:
    """Return what is called around a module's forward, pre-hooks first."""
    return [hook for attribute in _FORWARD for hook in getattr(module, attribute).values()]


def pre_hooks_of(module: nn.Module) -> Iterator[Any]:
    """Return what is called before a module's forward."""
    return iter(module._forward_pre_hooks.values())


# How PyTorch is to call a hook, next to the hook itself and by the same key.
_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def drop_hooks(module: nn.Module, owner: object) -> None:
    """Take the forward hooks off that are methods of ``owner``.

    PyTorch's own way is the handle that registering returns, which an interrupt before it is kept loses. A flag goes
    before its hook, so that what an interrupt leaves is found again.
    """
    for attribute in _FORWARD:
        held = getattr(module, attribute)
        for key in [key for key, hook in held.items() if getattr(hook, "__self__", None) is owner]:
            for flags in _FLAGS:
                getattr(module, flags, {}).pop(key, None)
            held.pop(key, None)


def copied_without_hooks(value: Any, replaced: Iterable[tuple[Any, Any]] = ()) -> Any:
    """Return a deep copy of a model in which no module has a hook, and in which some objects are others.

    Nothing of the hooks is copied: they may hold whole models, and a dispatcher's copy would hold other hooks' places.

    Args:
        value: A module, or what has modules.
        replaced: Pairs of an object and of what stands in its place in the copy, wherever the copy has it.
    """
    memo: dict[int, Any] = {id(former): new for former, new in replaced}
    modules = [module for part in _parts(value) for module in part.modules()]
    for module in modules:
        for attribute in (*_ALL, *_FLAGS):
            held = getattr(module, attribute, None)
            if isinstance(held, dict):
                memo[id(held)] = OrderedDict()
    copied = copy.deepcopy(value, memo)
    for module in (module for part in _parts(copied) for module in part.modules()):
        # transformers 5 captures hidden states by hooks, and has this where it has put them on.
        vars(module).pop("_output_capturing_hooks_installed", None)
    return copied


def _parts(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    return [part for part in vars(value).values() if isinstance(part, nn.Module)]


def keys_taken() -> int:
    """Return the number below which PyTorch has given keys to hooks in this process."""
    return RemovableHandle.next_id


def keep_keys_free(taken: int) -> None:
    """Have PyTorch give no key below ``taken`` any more: those of hooks that came from another process."""
    RemovableHandle.next_id = max(RemovableHandle.next_id, taken)


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule that is registered under ``name``, or None.

    Not ``getattr``: since 5.4 of Sentence Transformers a module assigned to ``auto_model`` is hidden behind a property
    of that name. And ``getattr`` costs a microsecond, as Python first raises an AttributeError and drops it.
    """
    children = module._modules
    return children[name] if name in children else None  # noqa: SIM401 - those of a ScriptModule have no `get`


def module_at(root: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    """Return the module at a path, given in its parts, or None. Asked in every forward."""
    module: nn.Module | None = root
    for part in parts:
        if part and module is not None:
            module = child_of(module, part)
    return module


_FAR = 40  # frames: a pipeline calls its modules from its forward, a Router's from a few frames further in


def running_around(module: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    """Return the module whose forward runs in this thread, and that has ``module`` at the path; or None.

    Asked in every forward: a ``forward`` is known by its name before its locals are looked at, which takes longer.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FAR):
        if frame is None:
            return None
        if frame.f_code.co_name == "forward":
            outer = frame.f_locals.get("self")
            if isinstance(outer, nn.Module) and outer is not module and module_at(outer, parts) is module:
                return outer
        frame = frame.f_back
    return None


def takes_hooks(module: nn.Module) -> bool:
    """Tell whether PyTorch takes hooks on a module: of TorchScript it refuses some kinds, and takes traced ones."""
    if not isinstance(module, torch.jit.ScriptModule):
        return True
    try:
        module.register_forward_pre_hook(_nothing).remove()
        module.register_forward_hook(_nothing).remove()
    except Exception:  # a RuntimeError that names the method
        return False
    return True


def _nothing(*given: Any) -> None:
    return None


def scripted_parameters(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the parameters of a forward that TorchScript compiled; None if it is Python's."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    try:
        forward: Any = module.forward
        return tuple(argument.name for argument in forward.schema.arguments[1:])
    except Exception:  # each kind of module of TorchScript has another forward, and some have none
        return ()


def has_children(module: nn.Module) -> bool:
    """Tell whether there are modules inside; ``children()`` makes two generators and a set to tell."""
    return bool(module._modules)


def is_compiled(module: nn.Module) -> bool:
    """Tell whether ``torch.compile(module)`` made this module, or ``module.compile()`` was called."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # slow to import, and if no one did, nothing is compiled
    if dynamo is None:
        return False
    return isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None


def calls_of(module: nn.Module, enough: int | None = None) -> int:
    """Return how many calls of ``module`` are running in this thread; the search ends when there are ``enough``."""
    running, code = 0, nn.Module._call_impl.__code__  # of which each call has one frame
    frame: FrameType | None = sys._getframe()
    while frame is not None and running != enough:
        running += frame.f_code is code and frame.f_locals.get("self") is module
        frame = frame.f_back
    return running


def ends_recomputation(error: BaseException) -> bool:
    """Tell whether gradient checkpointing raised this to end what it computes again: it has all that it needs."""
    module = sys.modules.get("torch.utils.checkpoint")
    kind = getattr(module, "_StopRecomputationError", None)
    return kind is not None and isinstance(error, kind)


def is_checkpointing() -> bool:
    """Tell whether gradient checkpointing is what runs this code: a forward that is computed again, for a backward."""
    module = sys.modules.get("torch.utils.checkpoint")
    frame: FrameType | None = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_code.co_filename == module.__file__:  # type: ignore[union-attr]
            return True
        frame = frame.f_back
    return False
