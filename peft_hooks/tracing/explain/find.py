"""From what is known to a cause. What is not known is said to be unknown.

Each rule looks at the scene and returns a ``Finding``, or None if it does not apply. What is wrong further out comes
first: what happens inside follows from it.
"""

from __future__ import annotations

import ast
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import nn

from .clashes import broken_expression, of_clash
from .contracts import broken_contract
from .demands import unmet_demand
from .expressions import BROADCAST, EQUAL, Expression
from .failure import Finding
from .guards import guarded
from .indexing import bad_index
from .kinds import mixed_dtypes, wrong_device, wrong_dtype
from .missing import missing_feature, wrong_arguments
from .objects import is_none, wrong_object, wrong_operand
from .operations import Clash, broadcast_clash
from .promises import broken_promise
from .ranges import out_of_range
from .scene import Scene
from .sites import Site, sites
from .virtual import virtual_tokens_inside

logger = logging.getLogger("peft_hooks")
T = TypeVar("T")

UNKNOWN_CAUSE = "not known: what was recorded and the line that raised do not tell more than is said above"


def find_cause(scene: Scene) -> Finding:
    """Return the cause of the first rule that applies, or one of kind ``"unknown"``."""
    if is_own(scene):
        where = "" if scene.inner is None else f" of {scene.where(scene.inner)}"
        return Finding("own", f"the code{where} raises it by itself, on this line")
    found = next(_findings(scene), None)
    promise = broken_promise(scene)
    if promise is not None and (_follows(found, promise) if found is not None else is_of_tensors(scene)):
        bounds = (found.bounds if found is not None else ()) or promise.bounds
        return Finding(promise.kind, promise.cause, promise.fix, bounds, promise.culprit)
    if promise is not None and found is not None and {promise.kind, found.kind} <= _OF_SHAPE:
        return Finding(found.kind, f"{found.cause}; {promise.cause}", promise.fix, found.bounds, promise.culprit)
    return found or Finding("unknown", UNKNOWN_CAUSE)


_OF_SHAPE = {"length", "width", "batch", "transposed", "rank", "view"}


def is_own(scene: Scene) -> bool:
    """Tell whether the user's own code raised, by a statement that does nothing else."""
    last = scene.steps[-1] if scene.steps else None
    return last is not None and last.raises and not last.is_installed and not last.is_ours


def _findings(scene: Scene) -> Iterator[Finding]:
    known = _tried(lambda: list(sites(scene))) or []
    for of_site in (wrong_object, _device_of, wrong_dtype):
        yield from _of_each(of_site, known)
    yield from _of_each(_no_batch, [scene])
    for of_site in (broken_contract, out_of_range):
        yield from _of_each(of_site, known)
    for rule in _RULES:
        yield from _of_each(rule, [scene])


def _of_each(rule: Callable[[T], Finding | None], things: Sequence[T]) -> Iterator[Finding]:
    for thing in things:
        finding = _tried(functools.partial(rule, thing))
        if finding is not None:
            yield finding


def _tried(work: Callable[[], T]) -> T | None:
    """Return what a rule finds. One that fails on what it never saw must not keep the others from their work."""
    try:
        return work()
    except Exception:
        logger.debug("a rule failed", exc_info=True)
        return None


def _device_of(site: Site) -> Finding | None:
    return wrong_device(site.scene, site)


def is_of_tensors(scene: Scene) -> bool:
    """Tell whether it was an operation on tensors that raised."""
    usual = isinstance(scene.error, (RuntimeError, IndexError, ValueError, TypeError))
    places = list(scene.last_places())
    return usual and (len(places) > 1 or any(Expression(scene.names, place).tensors() for place in places))


def _follows(found: Finding, promise: Finding) -> bool:
    """Tell whether what was found can come from a layer that broke its promise: it is about a size that changed."""
    if found.kind in ("dtype", "device", "none", "object") or promise.kind in ("dtype", "device"):
        return found.kind == promise.kind or (found.kind in ("dtype", "device") and found.culprit == promise.culprit)
    if found.kind in ("key", "argument", "virtual tokens", "checkpointing"):
        return False
    changed = {bound.size for bound in promise.bounds}
    sizes = {size for bound in found.bounds for size in (bound.size, *bound.shape)}
    return bool(changed & sizes) or not changed or promise.kind in ("rank", "transposed")


def _no_batch(scene: Scene) -> Finding | None:
    """A model of transformers that was given one text as a vector."""
    for call in scene.calls:
        name = getattr(type(call.module), "main_input_name", None)
        value = call.given.get(name) if name == "input_ids" else None
        if value is not None and getattr(value, "dim", lambda: 0)() == 1:
            operand = scene.names.of_parameter(call.place, "input_ids", value)
            where = scene.where(call.module)
            cause = f"{operand} has 1 dimension, {where} takes 2, [batch, length]: the batch dimension is missing"
            return Finding("rank", cause, f"{operand.name}.unsqueeze(0)", (scene.bound(operand, 0),))
    return None


def _broken_loss(scene: Scene) -> Finding | None:
    """A loss whose tensors must be of one shape, or broadcast."""
    for place, step in enumerate(scene.steps):
        if not step.in_torch or step.module is not None or step.name not in (*BROADCAST, *EQUAL):
            continue
        names = BROADCAST.get(step.name, ("input", "target"))
        given = [scene.names.of_parameter(place, name, step.locals[name]) for name in names if name in step.locals]
        given = [one for one in given if one.is_tensor]
        rule = f"are {' and '.join(names)} of {step.name}(), which must be of one size there"
        clash = broadcast_clash(given, rule)
        if clash is not None:
            return of_clash(scene, clash)
        if step.name in EQUAL and len(given) == 2 and given[0].shape != given[1].shape:
            return _unequal(scene, step.name, Clash("", given[0], 0, given[1], 0))
    return None


def _unequal(scene: Scene, name: str, clash: Clash) -> Finding:
    left, right = clash.left, clash.right
    assert right is not None
    cause = f"{name}() takes two tensors of one shape: {left}, {right}"
    longer, shorter = (left, right) if len(left.shape) > len(right.shape) else (right, left)
    places = [place for place, size in enumerate(longer.shape) if size == 1]
    fit = next((place for place in places if longer.shape[:place] + longer.shape[place + 1 :] == shorter.shape), None)
    fix = f"bring them to one shape, {list(left.shape)} or {list(right.shape)}"
    if fit is not None:
        fix = f"{longer.name}.squeeze({fit}), or {shorter.name}.unsqueeze({fit}): then they are of one shape"
    bounds = tuple(scene.bound(one, 0) for one in (left, right) if one.shape)
    return Finding("rank" if longer.shape[:0] is None else "length", cause, fix, bounds)


def _unpacked(scene: Scene) -> Finding | None:
    """A shape or tuple that was unpacked into more, or fewer, names than it has parts."""
    step, place = scene.steps[-1], len(scene.steps) - 1
    statement = step.running[1]
    if not isinstance(scene.error, (ValueError, TypeError)) or not isinstance(statement, ast.Assign) or step.node:
        return None
    target = statement.targets[0]
    names = len(target.elts) if isinstance(target, (ast.Tuple, ast.List)) else 0
    value = step.values(statement.value)
    if not names or any(isinstance(one, ast.Starred) for one in getattr(target, "elts", ())):
        return None
    if value is None:
        return is_none(scene, scene.names.of_expression(place, statement.value), ast.unparse(statement))
    if not isinstance(value, (tuple, list)) or len(value) == names:
        return None
    shaped = statement.value
    if isinstance(shaped, ast.Attribute) and shaped.attr == "shape":
        owner = scene.names.of_expression(place, shaped.value)
    elif isinstance(shaped, ast.Call) and isinstance(shaped.func, ast.Attribute) and shaped.func.attr == "size":
        owner = scene.names.of_expression(place, shaped.func.value)
    else:
        return Finding("object", f"{ast.unparse(shaped)} has {len(value)} parts, {names} are unpacked", None)
    origin = scene.origin(owner)
    culprit = origin.row.path if origin is not None and origin.made else None
    cause = f"{owner} has {len(value)} dimension{'s' * (len(value) != 1)}, the code unpacks {names}{scene.on(culprit)}"
    bounds = (scene.bound(owner, 0),) if owner.shape else ()
    return Finding("rank", cause, f"give {owner.name} {names} dimensions", bounds, culprit)


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
                where = scene.where(call.module)
                one = scene.names.of_parameter(call.place, name, value)
                cause = (
                    f"{one.name} is a nested tensor, of rows of different length, and the code of {where} failed on it"
                )
                fix = f"{one.text if one.text.isidentifier() else name}.to_padded_tensor(0.0) before it"
                packs = ", or a packed sequence" if isinstance(call.module, nn.RNNBase) else ""
                return Finding("object", cause, fix + packs)
    return None


_RULES: tuple[Callable[[Scene], Finding | None], ...] = (
    _broken_loss,
    wrong_operand,
    bad_index,
    broken_expression,
    mixed_dtypes,
    unmet_demand,
    _unpacked,
    guarded,
    wrong_arguments,
    _key,
    wrong_device,
    _nested,
    virtual_tokens_inside,
)
