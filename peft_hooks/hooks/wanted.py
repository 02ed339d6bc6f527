"""Turn the arguments of ``HookRegistry.attach`` into a state with the hook, or into an error that says why not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from ..compat.torch_internals import takes_hooks
from ..errors import HookError, HookNameError
from .board import Attached, Entry, Place, State, new_key
from .call import Hook
from .selectors import Roles, Selector, compiled_part, select


class Wanted(NamedTuple):
    """A hook to be attached: what ``HookRegistry.attach`` takes."""

    name: str
    hook: Hook
    to: Selector
    order: int


def having(
    state: State,
    wanted: Wanted,
    keys: dict[Place, int],
    model: nn.Module,
    roles: Callable[[nn.Module], Roles],
    path_of: Mapping[nn.Module, str] | None = None,
) -> State:
    """Return ``state`` with one more hook. Nothing is put on a module yet.

    Args:
        state: What is attached.
        wanted: The hook.
        keys: The keys of known places; keys of new places are added.
        model: The root.
        roles: Finds the roles of a model.
        path_of: The paths of modules that need not be searched for.

    Raises:
        HookNameError: If the name is taken.
        SelectorError: If no module is selected.
        HookError: If a module is already compiled, or is a TorchScript module that takes no hooks.
    """
    name, hook, to, order = wanted
    if name in state.hooks:
        raise HookNameError(f"a hook named {name!r} is attached already: detach({name!r}) first, or take another name")
    turn = state.next_turn()
    entries: dict[str, Entry] = {}
    known: dict[int, Place] = {}
    if isinstance(to, nn.Module) and path_of is not None and to in path_of:
        selected = [(path_of[to], to)]
    else:
        selected = select(model, to, roles)
    for path, module in selected:
        _refuse_compiled(model, path, name)
        _refuse_scripted(module, path, name)
        place = Place(path, weakref.ref(module))
        key = keys.setdefault(place, new_key())
        known[key] = place
        entries[path] = Entry(name, hook, order, turn, key)
    return state.having(name, Attached(hook, order, turn, entries, since=state.calls()), known)


def _refuse_compiled(model: nn.Module, path: str, name: str) -> None:
    compiled = compiled_part(model, path)
    if compiled is not None:
        raise HookError(
            f"{compiled or type(model).__name__!r} is compiled already, and PyTorch leaves out hooks that are "
            f"attached after torch.compile: attach {name!r} first, then compile"
        )


def _refuse_scripted(module: nn.Module, path: str, name: str) -> None:
    if not takes_hooks(module):
        where = repr(path) if path else "the model"
        raise HookError(
            f"{where} is a {type(module).__name__}: TorchScript runs it without Python hooks, so {name!r} cannot be "
            f"attached there: select the modules around it"
        )
