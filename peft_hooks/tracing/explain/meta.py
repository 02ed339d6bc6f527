"""Ask PyTorch what an operation returns, or refuses, using other tensors of the same shapes and dtypes.

Meta tensors have no values, so nothing is computed, nothing of the user's is touched, and no shape rules need to be
written down here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from .ghosts import Ghost, is_tensor, shape_of

# Any other object that is passed to a function may run code of its own.
_PLAIN = (int, float, complex, str, EllipsisType, torch.dtype, type(None))
_NUMBERS = ("size", "dim", "ndimension", "numel")  # methods that need neither strides nor values
_MOVES = ("to", "type", "cpu", "cuda")
_OF_AUTOGRAD = {"backward", "register_hook", "requires_grad_", "retain_grad"}  # meta tensors have no history
_NEW = ("new_empty", "new_full", "new_ones", "new_zeros")
_CREATE = (
    torch.zeros, torch.ones, torch.rand, torch.randn, torch.empty, torch.full, torch.arange, torch.eye,
    torch.linspace, torch.randint, torch.randperm,
)  # fmt: skip
_MOST = 10**6  # elements: an explanation makes no larger tensors

Like = Callable[[Tensor], Tensor]
"""Turns a meta tensor into the tensor that is passed to an operation."""


def worked_out(work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return what an operation would return, on the device of the first tensor; None if that is not known.

    Args:
        work: The operation.
        args: Tensors, ghosts and numbers, also inside lists.
        kwargs: Keyword arguments of the same kinds.
    """
    like = next((one for one in _flat([*args, *(kwargs or {}).values()]) if is_tensor(one)), None)
    if like is None:
        return None
    try:
        return _as_ghost(_run(work, args, kwargs), like.device)
    except Exception:  # operands that do not match give no result
        return None


def method(tensor: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what a method of a tensor would return, in shape and dtype; None if that is not known."""
    if name in _MOVES:
        return _moved(tensor, name, [*args, *kwargs.values()])
    if not is_method(name):
        return None
    made = worked_out(getattr(Tensor, name), [tensor, *args], kwargs)
    return made if name in _NUMBERS or is_tensor(made) or isinstance(made, tuple) else None


def created(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Ghost | None:
    """Return what ``torch.zeros`` or a similar function would return; None if that is not known."""
    if not any(function is one for one in _CREATE):
        return None
    device = torch.device(kwargs.get("device") or "cpu")
    made: Tensor = _run(function, args, {**kwargs, "device": "meta"})
    return Ghost(tuple(made.shape), made.dtype, device)


def on_meta(value: Any) -> Any:
    """Replace each tensor with a meta tensor, and leave numbers as they are.

    Raises:
        TypeError: If there is anything else in it.
    """
    return _other(value, lambda meta: meta)


def fails_alone(work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException) -> bool:
    """Tell whether an operation raises the same error on other tensors of these shapes and dtypes.

    It must fail on meta tensors. If the message differs from the kernel's, the kernel must fail on zeros and on ones.
    """
    try:
        _run(work, args, kwargs)
    except Exception as raised:
        if _is_like(raised, error):
            return True
    else:
        return False
    return fails_on_numbers(work, args, kwargs, error)


def fails_on_numbers(
    work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> bool:
    """Tell whether an operation raises the same error on zeros and on ones: some fail only when they compute."""
    return all(_fails_on(number, work, args, kwargs, error) for number in (0, 1))


def runs_on_numbers(work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether an operation runs on zeros and on ones of these shapes and dtypes."""
    try:
        for number in (0, 1):
            _run_on(number, work, args, kwargs)
    except Exception:
        return False
    return True


def _fails_on(
    number: int, work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> bool:
    try:
        _run_on(number, work, args, kwargs)
    except Exception as raised:
        return _is_like(raised, error)
    return False


def _run_on(number: int, work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run an operation on tensors full of a number, which takes nothing from the generator of random numbers."""
    with torch.random.fork_rng(devices=[]):
        _run(work, args, kwargs, functools.partial(_full, number))


def is_operation(function: Any) -> bool:
    """Tell whether a function is one of PyTorch's operations on tensors; ``torch.save`` is not."""
    try:
        return function in _operations()[0]
    except TypeError:  # it is not hashable
        return False


def is_method(name: str) -> bool:
    """Tell whether tensors have a method of this name that is an operation."""
    return name in _operations()[1] or name in _NEW or name == "unflatten"  # written in Python and not listed


@functools.cache
def _operations() -> tuple[frozenset[Any], frozenset[str]]:
    """Return the functions that take tensors, and the names of the methods of tensors."""
    found = torch.overrides.get_overridable_functions()
    methods = frozenset(getattr(one, "__name__", "") for one in found[Tensor]) - _OF_AUTOGRAD
    functions = (one for owner, of_it in found.items() if owner is not Tensor for one in of_it if callable(one))
    return frozenset(functions), methods


def _run(
    work: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    made: Like = lambda meta: meta,
) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_name = {name: _other(value, made) for name, value in (kwargs or {}).items()}
        return work(*(_other(one, made) for one in args), **by_name)


def _other(value: Any, made: Like) -> Any:
    """Replace each tensor with another one, leave numbers as they are, and raise ``TypeError`` for anything else."""
    shape = shape_of(value)
    if shape is not None:
        return made(torch.empty(shape, dtype=value.dtype, device="meta"))
    if type(value) in (tuple, list, torch.Size):
        return type(value)(_other(one, made) for one in value)
    if isinstance(value, slice):
        return slice(*(_other(one, made) for one in (value.start, value.stop, value.step)))
    if not isinstance(value, _PLAIN):
        raise TypeError(type(value).__name__)
    return value


def _full(number: int, meta: Tensor) -> Tensor:
    if meta.numel() > _MOST:
        raise ValueError(meta.numel())
    return torch.full_like(meta, number, device="cpu")


def _is_like(raised: BaseException, error: BaseException) -> bool:
    return type(raised) is type(error) and str(raised).partition("\n")[0] == str(error).partition("\n")[0]


def _moved(tensor: Any, name: str, given: Sequence[Any]) -> Ghost | None:
    """Return a ghost of the tensor with another dtype or on another device."""
    shape, dtype, device = shape_of(tensor), tensor.dtype, tensor.device
    if shape is None:
        return None
    for one in [*given, *([name] if name in ("cpu", "cuda") else [])]:
        if is_tensor(one):
            dtype, device = one.dtype, one.device
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, (str, torch.device)):
            device = torch.empty(0, device=one).device  # with its index
    return Ghost(shape, dtype, device)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _as_ghost(made: Any, device: torch.device) -> Any:
    if isinstance(made, Tensor):
        return Ghost(tuple(made.shape), made.dtype, device)
    if isinstance(made, (tuple, list)) and not isinstance(made, torch.Size):
        return tuple(_as_ghost(one, device) for one in made)
    return made
