"""``AssertDimensions``: named dimensions that must agree across the tensors and modules of one forward."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._format import shape_of
from ._hook import Call, Hook
from .errors import DimensionError


class Dimension(NamedTuple):
    """One dimension of a contract: a name to bind, a fixed size, both, or neither (``_``, any size)."""

    name: str | None
    size: int | None


class Bound(NamedTuple):
    """What a name is bound to, and by whom."""

    size: int
    tensor: str
    shape: torch.Size
    where: str


Contract = Mapping[str, str]
_Spec = tuple[tuple[str, tuple[Dimension, ...]], ...]


def parse(contract: Contract) -> _Spec:
    """Parse ``{"token_embeddings": "batch seq hidden=384"}``: names, sizes, ``name=size``, and ``_`` for any size.

    Raises:
        ValueError: If a dimension is none of these.
    """
    return tuple((key, tuple(_dimension(key, text) for text in spec.split())) for key, spec in contract.items())


def _dimension(key: str, text: str) -> Dimension:
    match = re.fullmatch(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<size>\d+)|(?P<bare>[A-Za-z_]\w*)", text)
    if match is None:
        raise ValueError(f"{text!r} in the contract of {key!r} is no dimension: write a name, a size, name=size or _")
    name = match["name"] or match["bare"]
    return Dimension(None if name == "_" else name, int(match["size"]) if match["size"] else None)


class Bindings:
    """What the names are bound to in the forward that runs in this thread. Shared by the hooks of one pipeline."""

    def __init__(self) -> None:
        self._local = threading.local()

    def start(self) -> None:
        """Forget everything: a new forward begins."""
        self._local.bound = {}

    def current(self) -> dict[str, Bound]:
        """Return the names that are bound so far. Nothing is kept from module to module inside ``torch.compile``."""
        if torch.compiler.is_compiling():
            return {}
        bound: dict[str, Bound] = getattr(self._local, "bound", {})
        return bound

    def keep(self, bound: dict[str, Bound]) -> None:
        """Put ``bound`` in force."""
        if not torch.compiler.is_compiling():
            self._local.bound = bound

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Bindings, ()  # what is bound belongs to a thread: a copy starts with nothing


class AssertDimensions(Hook):
    """Check named dimensions of a module's inputs and outputs. Reads shapes only, never a value.

    A name means one size in one forward: the first tensor that has it binds it, every other must agree, in this module
    and in those whose hooks share ``bindings``. A check that fails binds nothing.

    Args:
        inputs: A contract for the tensors of the module's first argument, such as
            ``{"token_embeddings": "batch seq hidden=384", "attention_mask": "batch seq"}``. Tensors that are not there
            are not checked.
        outputs: The same for the output, a dict.
        bindings: Shared by the hooks on the modules of one forward. By default this hook's own, new for every call.
        starts: Whether this module begins a forward, so that what was bound before is forgotten.
        ends: Whether this module ends a forward, so that what follows binds anew.
        causes: What a difference of so many positions in ``seq`` means, for the message:
            ``{10: "num_virtual_tokens of ..."}``.

    Raises:
        ValueError: If a contract cannot be read.
        DimensionError: In the forward. It names the module, the tensor, the dimension, and what bound it.

    Example:
        >>> import torch
        >>> from peft_hooks import AssertDimensions, HookRegistry
        >>> registry = HookRegistry(torch.nn.Sequential(torch.nn.Identity()))
        >>> _ = registry.attach(AssertDimensions({"x": "batch seq", "mask": "batch seq"}), to="0")
        >>> registry.model({"x": torch.zeros(2, 9), "mask": torch.zeros(2, 5)})
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
    ) -> None:
        self.inputs = dict(inputs or {})
        self.outputs = dict(outputs or {})
        self._inputs, self._outputs = parse(self.inputs), parse(self.outputs)
        self._bindings = bindings
        self._starts = starts
        self._ends = ends
        self._causes = dict(causes or {})

    def before(self, call: Call) -> None:
        if self._bindings is not None and self._starts:
            self._bindings.start()
        if self._inputs:
            self._check(self._inputs, call.first, call, "input")

    def after(self, call: Call, output: Any) -> None:
        if self._outputs:
            self._check(self._outputs, output, call, "output")
        if self._bindings is not None and self._ends:
            self._bindings.start()

    def _check(self, spec: _Spec, features: Any, call: Call, side: str) -> None:
        # A hook's own bindings stay with the call: a module inside this one may be checked by the same hook.
        if not isinstance(features, Mapping):
            raise TypeError(f"{call.where} {side}: a contract needs a dict of tensors, got {type(features).__name__}")
        bound = dict(call.notes.get(self, ()) if self._bindings is None else self._bindings.current())
        reason = disagreement(spec, features, bound, call.where)
        if reason is None:
            if self._bindings is None:
                call.notes[self] = bound
            else:
                self._bindings.keep(bound)
            return
        message, difference = reason
        cause = self._causes.get(difference)
        if cause:
            message += f". {difference} = {cause}: attach the mask hooks, peft_hooks.register_prompt_mask_hooks(model)"
        raise DimensionError(f"{call.where} {side}: {message}")


def disagreement(
    spec: _Spec, features: Mapping[str, Any], bound: dict[str, Bound], where: str
) -> tuple[str, int] | None:
    """Bind the dimensions of ``features`` in ``bound``.

    Returns:
        None, or why that fails, with the difference in positions (0 where it is not ``seq`` that disagrees).
    """
    for key, dimensions in spec:
        tensor = features.get(key)
        if not isinstance(tensor, Tensor):
            continue
        shape = tensor.shape
        if len(shape) != len(dimensions):
            names = " ".join(dimension.name or str(dimension.size or "_") for dimension in dimensions)
            return f"{key} is {shape_of(tensor)}, but should have {len(dimensions)} dimensions ({names})", 0
        for size, (name, fixed) in zip(shape, dimensions, strict=True):
            if fixed is not None and size != fixed:
                return f"{key} is {shape_of(tensor)}, but {name or 'the size'} = {fixed} is declared", 0
            if name is None:
                continue
            known = bound.get(name)
            if known is None:
                bound[name] = Bound(size, key, shape, where)
            elif known.size != size:
                return _explain(key, tensor, name, size, known, where), abs(size - known.size) * (name == "seq")
    return None


def _explain(key: str, tensor: Tensor, name: str, size: int, known: Bound, where: str) -> str:
    other = "" if known.where == where else f" of {known.where}"
    more = f"{abs(size - known.size)} {'more' if size > known.size else 'fewer'}"
    bound = f"{name} = {known.size} was bound by {known.tensor} {list(known.shape)}{other}"
    return f"{key} is {shape_of(tensor)}, but {bound}: {more}"
