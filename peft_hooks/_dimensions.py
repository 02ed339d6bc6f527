"""``AssertDimensions``: named dimensions that must agree across the tensors and modules of one forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ._bindings import Bindings, Bound, Forward, Table, leave
from ._dimension_spec import Contract, Expected, Spec, parse
from ._dimension_values import all_inputs, all_outputs, input_of, not_there, output_of, parameters_of, shown, stacked
from ._format import dtype_of
from ._given import in_words
from ._hook import Call, Hook
from ._share import virtual_tokens_alone
from .errors import DimensionError, DimensionWarning

OnError = Literal["raise", "warn"]


class Reason(NamedTuple):
    """Why a check failed, and by how many positions ``seq`` differs: 0 where it is not ``seq`` that disagrees."""

    message: str
    difference: int = 0


class AssertDimensions(Hook):
    """Check named dimensions of a module's inputs and outputs. Reads shapes and dtypes only, never a value.

    A contract maps the names of tensors to their dimensions, and to their dtypes where those matter:
    ``{"token_embeddings!": "float: batch seq hidden=384", "attention_mask": "i64|bool: batch seq"}``.

    A dimension is a name, a size, ``name=size``, ``_`` (any size) or ``...`` (any number of dimensions, once, at the
    beginning, the end or between others). A name means one size in one forward: the first tensor that has it binds it,
    every other must agree, in this module and in those whose hooks share ``bindings``. A name that begins with an
    underscore, ``_width``, holds within one call of this module. A check that fails binds nothing, and a module that
    fails leaves bound what was bound before it.

    Dtypes have short names, ``f32``, ``bf16``, ``i64``, ``bool``, and there are the groups ``float``, ``int`` and
    ``complex``. A tensor that is not there is not checked, but with ``!`` after its name it has to be there.

    The name of an input is a key of the first argument, if that is a dict, or a parameter of ``forward``; of an output,
    a key, a number in a tuple, or an attribute. Dots go deeper: ``features.mask``, ``output.0``. The empty name is the
    first argument, or the output, itself. A list or tuple of tensors counts as their stack.

    Named dimensions that are bound across arguments are an idea of jaxtyping: https://docs.kidger.site/jaxtyping

    Args:
        inputs: A contract for what the module gets.
        outputs: A contract for what it returns.
        bindings: Shared by the hooks on the modules of one forward. By default this hook's own, new for every call.
        starts: Whether this module begins a forward, so that what was bound before is forgotten.
        ends: Whether this module ends a forward, so that what follows binds anew.
        causes: What a difference of so many positions in ``seq`` means, and what mends it, for the message:
            ``{10: "num_virtual_tokens of ...: attach ..."}``.
        on_error: ``"raise"`` a ``DimensionError``, or ``"warn"`` with a ``DimensionWarning``.
        unless: A key of a features dict that says that its tensors are laid out in another way: nothing is checked
            where it is there.

    Raises:
        ValueError: If a contract cannot be read.
        TypeError: If it is no mapping.
        DimensionError: In the forward. It names the module, the tensor, the dimension, and what bound it.

    Example:
        >>> import torch
        >>> from peft_hooks import AssertDimensions, HookRegistry
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> _ = HookRegistry(model).attach(AssertDimensions({"x": "batch seq", "mask": "batch seq"}), to="0")
        >>> model({"x": torch.zeros(2, 9), "mask": torch.zeros(2, 5)})
        Traceback (most recent call last):
        ...
        peft_hooks.errors.DimensionError: Identity '0' input: mask is [2, 5], but seq = 9 was bound by x [2, 9]: 4 fewer
    """

    def __init__(
        self,
        inputs: Contract | None = None,
        outputs: Contract | None = None,
        *,
        bindings: Bindings | None = None,
        starts: bool = False,
        ends: bool = False,
        causes: Mapping[int, str] | None = None,
        on_error: OnError = "raise",
        unless: str | None = None,
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error is 'raise' or 'warn', not {on_error!r}")
        for given in (inputs, outputs):
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(
                    f"expected dimensions by tensor, such as {{'x': 'batch seq 64'}}, got {in_words(given)}"
                )
        self.inputs = dict(inputs or {})
        self.outputs = dict(outputs or {})
        self._inputs, self._outputs = parse(self.inputs), parse(self.outputs)
        self._bindings = bindings
        self._starts = starts
        self._ends = ends
        self._causes = dict(causes or {})
        self._warns = on_error == "warn"
        self._unless = unless

    def before(self, call: Call) -> None:
        if virtual_tokens_alone():
            return  # of another batch than all that is bound
        # Without shared bindings the forward is this call: a module inside this one may have the same hook.
        forward = Forward() if self._bindings is None else self._bindings.enter(call, self._starts)
        call.notes[self] = _Names(forward, call.where)
        if self._inputs and not self._laid_out_otherwise(call.first):
            self._check(self._inputs, input_of, call, call, "input")

    def after(self, call: Call, output: Any) -> None:
        names = call.notes.get(self)
        if names is None:
            return  # attached while the module ran
        if self._outputs and not self._laid_out_otherwise(output):
            self._check(self._outputs, output_of, output, call, "output")
        leave(names.forward, call)
        if self._ends:
            names.forward.bound = {}

    def failed(self, call: Call, error: BaseException) -> None:
        if self in call.notes:
            call.notes[self].undo(call)

    def _laid_out_otherwise(self, features: Any) -> bool:
        return self._unless is not None and isinstance(features, (dict, Mapping)) and self._unless in features

    def _check(self, spec: Spec, find: Find, source: Any, call: Call, side: str) -> None:
        names: _Names = call.notes[self]
        bound, local = dict(names.forward.bound), dict(names.local)
        reason = disagreement(spec, find, source, bound, local, names.where)
        if reason is None:
            names.forward.bound, names.local = bound, local
        else:
            self._report(reason, call, side)

    def _report(self, reason: Reason, call: Call, side: str) -> None:
        message = f"{call.where} {side}: {reason.message}"
        cause = self._causes.get(reason.difference)
        if cause:
            message += f". {reason.difference} = {cause}"
        if self._warns:
            warnings.warn(message, DimensionWarning, stacklevel=2)
            return
        call.notes[self].undo(call)  # `failed` is for errors of the module, not for this hook's own
        raise DimensionError(message)


class _Names:
    """What a call may bind: names of its forward, and names of its own."""

    __slots__ = ("forward", "local", "where")

    def __init__(self, forward: Forward, where: str) -> None:
        self.forward = forward
        self.local: Table = {}
        self.where = where

    def undo(self, call: Call) -> None:
        """Go back to what was bound before the call."""
        former = leave(self.forward, call)
        if former is not None:
            self.forward.bound = former


Find = Callable[[Any, tuple[str, ...]], Any]


def disagreement(spec: Spec, find: Find, source: Any, bound: Table, local: Table, where: str) -> Reason | None:
    """Bind the dimensions of the tensors that ``find(source, parts)`` returns, in ``bound`` and ``local``.

    Returns:
        None, or why that fails.
    """
    for expected in spec:
        value = find(source, expected.parts)
        shape = value.shape if isinstance(value, Tensor) else _shape_of_no_tensor(expected, value, source)
        if shape is None:
            continue
        if isinstance(shape, Reason):
            return shape
        if expected.dtypes is not None:
            dtype = (value if isinstance(value, Tensor) else value[0]).dtype
            if dtype not in expected.dtypes:
                return Reason(f"{expected.label} is {dtype_of(dtype)} {shown(value)}, but should be {expected.kinds}")
        reason = _bind(expected, value, shape, bound, local, where)
        if reason is not None:
            return reason
    return None


def _shape_of_no_tensor(expected: Expected, value: Any, source: Any) -> torch.Size | Reason | None:
    """Return the shape of a list of tensors, None where nothing is to be checked, or why that is wrong."""
    shape = stacked(value)
    if isinstance(shape, str):
        return Reason(f"{expected.label} {shape}")
    if shape is None and (expected.required or (value is None and not _may_lack(source, expected.parts))):
        there = all_inputs(source) if isinstance(source, Call) else all_outputs(source)
        return Reason(not_there(expected.key, there))
    return shape


def _bind(expected: Expected, value: Any, shape: torch.Size, bound: Table, local: Table, where: str) -> Reason | None:
    dimensions = expected.head if expected.tail is None else expected.filled(len(shape))
    if len(shape) != len(dimensions):
        least = f"{'' if expected.tail is None else 'at least '}{len(dimensions)}"
        wanted = f"{least} dimension{'' if len(dimensions) == 1 else 's'} ({expected.dimensions})"
        return Reason(f"{expected.label} is {shown(value)}, but should have {wanted}")
    for size, (name, fixed, within) in zip(shape, dimensions):
        if fixed is not None and size != fixed:
            return Reason(f"{expected.label} is {shown(value)}, but {name or 'the size'} = {fixed} is declared")
        if name is None:
            continue
        table = local if within else bound
        known = table.get(name)
        if known is None:
            table[name] = (size, expected.label, shape, where)
        elif known[0] != size:
            message = _explain(expected.label, shown(value), name, size, known, where)
            return Reason(message, abs(size - known[0]) * (name == "seq"))
    return None


def _explain(label: str, shape: str, name: str, size: int, known: Bound, where: str) -> str:
    expected, tensor, its_shape, binder = known
    other = "" if binder == where else f" of {binder}"
    more = f"{abs(size - expected)} {'more' if size > expected else 'fewer'}"
    return f"{label} is {shape}, but {name} = {expected} was bound by {tensor} {list(its_shape)}{other}: {more}"


def _may_lack(source: Any, parts: tuple[str, ...]) -> bool:
    """Tell whether a tensor may be left out there: a dict may lack any key, but a tensor has no keys to lack."""
    if not isinstance(source, Call):
        return source is not None and not isinstance(source, Tensor)
    if isinstance(source.first, Mapping) or not parts or parts[0].isdigit():
        return True
    return parts[0] in parameters_of(source.module)
