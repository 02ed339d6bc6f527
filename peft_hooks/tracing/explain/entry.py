"""The exception that leaves a traced forward gains a note: where, on what, why, and what mends it."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from ...compat import sentence_transformers as releases
from ..trace import Row, ShapeTrace
from .failure import Failure, Finding
from .history import History
from .rules import Scene, find_cause
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
    row = next((row for row in rows if row.index == failing), None)
    raised = read(error)
    paths = {id(module): path for path, module in model.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if raised.hook is not None or row is None:
        return _of_a_hook(rows, row, raised, paths, modules, error, message, forward)
    module = modules[row.path]
    inner = _inner(raised, paths, modules, module)
    scene = Scene(
        row=row,
        module=module,
        inner=inner,
        kind=type(error),
        message=message,
        history=History(rows, forward, row),
        modules=modules,
        adapters=trace.adapters,
        hooks_of=lambda path: foreign_hooks(modules[path], own),
        pipeline=bool(releases.transformers_of(model)),
    )
    inside = None if inner is module else f"{type(inner).__name__} {paths[id(inner)]!r}"
    return _failure(row, error, message, None, inside, raised, find_cause(scene))


def add_explanation(error: BaseException, failure: Failure) -> None:
    """Add the failure as a note to the exception, once. Python 3.10 shows no notes, so it is logged there, too."""
    note = str(failure)
    if any(str(old).startswith("peft_hooks: ") for old in getattr(error, "__notes__", ())):
        return  # a trace around or inside this one has explained it
    add: Any = getattr(error, "add_note", None)
    if add is not None:
        add(note)
        return
    error.__notes__ = [*getattr(error, "__notes__", ()), note]
    logger.warning("%s", note)


def _inner(raised: Raised, paths: dict[int, str], modules: dict[str, nn.Module], module: nn.Module) -> nn.Module:
    """Return the innermost module that ran, if it is one of the model's; a replica is not."""
    if raised.inside is None or raised.inside[0] not in paths:
        return module
    return modules[paths[raised.inside[0]]]


def _of_a_hook(
    rows: tuple[Row, ...],
    row: Row | None,
    raised: Raised,
    paths: dict[int, str],
    modules: dict[str, nn.Module],
    error: BaseException,
    message: str,
    forward: int,
) -> Failure:
    path = paths.get(raised.hooked or 0, "" if row is None else row.path)
    kind = type(modules[path]).__name__
    hook = raised.hook or "a hook that runs before the trace"
    calls = [other for other in rows if other.path == path and other.forward == forward and other.state != "done"]
    called = calls[-1] if calls else Row(-1, path, kind, (), forward, 1, None, "", (), (), "raised")
    finding = Finding("hook", f"{hook} raised: {message.splitlines()[0] if message else type(error).__name__}")
    return _failure(called, error, message, hook, None, raised, finding)


def _failure(
    row: Row, error: BaseException, message: str, hook: str | None, inside: str | None, raised: Raised, finding: Finding
) -> Failure:
    return Failure(
        path=row.path,
        module=row.module,
        forward=row.forward,
        call=row.call,
        row=None if row.index < 0 else row.index,
        inputs=row.inputs,
        error=type(error).__name__,
        message=message,
        hook=hook,
        inside=inside,
        source=raised.source,
        finding=finding,
    )
