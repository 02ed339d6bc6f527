"""Explain an exception in a note: where it was raised, on what, why, and how to fix it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...compat.torch_internals import unseen
from ..leaves import Leaf, Raw, as_leaf, collect, tensors_of
from ..records import Row, find_adapters, find_peft_models
from ..trace import ShapeTrace
from .failure import Failure, Finding
from .find import find_cause, is_of_tensors, is_own
from .operands import module_calls
from .scene import Scene
from .tracebacks import Raised, read

logger = logging.getLogger("peft_hooks")

_NOTHING = ("unknown", "check")  # kinds that add nothing to the message of an error outside any forward
_UNTRACED = Finding(
    "unknown",
    "not known: the traceback does not tell more than the lines above",
    "wrap the call in `with peft_hooks.trace_shapes(model):`, which records what every module is given",
)


def explain(trace: ShapeTrace, model: nn.Module, error: BaseException, forward: int, failing: int | None) -> Failure:
    """Explain why a traced forward raised.

    Args:
        trace: The trace, up to the failure.
        model: The traced model.
        error: What the forward raised. No reference to it is kept.
        forward: The number of the forward.
        failing: The index of the innermost recorded call that raised; None if it raised before a call was recorded.
    """
    raised = read(error)
    row = next((row for row in trace.rows if row.index == failing), None)
    with _scene_of(trace, model, error, raised, forward, row) as scene:
        if raised.hook is not None or scene.row is None:
            return _of_a_hook(scene, raised)
        module, inner = scene.modules[scene.row.path], scene.inner
        inside = None if inner is module or inner is None else scene.where(inner)
        return _failure(scene, raised, scene.row, find_cause(scene), inside=inside)


def explain_outside(trace: ShapeTrace, model: nn.Module, error: BaseException) -> Failure | None:
    """Explain an error of a loss or of the caller's code around the model; None if raised on purpose."""
    forward = trace.rows[-1].forward if trace.rows else 0
    raised = read(error)
    with _scene_of(trace, model, error, raised, forward) as scene:
        if not scene.steps or is_own(scene):
            return None
        failure = _outside(scene, raised, "the code around the model")
        return None if failure.kind == "check" and not scene.calls else failure  # the error's message says as much


def explain_traceback(error: BaseException) -> Failure | None:
    """Explain an exception that no trace has seen, from its traceback alone. No reference to it is kept.

    Returns:
        None if the code raised it on purpose, or if neither a forward nor a tensor operation raised it.
    """
    raised = read(error)
    calls = module_calls(raised.steps)
    model = calls[0].module if calls else nn.Module()
    given: list[Raw] = []  # kept until the end: the ids in it identify tensors
    for name, value in calls[0].given.items() if calls else ():
        if isinstance(value, Tensor):  # a dict may have gained entries since
            collect(given, name, value)
    with _scene_of(_trace_of(model, given, bool(calls)), model, error, raised, 0) as scene:
        if not scene.steps or is_own(scene) or not (calls or is_of_tensors(scene)):
            return None
        failure = _outside(scene, raised, "code outside any forward")
        last = scene.steps[-1]
        if failure.kind in _NOTHING and not calls:
            return None
        if failure.kind == "unknown" and last.raises and not last.in_torch:  # on purpose, by a library's code
            return None
    return dataclasses.replace(failure, finding=_UNTRACED) if failure.kind == "unknown" else failure


def _trace_of(model: nn.Module, given: list[Raw], began: bool) -> ShapeTrace:
    """Return a trace that has seen the model's call begin or, if ``began`` is false, nothing."""
    kind = type(model).__name__
    row = dataclasses.replace(_row("", kind, 0, inputs=tuple(map(as_leaf, given))), index=0)
    rows = [row] if began else []
    trace = ShapeTrace(kind, rows, {}, False)
    trace._rows = tuple(rows)
    trace.adapters = find_adapters(find_peft_models({module: (path,) for path, module in model.named_modules()}))
    return trace


def _outside(scene: Scene, raised: Raised, where: str) -> Failure:
    """Explain an error that was not raised in a recorded call; ``where`` says where if no module was running."""
    if raised.hook is not None and raised.hooked in scene.paths:
        return _of_a_hook(scene, raised)
    history = scene.history
    ours = [call.module for call in scene.calls if id(call.module) in scene.paths]
    if ours:  # calling forward() directly runs no hooks
        row = _row(scene.paths[id(ours[-1])], type(ours[-1]).__name__, history.forward)
        return _failure(scene, raised, row, find_cause(scene))
    where = type(scene.calls[-1].module).__name__ if scene.calls else where
    outputs = history.own[0].outputs if history.own else ()
    row = _row("", where, history.forward, 0, tensors_of(outputs))
    return _failure(scene, raised, row, find_cause(scene), outside=True)


@contextlib.contextmanager
def _scene_of(
    trace: ShapeTrace, model: nn.Module, error: BaseException, raised: Raised, forward: int, row: Row | None = None
) -> Iterator[Scene]:
    """Yield everything that is known, and release all frames at the end of the block."""
    try:
        with unseen():
            yield Scene(trace, model, error, raised, forward, row)
    finally:
        for step in raised.steps:
            vars(step).clear()  # its cycle with the scene would keep frames until garbage collection


def add_explanation(error: BaseException, failure: Failure) -> None:
    """Add the failure as a note to the exception, once. Python 3.10 does not show notes, so it is also logged there."""
    note = str(failure)
    if is_explained(error):
        return  # explained by a trace around or inside this one
    add: Any = getattr(error, "add_note", None)
    if add is not None:
        add(note)
        return
    error.__notes__ = [*getattr(error, "__notes__", ()), note]
    logger.warning("%s", note)


def is_explained(error: BaseException) -> bool:
    """Tell whether an exception has a note of this library already."""
    return any(str(old).startswith("peft_hooks: ") for old in getattr(error, "__notes__", ()))


def _message_of(error: BaseException) -> str:
    try:
        return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    except Exception:  # other code's exception, which cannot be printed
        return ""


def _of_a_hook(scene: Scene, raised: Raised) -> Failure:
    error, message = scene.error, _message_of(scene.error)
    path = scene.paths.get(raised.hooked or 0, "" if scene.row is None else scene.row.path)
    hook = raised.hook or "a hook that runs before the trace"
    calls = [row for row in scene.history.own if row.path == path and row.state != "done"]
    row = calls[-1] if calls else _row(path, type(scene.modules[path]).__name__, scene.history.forward)
    told = message and all(isinstance(one, str) for one in error.args)  # an object may print its values
    finding = Finding("hook", f"{hook} raised: {message.splitlines()[0] if told else type(error).__name__}")
    return _failure(scene, raised, row, finding, hook=hook)


def _row(path: str, module: str, forward: int, call: int = 1, inputs: tuple[Leaf, ...] = ()) -> Row:
    """Return a row for a call that no trace has recorded."""
    return Row(-1, path, module, (), forward, call, None, "", inputs, (), "raised")


def _failure(
    scene: Scene,
    raised: Raised,
    row: Row,
    finding: Finding,
    hook: str | None = None,
    inside: str | None = None,
    outside: bool = False,
) -> Failure:
    """Assemble a failure."""
    return Failure(
        path=row.path,
        module=row.module,
        forward=row.forward,
        call=row.call,
        row=None if row.index < 0 else row.index,
        inputs=row.inputs,
        error=type(scene.error).__name__,
        message=_message_of(scene.error),
        hook=hook,
        inside=inside,
        source=raised.source,
        finding=finding,
        outside=outside,
    )
