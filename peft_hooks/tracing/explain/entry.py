"""The exception that leaves a traced forward gains a note: where, on what, why, and what helps."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ...compat import sentence_transformers as releases
from ..records import Row
from ..trace import ShapeTrace
from .failure import Failure, Finding
from .find import find_cause, is_own
from .origins import History
from .scene import Scene
from .steps import Step, read_steps
from .tracebacks import Raised, foreign_hooks, read

logger = logging.getLogger("peft_hooks")


def explain(
    trace: ShapeTrace, model: nn.Module, error: BaseException, forward: int, failing: int | None, own: type
) -> Failure:
    """Say why a forward raised.

    Args:
        trace: The trace, up to the failure.
        model: The traced model.
        error: What the forward raised. It is not kept.
        forward: The number of the forward.
        failing: The index of the innermost recorded call that raised; None if it raised before a call was recorded.
        own: The class whose bound methods are the trace's own hooks.
    """
    rows = trace.rows
    row = _in_traceback(trace, model, error, next((row for row in rows if row.index == failing), None))
    raised = read(error)
    paths = {id(module): path for path, module in model.named_modules()}
    if raised.hook is not None or row is None:
        return _of_a_hook(rows, row, raised, paths, dict(model.named_modules(remove_duplicate=False)), error, forward)
    with scene_of(trace, model, error, row, forward, own, raised) as scene:
        module, inner = scene.modules[row.path], scene.inner
        inside = None if inner is module or inner is None else scene.where(inner)
        return failure_of(row, error, None, inside, raised, find_cause(scene))


def explain_outside(trace: ShapeTrace, model: nn.Module, error: BaseException, own: type) -> Failure | None:
    """Say why code outside the model raised: a loss, or a line of the caller's. None if it raised by itself.

    Args:
        trace: The trace.
        model: The traced model.
        error: What was raised. It is not kept.
        own: The class whose bound methods are the trace's own hooks.
    """
    forward = trace.rows[-1].forward if trace.rows else 0
    raised = read(error)
    with scene_of(trace, model, error, None, forward, own, raised) as scene:
        if not scene.steps or is_own(scene):
            return None
        return _outside(trace.rows, scene, raised, forward)


def _outside(rows: tuple[Row, ...], scene: Scene, raised: Raised, forward: int) -> Failure:
    """Say why an error was raised that left no recorded call."""
    error = scene.error
    if raised.hook is not None and raised.hooked in scene.paths:
        return _of_a_hook(rows, None, raised, scene.paths, dict(scene.modules), error, forward)
    ran = [step.module for step in scene.steps if step.module is not None and step.name == "forward"]
    ours = [module for module in ran if id(module) in scene.paths]
    if ours:  # a forward that was called by itself ran no hooks
        path, kind = scene.paths[id(ours[-1])], type(ours[-1]).__name__
        row = Row(-1, path, kind, (), forward, 1, None, "", (), (), "raised")
        return failure_of(row, error, None, None, raised, find_cause(scene))
    last = next((row for row in rows if row.forward == forward), None)
    outputs = () if last is None else tuple(leaf for leaf in last.outputs if leaf.shape is not None)
    where = type(ran[-1]).__name__ if ran else "the code around it"
    row = Row(-1, "", where, (), forward, 0, None, "", outputs, (), "raised")
    return failure_of(row, error, None, None, raised, find_cause(scene), outside=True)


@contextlib.contextmanager
def scene_of(
    trace: ShapeTrace,
    model: nn.Module,
    error: BaseException,
    row: Row | None,
    forward: int,
    own: type,
    raised: Raised,
) -> Iterator[Scene]:
    """Put together what is known for the length of a block, and let go of every frame after it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {id(module): path for path, module in model.named_modules()}
    inner = None
    if row is not None:
        inner = modules[paths[raised.inside[0]]] if raised.inside and raised.inside[0] in paths else modules[row.path]
    steps = of_the_model(read_steps(error))
    scene = Scene(
        error=error,
        steps=steps,
        model=model,
        row=row,
        inner=inner,
        history=History(trace.rows, forward),
        modules=modules,
        adapters=trace.adapters,
        hooks_of=lambda path: foreign_hooks(modules[path], own),
        pipeline=bool(releases.transformers_of(model)),
    )
    try:
        yield scene
    finally:
        for step in steps:
            vars(step).clear()  # a step refers to its scene, which would keep the frames until the garbage is collected


def _in_traceback(trace: ShapeTrace, model: nn.Module, error: BaseException, row: Row | None) -> Row | None:
    """Return the call that an error left, or the one around it: an error that was caught may have had the same id."""
    modules = dict(model.named_modules(remove_duplicate=False))
    ran = {id(step.module) for step in read_steps(error)}
    around, rows = row, {one.index: one for one in trace.rows}
    while around is not None and id(modules[around.path]) not in ran:
        around = rows.get(-1 if around.parent is None else around.parent)
    return around or row


def of_the_model(steps: Sequence[Step]) -> list[Step]:
    """Leave out the steps of this library and of whatever opened the block."""
    return [step for step in steps if not step.is_ours]


def add_explanation(error: BaseException, failure: Failure) -> None:
    """Add the failure as a note to the exception, once. Python 3.10 shows no notes, so it is logged there, too."""
    note = str(failure)
    if is_explained(error):
        return  # a trace around or inside this one has explained it
    add: Any = getattr(error, "add_note", None)
    if add is not None:
        add(note)
        return
    error.__notes__ = [*getattr(error, "__notes__", ()), note]
    logger.warning("%s", note)


def is_explained(error: BaseException) -> bool:
    """Tell whether an exception has a note of this library already."""
    return any(str(old).startswith("peft_hooks: ") for old in getattr(error, "__notes__", ()))


def message_of(error: BaseException) -> str:
    """Return the message of an exception."""
    try:
        return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    except Exception:  # an exception of someone else's that cannot be printed
        return ""


def _of_a_hook(
    rows: tuple[Row, ...],
    row: Row | None,
    raised: Raised,
    paths: dict[int, str],
    modules: dict[str, nn.Module],
    error: BaseException,
    forward: int,
) -> Failure:
    path = paths.get(raised.hooked or 0, "" if row is None else row.path)
    kind, message = type(modules[path]).__name__, message_of(error)
    hook = raised.hook or "a hook that runs before the trace"
    calls = [other for other in rows if other.path == path and other.forward == forward and other.state != "done"]
    called = calls[-1] if calls else Row(-1, path, kind, (), forward, 1, None, "", (), (), "raised")
    told = message and all(isinstance(one, str) for one in error.args)  # an object may print its values
    finding = Finding("hook", f"{hook} raised: {message.splitlines()[0] if told else type(error).__name__}")
    return failure_of(called, error, hook, None, raised, finding)


def failure_of(
    row: Row,
    error: BaseException,
    hook: str | None,
    inside: str | None,
    raised: Raised,
    finding: Finding,
    outside: bool = False,
) -> Failure:
    """Put a failure together."""
    return Failure(
        path=row.path,
        module=row.module,
        forward=row.forward,
        call=row.call,
        row=None if row.index < 0 else row.index,
        inputs=row.inputs,
        error=type(error).__name__,
        message=message_of(error),
        hook=hook,
        inside=inside,
        source=raised.source,
        finding=finding,
        outside=outside,
    )
