"""``AssertDimensions``: named dimensions that must agree across the tensors and modules of one forward."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch.compiler import is_compiling

from .._arguments import in_words
from .._public import public
from ..errors import DimensionError, DimensionWarning
from ..hooks.call import Call, Hook
from .bindings import UNBOUND, Bindings, Forward, Table
from .check import Reason, disagreement, shapes_in
from .lookup import input_of, output_of
from .spec import Contract, parse

OnError = Literal["raise", "warn"]

_REMEMBERED = 1024  # combinations of shapes: as many lengths as a tokenizer makes, in a few sizes of batches


@public
class AssertDimensions(Hook):
    """Check named dimensions of a module's inputs and outputs. Reads shapes and dtypes only, never a value.

    A contract maps the names of tensors to their dimensions, and to their dtypes where those matter:
    ``{"token_embeddings!": "float: batch seq hidden=384", "attention_mask": "i64|bool: batch seq"}``.

    A dimension is a name, a size, ``name=size``, ``_`` (any size) or ``...`` (any number of dimensions, once, at the
    beginning, the end or between others). A name means one size in one forward: the first tensor that has it binds it,
    every other must agree, in this module and in those whose hooks share ``bindings``. A name after a question mark,
    ``?width``, holds within one call of this module, and one that begins with an underscore, ``_width=384``, is not
    checked at all, as in jaxtyping. A check that fails binds nothing, and a module that
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
        causes: What a difference of so many positions in ``seq`` means, and the fix, for the message:
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
        peft_hooks.DimensionError: Identity '0' input: mask is [2, 5], but seq = 9 was bound by x [2, 9]: 4 fewer
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
        # What was found right where, and the tables before and after. Tables are never changed, so that the identity of
        # one that is kept here tells what is in it.
        self._right: dict[tuple[Any, ...], tuple[Table, Table, Table, Table]] = {}

    def before(self, call: Call) -> None:
        if any(outer.on_other_rows for outer in call.enclosing()):
            return  # of another batch than all that is bound
        # Without shared bindings the forward is this call: a module inside this one may have the same hook.
        forward = Forward() if self._bindings is None else self._bindings.enter(call, self._starts)
        names = call.notes[self] = _Names(forward, call.notes.get(self._bindings, UNBOUND))
        if self._inputs:
            self._check(names, call, call)

    def after(self, call: Call, output: Any) -> None:
        names: _Names | None = call.notes.get(self)
        if names is None:
            return  # attached while the module ran
        if self._outputs:
            self._check(names, call, output)
        if self._ends:
            names.forward.bound = UNBOUND

    def _aborted(self, call: Call) -> None:
        if self in call.notes:
            call.notes[self].undo()

    def _check(self, names: _Names, call: Call, source: Any) -> None:
        """Bind the dimensions of what goes in, where ``source`` is the call, or of the output, or report.

        What was right once is not looked at again: the same shapes, with the same bound before them.
        """
        inward = source is call
        spec, find, features = (self._inputs, input_of, call.first) if inward else (self._outputs, output_of, source)
        is_dict = isinstance(features, (dict, Mapping))  # dict first: the abstract class is slow to ask
        if is_dict and self._unless is not None and self._unless in features:
            return
        before = names.forward.bound, names.local
        shapes = shapes_in(spec, find, features, source) if is_dict and not is_compiling() else None
        place: tuple[Any, ...] | None = None
        if shapes is not None:  # else it is not asked at all: what is compiled would depend on all that it knows
            place = call.path, type(call.module), inward, shapes, id(before[0]), id(before[1])
            try:
                known = self._right.get(place)
            except TypeError:  # sizes that are symbols have no hash
                known = place = None
            if known is not None:
                names.forward.bound, names.local = known[2:]
                return
        bound, local = dict(before[0]), dict(before[1])
        reason = disagreement(spec, find, source, bound, local, call.where)
        if reason is not None:
            self._report(reason, call, "input" if inward else "output")
            return
        names.forward.bound, names.local = bound, local
        if place is not None:
            if len(self._right) >= _REMEMBERED:
                self._right.clear()
            self._right[place] = (*before, bound, local)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_right": {}}

    def _report(self, reason: Reason, call: Call, side: str) -> None:
        message = f"{call.where} {side}: {reason.message}"
        cause = self._causes.get(reason.difference)
        if cause:
            message += f". {reason.difference} = {cause}"
        if self._warns:
            warnings.warn(message, DimensionWarning, stacklevel=2)
            return
        call.notes[self].undo()  # `failed` is for errors of the module, not for this hook's own
        raise DimensionError(message)


class _Names:
    """What a call may bind: names of its forward, and names of its own; and what was bound before it."""

    __slots__ = ("former", "forward", "local")

    def __init__(self, forward: Forward, former: Table) -> None:
        self.forward = forward
        self.former = former
        self.local = UNBOUND

    def undo(self) -> None:
        """Go back to what was bound before the call."""
        self.forward.bound = self.former
