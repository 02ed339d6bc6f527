"""Find the cause of an exception; if no rule applies, the cause is unknown.

Each rule looks at the scene and returns a ``Finding``, or None if it does not apply. Errors in outer calls come first,
because those in inner calls follow from them.
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

UNKNOWN_CAUSE = "not known: the recorded calls and the line that raised do not tell more than the lines above"
_OF_SHAPE = {"length", "width", "batch", "transposed", "rank", "view"}


def find_cause(scene: Scene) -> Finding:
    """Return the cause of the first rule that applies, or one of kind ``"unknown"``."""
    if is_own(scene):
        where = "" if scene.inner is None else f" of {scene.where(scene.inner)}"
        return Finding("own", f"the code{where} raises this exception itself, on that line")
    found, promise = next(_findings(scene), None), broken_promise(scene)
    if promise is not None and (_follows(found, promise) if found is not None else is_of_tensors(scene)):
        bounds = (found.bounds if found is not None else ()) or promise.bounds
        return Finding(promise.kind, promise.cause, promise.fix, bounds, promise.culprit)
    if promise is not None and found is not None and {promise.kind, found.kind} <= _OF_SHAPE:
        return Finding(found.kind, f"{found.cause}; {promise.cause}", promise.fix, found.bounds, promise.culprit)
    return found or Finding("unknown", UNKNOWN_CAUSE)


def is_own(scene: Scene) -> bool:
    """Tell whether the user's own code raised, with a ``raise`` or an ``assert``."""
    last = scene.steps[-1] if scene.steps else None
    return last is not None and last.raises and not last.is_installed


def is_of_tensors(scene: Scene) -> bool:
    """Tell whether a tensor operation raised."""
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
    """Return what a rule finds, or None if it fails: a rule that meets something new must not stop the others."""
    try:
        return work()
    except Exception:
        logger.debug("a rule failed", exc_info=True)
        return None


def _follows(found: Finding, promise: Finding) -> bool:
    """Tell whether a layer that broke its promise can explain a finding: it is about a size that the layer changed."""
    if found.kind in ("dtype", "device", "none", "object") or promise.kind in ("dtype", "device"):
        return found.kind == promise.kind or (found.kind in ("dtype", "device") and found.culprit == promise.culprit)
    if found.kind in ("key", "argument", "virtual tokens", "checkpointing"):
        return False
    changed = {bound.size for bound in promise.bounds}
    sizes = {size for bound in found.bounds for size in (bound.size, *bound.shape)}
    return bool(changed & sizes) or not changed or promise.kind in ("rank", "transposed")


def _wrong_arguments(scene: Scene) -> Finding | None:
    """Find a forward or function that was called with arguments that it does not take."""
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
        return Finding("argument", cause, f"call it with the arguments that it takes: {takes}")
    return None


def _key(scene: Scene) -> Finding | None:
    """Find a missing feature where only the ``KeyError`` itself tells the key."""
    if not isinstance(scene.error, KeyError) or not scene.error.args or scene.steps[-1].raises:
        return None  # the argument of a ``raise KeyError`` need not be a key
    return missing_feature(scene, str(scene.error.args[0]))


def _nested(scene: Scene) -> Finding | None:
    """Find a nested tensor in a layer that does not take one."""
    for call in reversed(scene.calls):
        for name, value in call.given.items():
            if getattr(value, "is_nested", False) and type(call.module).__module__.startswith(nn.__name__):
                one, where = scene.names.of_parameter(call.place, name, value), scene.where(call.module)
                rows = "a nested tensor, with rows of different length"
                fix = f"call {one.text if one.text.isidentifier() else name}.to_padded_tensor(0.0) first"
                packs = ", or pass a packed sequence" if isinstance(call.module, nn.RNNBase) else ""
                return Finding("object", f"{one.name} is {rows}, and the code of {where} failed on it", fix + packs)
    return None


_RULES: tuple[Callable[[Scene], Finding | None], ...] = (
    broken_loss, no_forward, wrong_operand, bad_index, broken_expression, unmet_demand, unpacked, guarded,
    _wrong_arguments, _key, mixed_devices, _nested, virtual_tokens_inside, refused, refused_dtype,
)  # fmt: skip
