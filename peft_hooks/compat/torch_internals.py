"""The only file that reads PyTorch's private parts of a module: its hooks, children, calls, whether it is compiled.

There is no public way to list the hooks of a module, which is needed to find those of a copied or unpickled model,
those of other code, and those left behind; nor is there one to ask whether a module is compiled.
"""

from __future__ import annotations

import contextlib
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
    """Yield the modules at and below ``root`` that have hooks. Runs in every forward: it builds no set and no paths."""
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
    """Return the hooks around a module's forward, pre-hooks first."""
    return [hook for attribute in _FORWARD for hook in getattr(module, attribute).values()]


def pre_hooks_of(module: nn.Module) -> Iterator[Any]:
    """Return the hooks that run before a module's forward."""
    return iter(module._forward_pre_hooks.values())


# How PyTorch should call a hook: kept next to the hook itself, under the same key.
_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def drop_hooks(module: nn.Module, owner: object) -> None:
    """Remove the forward hooks that are methods of ``owner``.

    PyTorch's own way is the handle that registering returns, but an interrupt before it is stored loses it. Flags are
    removed before their hook, so that whatever an interrupt leaves is found again.
    """
    for attribute in _FORWARD:
        held = getattr(module, attribute)
        for key in [key for key, hook in held.items() if getattr(hook, "__self__", None) is owner]:
            for flags in _FLAGS:
                getattr(module, flags, {}).pop(key, None)
            held.pop(key, None)


def copied_without_hooks(value: Any, replaced: Iterable[tuple[Any, Any]] = ()) -> Any:
    """Return a deep copy of a model without any hooks, and with some objects replaced.

    The hooks are not even copied: they may hold whole models, and a dispatcher's copy would hold other hooks' places.

    Args:
        value: A module, or an object whose attributes are modules.
        replaced: Pairs of an object and its replacement, which the copy has wherever the original has the object.
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
        # transformers 5 captures hidden states by hooks, and sets this attribute where it attached them.
        vars(module).pop("_output_capturing_hooks_installed", None)
    return copied


def _parts(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    return [part for part in vars(value).values() if isinstance(part, nn.Module)]


def keys_taken() -> int:
    """Return the next key that PyTorch will give to a hook: all keys in use in this process are below it."""
    return RemovableHandle.next_id


def keep_keys_free(taken: int) -> None:
    """Keep PyTorch from reusing keys below ``taken``, which hooks from another process have."""
    RemovableHandle.next_id = max(RemovableHandle.next_id, taken)


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule that is registered under ``name``, or None.

    ``getattr`` would not do: since Sentence Transformers 5.4 a module assigned to ``auto_model`` is hidden behind a
    property of that name. It also costs a microsecond, because Python first raises and discards an AttributeError.
    """
    children = module._modules
    return children[name] if name in children else None  # noqa: SIM401 - those of a ScriptModule have no `get`


def module_at(root: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    """Return the module at a path, given as its parts, or None. Runs in every forward, so it must be fast."""
    module: nn.Module | None = root
    for part in parts:
        if part and module is not None:
            module = child_of(module, part)
    return module


_FAR = 40  # frames: a pipeline calls its modules directly from its forward, and a Router's are a few frames further in


def running_around(module: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    """Return the module whose forward is running in this thread and that has ``module`` at the path, or None.

    It runs in every forward, so it checks a frame's name first: reading the frame's locals takes longer.
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
    """Tell whether PyTorch allows hooks on a module: it refuses some kinds of TorchScript, but not traced modules."""
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
    """Return the parameter names of a forward that TorchScript compiled; None if it is plain Python."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    try:
        forward: Any = module.forward
        return tuple(argument.name for argument in forward.schema.arguments[1:])
    except Exception:  # each kind of TorchScript module has a different forward, and some have none
        return ()


def has_children(module: nn.Module) -> bool:
    """Tell whether a module has submodules, without the two generators and the set that ``children()`` makes."""
    return bool(module._modules)


def is_compiled(module: nn.Module) -> bool:
    """Tell whether ``torch.compile(module)`` made this module, or ``module.compile()`` was called."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # slow to import; if nobody did, nothing is compiled
    if dynamo is None:
        return False
    return isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None


def calls_of(module: nn.Module, enough: int | None = None) -> int:
    """Count the calls of ``module`` that are running in this thread; stop searching at ``enough``."""
    running, code = 0, nn.Module._call_impl.__code__  # each call has one frame of this code
    frame: FrameType | None = sys._getframe()
    while frame is not None and running != enough:
        running += frame.f_code is code and frame.f_locals.get("self") is module
        frame = frame.f_back
    return running


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Run operations that nobody else's mode sees: a counter of operations, say, or ``with torch.device(...)``."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield


def ends_recomputation(error: BaseException) -> bool:
    """Tell whether gradient checkpointing raised this to stop a recomputation early, once it has all that it needs."""
    module = sys.modules.get("torch.utils.checkpoint")
    kind = getattr(module, "_StopRecomputationError", None)
    return kind is not None and isinstance(error, kind)


def is_checkpointing() -> bool:
    """Tell whether this code runs inside gradient checkpointing, which computes a forward again for the backward."""
    module = sys.modules.get("torch.utils.checkpoint")
    frame: FrameType | None = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_code.co_filename == module.__file__:  # type: ignore[union-attr]
            return True
        frame = frame.f_back
    return False
