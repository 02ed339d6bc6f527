"""From what is known to a cause. What is not known is said to be unknown.

Each rule looks at the scene and returns a ``Finding``, or None if it does not apply. What is wrong further out comes
first: what happens inside follows from it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

from .checks import guarded, no_forward
from .clashes import broken_expression, broken_loss
from .contracts import broken_contract
from .demands import unmet_demand
from .failure import Finding
from .indices import bad_index, out_of_range
from .kinds import mixed_devices, wrong_device, wrong_dtype
from .objects import missing_feature, wrong_object, wrong_operand
from .promises import broken_promise
from .refusals import refused, refused_dtype
from .scene import Scene
from .sites import expressions, sites
from .texts import no_batch, virtual_tokens_inside
from .unpacking import unpacked
from .values import UNKNOWN

logger = logging.getLogger("peft_hooks")
T = TypeVar("T")

UNKNOWN_CAUSE = "not known: what was recorded and the line that raised do not tell more than is said above"
_OF_SHAPE = {"length", "width", "batch", "transposed", "rank", "view"}


def find_cause(scene: Scene) -> Finding:
    """Return the cause of the first rule that applies, or one of kind ``"unknown"``."""
    if is_own(scene):
        where = "" if scene.inner is None else f" of {scene.where(scene.inner)}"
        return Finding("own", f"the code{where} raises it by itself, on this line")
    found, promise = next(_findings(scene), None), broken_promise(scene)
    if promise is not None and (_follows(found, promise) if found is not None else is_of_tensors(scene)):
        bounds = (found.bounds if found is not None else ()) or promise.bounds
        return Finding(promise.kind, promise.cause, promise.fix, bounds, promise.culprit)
    if promise is not None and found is not None and {promise.kind, found.kind} <= _OF_SHAPE:
        return Finding(found.kind, f"{found.cause}; {promise.cause}", promise.fix, found.bounds, promise.culprit)
    return found or Finding("unknown", UNKNOWN_CAUSE)


def is_own(scene: Scene) -> bool:
    """Tell whether the user's own code raised, by a statement that does nothing else."""
    last = scene.steps[-1] if scene.steps else None
    return last is not None and last.raises and not last.is_installed


def is_of_tensors(scene: Scene) -> bool:
    """Tell whether it was an operation on tensors that raised."""
    usual = isinstance(scene.error, (RuntimeError, IndexError, ValueError, TypeError))
    return usual and (scene.steps[-1].in_torch or any(one.tensors() for one in expressions(scene)))


def _findings(scene: Scene) -> Iterator[Finding]:
    known = _tried(lambda: list(sites(scene))) or []
    for of_site in (wrong_object, wrong_device, wrong_dtype):
        yield from _of_each(of_site, known)
    yield from _of_each(no_batch, [scene])
    for of_site in (broken_contract, out_of_range):
        yield from _of_each(of_site, known)
    for rule in _RULES:
        yield from _of_each(rule, [scene])


def _of_each(rule: Callable[[T], Finding | None], things: Sequence[T]) -> Iterator[Finding]:
    found = (_tried(functools.partial(rule, thing)) for thing in things)
    return (finding for finding in found if finding is not None)


def _tried(work: Callable[[], T]) -> T | None:
    """Return what a rule finds. One that fails on what it never saw must not keep the others from their work."""
    try:
        return work()
    except Exception:
        logger.debug("a rule failed", exc_info=True)
        return None


def _follows(found: Finding, promise: Finding) -> bool:
    """Tell whether what was found can come from a layer that broke its promise: it is about a size that changed."""
    if found.kind in ("dtype", "device", "none", "object") or promise.kind in ("dtype", "device"):
        return found.kind == promise.kind or (found.kind in ("dtype", "device") and found.culprit == promise.culprit)
    if found.kind in ("key", "argument", "virtual tokens", "checkpointing"):
        return False
    changed = {bound.size for bound in promise.bounds}
    sizes = {size for bound in found.bounds for size in (bound.size, *bound.shape)}
    return bool(changed & sizes) or not changed or promise.kind in ("rank", "transposed")


def _wrong_arguments(scene: Scene) -> Finding | None:
    """A forward or function that was called with arguments that it does not take."""
    if not isinstance(scene.error, TypeError):
        return None
    for step in reversed(scene.steps):
        if step.in_torch and step.module is not None and step.name != "forward" and "args" in step.locals:
            args, kwargs = step.locals["args"], step.locals.get("kwargs", {})
            return _unbound(scene.where(step.module), step.module.forward, args, kwargs)
        if not step.in_torch:
            node = step.node
            function = step.values(node.func) if isinstance(node, ast.Call) else UNKNOWN
            if inspect.isfunction(function) and isinstance(node, ast.Call):
                return _unbound(f"{function.__name__}()", function, *step.values.arguments(node))
            return None
    return None


def _unbound(where: str, function: Any, args: Any, kwargs: Any) -> Finding | None:
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(name for name in signature.parameters if name != "self") or "nothing"
        given = ", ".join([f"{len(args)} by position"] * bool(args) + [str(name) for name in kwargs]) or "nothing"
        cause = f"{where} takes {takes}; it was given {given}: {error}"
        return Finding("argument", cause, f"call it with what it takes: {takes}")
    return None


def _key(scene: Scene) -> Finding | None:
    """A ``KeyError`` of features that the expression does not tell more of."""
    if not isinstance(scene.error, KeyError) or not scene.error.args or scene.steps[-1].raises:
        return None  # what a ``raise KeyError`` has need not be a key
    return missing_feature(scene, str(scene.error.args[0]))


def _nested(scene: Scene) -> Finding | None:
    """A nested tensor in a layer that takes none."""
    for call in reversed(scene.calls):
        for name, value in call.given.items():
            if getattr(value, "is_nested", False) and type(call.module).__module__.startswith(nn.__name__):
                one, where = scene.names.of_parameter(call.place, name, value), scene.where(call.module)
                rows = "a nested tensor, of rows of different length"
                fix = f"{one.text if one.text.isidentifier() else name}.to_padded_tensor(0.0) before it"
                packs = ", or a packed sequence" if isinstance(call.module, nn.RNNBase) else ""
                return Finding("object", f"{one.name} is {rows}, and the code of {where} failed on it", fix + packs)
    return None


_RULES: tuple[Callable[[Scene], Finding | None], ...] = (
    broken_loss, no_forward, wrong_operand, bad_index, broken_expression, unmet_demand, unpacked, guarded,
    _wrong_arguments, _key, mixed_devices, _nested, virtual_tokens_inside, refused, refused_dtype,
)  # fmt: skip
