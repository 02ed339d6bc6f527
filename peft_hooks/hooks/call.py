"""``Hook``, the base class of hooks, and ``Call``, which tells them about one forward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from .._public import public
from ..compat.torch_internals import scripted_parameters

STARTING, NOTHING = object(), object()


@public
class Call:
    """One call of one module, shared by ``before``, ``after`` and ``failed`` of every hook on it.

    Attributes:
        module: The module that is called (a replica, under ``DataParallel``).
        path: The path under which the hooks were attached, such as ``"0.model"``; ``""`` is the root.
        args: Positional arguments that the module gets. A hook's ``before`` may assign another tuple.
        kwargs: Keyword arguments that the module gets. A hook's ``before`` may assign another dict.
        given_args: ``args`` as they came in, before any hook of this registry replaced them.
        given_kwargs: ``kwargs`` as they came in.
        notes: What a hook's ``before`` leaves for its own ``after`` or ``failed``, with the hook itself as the key, or
            for hooks on modules further in, under a key that they know.
        on_other_rows: Whether a hook is running the module's forward on rows of its own, not on the call's batch.

    Example:
        >>> import torch
        >>> from peft_hooks import Call
        >>> call = Call(torch.nn.Identity(), "1.pooler", (torch.zeros(2, 3),), {})
        >>> call.where, tuple(call.first.shape)
        ("Identity '1.pooler'", (2, 3))
        >>> call.first = torch.ones(2, 4)  # what the module gets; what came in stays in given_first
        >>> tuple(call.args[0].shape), tuple(call.given_first.shape)
        ((2, 4), (2, 3))
    """

    __slots__ = (
        "_around",
        "_entries",
        "_failures",
        "_outer",
        "_owner",
        "_same",
        "_visible",
        "args",
        "given_args",
        "given_kwargs",
        "kwargs",
        "module",
        "notes",
        "on_other_rows",
        "path",
    )

    def __init__(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module = module
        self.path = path
        self.args = self.given_args = args
        self.kwargs = self.given_kwargs = kwargs
        self.notes: dict[Any, Any] = {}
        self.on_other_rows = False
        # The call that began before this one and is still running, and whether it is the same one for another registry.
        self._outer: Call | None = None
        self._same = False
        # For the dispatcher: which one began the call, what runs in it, the exception being handled around the forward,
        # and whether a frame on Python's stack shows that the call is running.
        self._owner: object = None
        self._entries: tuple[Any, ...] = ()
        self._around: object = STARTING
        self._failures: list[tuple[Call, BaseException]] | None = None  # of inner calls, until they leave this one
        self._visible = False

    @property
    def first(self) -> Any:
        """The first argument: in a Sentence Transformers module, the features dict."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @first.setter
    def first(self, value: Any) -> None:
        if self.args:
            self.args = (value, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, next(iter(self.kwargs)): value}

    @property
    def given_first(self) -> Any:
        """The first argument as it came in, before any hook of this registry replaced it."""
        return self.given_args[0] if self.given_args else next(iter(self.given_kwargs.values()), None)

    @property
    def parent(self) -> Call | None:
        """The call around this one in the same thread, of a module with hooks of any registry; or None."""
        return next(self.enclosing(), None)

    def enclosing(self) -> Iterator[Call]:
        """Yield the calls around this one, innermost first: one for each registry that has hooks on a module."""
        outer, same = self._outer, self._same
        while outer is not None:
            if not same:
                yield outer
            same = same and outer._same
            outer = outer._outer

    @property
    def where(self) -> str:
        """The module as text: ``"Pooling '1'"``."""
        return f"{type(self.module).__name__} {self.path!r}"


@public
class Hook:
    """Base class of forward hooks. Override what you need; methods that are not overridden are never called.

    One hook may sit on many modules and run in many threads: keep what belongs to a call in ``call.notes[self]``, not
    on ``self``. A hook that holds only plain data travels with the model through ``pickle`` and ``deepcopy``.

    Example:
        >>> import torch
        >>> from peft_hooks import Hook, HookRegistry
        >>> class Double(Hook):
        ...     def after(self, call, output):
        ...         return output * 2
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with HookRegistry(model).attached(Double(), to="0"):
        ...     model(torch.ones(1))
        tensor([2.])
    """

    def before(self, call: Call) -> None:
        """Run before the module. Assign ``call.args`` or ``call.kwargs`` to change what it gets."""

    def after(self, call: Call, output: Any) -> Any:
        """Run after the module. Return a replacement for the output, or None to keep it."""

    def failed(self, call: Call, error: BaseException) -> None:
        """Run when the module, or a hook on it from outside this registry, raised ``error``, which propagates.

        It runs once the error has left every module with hooks, the innermost module's hooks first. A call whose error
        is caught inside a forward has not failed, nor has one that gradient checkpointing stops with its own exception.
        """

    def _aborted(self, call: Call) -> None:
        """Run, in this library's own hooks, when a call ends without an output: failed, stopped, or caught."""

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items() if not key.startswith("_"))
        return f"{type(self).__name__}({options})"


def positional(function: Any, skip: int) -> tuple[str, ...]:
    """Return the names of a function's positional parameters after the first ``skip``; none if it hides them."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def of_module(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's ``forward``."""
    scripted = scripted_parameters(module)
    kind: Any = type(module)
    return of_class(kind) if scripted is None else scripted


@functools.cache
def of_class(kind: Any) -> tuple[str, ...]:
    """Return the names of the positional parameters of a class's ``forward``; read once per class."""
    return positional(kind.forward, 1)
