"""``AssertDimensions``: check that named dimensions agree across the tensors and modules of one forward."""

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

_REMEMBERED = 1024  # combinations of shapes: all lengths that a tokenizer produces, in a few batch sizes


@public
class AssertDimensions(Hook):
    """Check named dimensions of a module's inputs and outputs. Reads only shapes and dtypes, never values.

    A contract maps the names of tensors to their dimensions, and to their dtypes where those matter:
    ``{"token_embeddings!": "float: batch seq hidden=384", "attention_mask": "i64|bool: batch seq"}``.

    A dimension is a name, a size, ``name=size``, ``_`` (any size) or ``...`` (any number of dimensions; once, at the
    beginning, the end or in between). A name means one size in one forward: the first tensor that has it binds it, and
    every other must agree, in this module and in those whose hooks share ``bindings``. As in jaxtyping, a name after a
    question mark, ``?width``, holds within one call of this module, and one that begins with an underscore,
    ``_width=384``, is not checked at all. A check that fails binds nothing, and a module that fails leaves the bindings
    as they were before it.

    Dtypes have short names, ``f32``, ``bf16``, ``i64``, ``bool``; ``float``, ``int`` and ``complex`` are groups. A
    missing tensor is not checked, unless ``!`` after its name requires it.

    The name of an input is a key of the first argument, if that is a dict, or a parameter of ``forward``; that of an
    output is a key, an index into a tuple, or an attribute. Dots go deeper: ``features.mask``, ``output.0``. The empty
    name is the first argument, or the output, itself. A list or tuple of tensors is checked as if stacked.

    Binding named dimensions across arguments is an idea from jaxtyping: https://docs.kidger.site/jaxtyping

    Args:
        inputs: A contract for what the module gets.
        outputs: A contract for what it returns.
        bindings: Shared by the hooks on the modules of one forward. By default the hook has its own, new in every call.
        starts: Whether this module begins a forward, so that earlier bindings are forgotten.
        ends: Whether this module ends a forward, so that later modules bind anew.
        causes: Hints for the message by size difference in ``seq``, each a cause and its fix:
            ``{10: "num_virtual_tokens of ...: attach ..."}``.
        on_error: ``"raise"`` a ``DimensionError``, or ``"warn"`` with a ``DimensionWarning``.
        unless: A key of a features dict whose presence means that the tensors are laid out differently, so that nothing
            is checked.

    Raises:
        ValueError: If a contract cannot be read, or ``on_error`` is unknown.
        TypeError: If a contract is not a mapping.
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
        # What passed, where, with the tables before and after. Tables are never changed, so the identity of a table
        # that is kept here tells its contents.
        self._right: dict[tuple[Any, ...], tuple[Table, Table, Table, Table]] = {}

    def before(self, call: Call) -> None:
        if any(outer.on_other_rows for outer in call.enclosing()):
            return  # the rows are not from the batch whose dimensions are bound
        # Without shared bindings the forward is this call, since a module inside this one may have the same hook.
        forward = Forward() if self._bindings is None else self._bindings.enter(call, self._starts)
        names = call.notes[self] = _Names(forward, call.notes.get(self._bindings, UNBOUND))
        if self._inputs:
            self._check(names, call, call)

    def after(self, call: Call, output: Any) -> None:
        names: _Names | None = call.notes.get(self)
        if names is None:
            return  # attached while the module was running
        if self._outputs:
            self._check(names, call, output)
        if self._ends:
            names.forward.bound = UNBOUND

    def _aborted(self, call: Call) -> None:
        if self in call.notes:
            call.notes[self].undo()

    def _check(self, names: _Names, call: Call, source: Any) -> None:
        """Bind the dimensions of the inputs, if ``source`` is the call, or of the output; report a disagreement.

        Shapes that passed once are not checked again with the same earlier bindings.
        """
        inward = source is call
        spec, find, features = (self._inputs, input_of, call.first) if inward else (self._outputs, output_of, source)
        is_dict = isinstance(features, (dict, Mapping))  # dict first: the check against the abstract class is slow
        if is_dict and self._unless is not None and self._unless in features:
            return
        before = names.forward.bound, names.local
        shapes = shapes_in(spec, find, features, source) if is_dict and not is_compiling() else None
        place: tuple[Any, ...] | None = None
        if shapes is not None:  # never while compiling: the graph would depend on everything in the cache
            place = call.path, type(call.module), inward, shapes, id(before[0]), id(before[1])
            try:
                known = self._right.get(place)
            except TypeError:  # symbolic sizes are not hashable
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
        call.notes[self].undo()  # `failed` runs for the module's errors, not for this hook's own
        raise DimensionError(message)


class _Names:
    """The names that a call may bind, those of its forward and its own, and what was bound before it."""

    __slots__ = ("former", "forward", "local")

    def __init__(self, forward: Forward, former: Table) -> None:
        self.forward = forward
        self.former = former
        self.local = UNBOUND

    def undo(self) -> None:
        """Go back to what was bound before the call."""
        self.forward.bound = self.former
