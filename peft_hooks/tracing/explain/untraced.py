"""Why an exception was raised that no trace has seen: its traceback is all that is known."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from ..leaves import Raw, as_leaf, collect
from ..records import Row, find_adapters, find_peft_models
from ..trace import ShapeTrace
from .entry import explain_outside, failure_of, of_the_model, scene_of
from .failure import Failure, Finding
from .find import find_cause, is_of_tensors, is_own
from .steps import ModuleCall, module_calls, read_steps
from .tracebacks import read

_NOTHING = ("unknown", "own", "check")  # what says no more of code outside any forward than its message does
_UNKNOWN = Finding(
    "unknown",
    "not known: the traceback does not tell more than is said above",
    "`with peft_hooks.trace_shapes(model):` around the call, which records what every module was given",
)


def explain_traceback(error: BaseException, own: type) -> Failure | None:
    """Say why an exception was raised that no trace has seen, from its traceback alone.

    Args:
        error: What was raised. It is not kept.
        own: The class whose bound methods are a trace's hooks.

    Returns:
        None if the code raised it on purpose, or if neither a forward nor an operation on tensors did.
    """
    calls = module_calls(of_the_model(read_steps(error)))
    if not calls:
        return _of_no_module(error, own)
    model = calls[0].module
    modules = {module: (path,) for path, module in model.named_modules()}
    given = _tensors(calls[0])  # referred to until the end: what tells tensors apart is the id of a reference in it
    trace = _trace_of(model, given)
    trace.adapters = find_adapters(find_peft_models(modules))
    failure = explain_outside(trace, model, error, own)
    if failure is None or _on_purpose(error, failure):
        return None
    return dataclasses.replace(failure, finding=_UNKNOWN) if failure.kind == "unknown" else failure


def _tensors(call: ModuleCall) -> list[Raw]:
    """Return the tensors that a module was called with. What is in a dict may have come into it since."""
    found: list[Raw] = []
    for name, value in call.given.items():
        if isinstance(value, Tensor):
            collect(found, name, value)
    return found


def _trace_of(model: nn.Module, given: list[Raw]) -> ShapeTrace:
    """Return a trace that has seen one call begin, that of the model."""
    kind = type(model).__name__
    row = Row(0, "", kind, (), 0, 1, None, "", tuple(map(as_leaf, given)), (), "raised")
    trace = ShapeTrace(kind, [row], {}, False)
    trace._rows = (row,)
    return trace


def _of_no_module(error: BaseException, own: type) -> Failure | None:
    """Say why an operation on tensors raised that no module's forward was running around."""
    raised = read(error)
    with scene_of(ShapeTrace("", (), {}, False), nn.Module(), error, None, 0, own, raised) as scene:
        if not scene.steps or is_own(scene) or not is_of_tensors(scene):
            return None
        finding = find_cause(scene)
    if finding.kind in _NOTHING:
        return None
    row = Row(-1, "", "code outside any forward", (), 0, 0, None, "", (), (), "raised")
    return failure_of(row, error, None, None, raised, finding, outside=True)


def _on_purpose(error: BaseException, failure: Failure) -> bool:
    """Tell whether code that is not PyTorch's raised by a statement that nothing more is known of."""
    last = of_the_model(read_steps(error))[-1]
    return failure.kind in ("own", "unknown") and last.raises and not last.in_torch
