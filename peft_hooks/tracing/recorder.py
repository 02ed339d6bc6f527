"""What ``trace_shapes`` puts on modules: one pre-hook and one forward hook of PyTorch's own on each.

A ``Tap`` appends a ``Frame`` of bare tuples to its recorder's list; names, text and explanations are made when someone
asks, or when a forward fails.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.compiler import is_compiling

from ..compat.torch_internals import calls_of, ends_recomputation, is_checkpointing
from .frames import Frame, Thread, inputs_of, outputs_of
from .model import find_adapters
from .trace import ShapeTrace

if TYPE_CHECKING:
    from .explain.failure import Failure

logger = logging.getLogger("peft_hooks")


class Recorder:
    """Everything that one trace has seen."""

    def __init__(self, model: nn.Module, max_calls: int, stats: bool) -> None:
        self.model = weakref.ref(model)
        self.kind = type(model).__name__
        self.max_calls = max_calls
        self.stats = stats
        self.frames: list[Frame] = []
        self.taps: list[Tap] = []
        self.numbers = itertools.count(1)
        self.indices = itertools.count()
        self.skipped: dict[str, int] = {}
        self.trace: ShapeTrace | None = None
        self.peft_models: list[tuple[str, nn.Module]] = []
        self.local = threading.local()
        self.unsure: tuple[int, int | None] = (0, None)  # a forward, and its call, that may have failed
        self.given_up = 0  # the id of an error that could not be explained

    def end(self) -> None:
        """Let go of everything that would otherwise refer to itself in a circle.

        A trace is then freed when the last reference to it is gone, and leaves nothing to the garbage collector, which
        takes as long as many forwards where PyTorch and transformers are loaded.
        """
        if self.trace is not None:
            self.trace._end(self.peft_models, self.taps)
        self.trace = None
        for tap in self.taps:
            tap.recorder = None

    def thread(self) -> Thread:
        """Return what the current thread is doing."""
        try:
            state: Thread = self.local.state
        except AttributeError:
            state = self.local.state = Thread()
        return state

    def keep(self, frame: Frame) -> None:
        """Add a call to the trace. Threads may append out of order; the index has the last word."""
        frame.index = next(self.indices)
        self.frames.append(frame)

    def left(self, frame: Frame, thread: Thread, error: BaseException) -> None:
        """Note that ``error`` left a call; when it leaves the outermost one, the forward has failed."""
        frame.state = "stopped" if ends_recomputation(error) else "raised"
        if frame.tap.recorded:
            if frame.index < 0:
                self.skipped[frame.path] -= 1
                self.keep(frame)
            if frame.raised != id(error):
                thread.failing = frame.index
            frame.raised = id(error)
        if thread.stack:
            thread.stack[-1].raised = frame.raised
            return
        forward, thread.forward = thread.forward, 0  # what follows is another forward
        failing, thread.failing = thread.failing, None
        if is_checkpointing():
            # Gradient checkpointing ends what it computes again with an exception of its own. An error that is none of
            # it leaves the block, and is explained there.
            self.unsure = forward, failing
        else:
            self._explain(error, forward, failing)

    def failed_outside(self, thread: Thread, error: BaseException, tap: Tap) -> None:
        """Note that a hook of someone else raised before the outermost call could be recorded."""
        thread.forward = 0
        thread.enter(tap.path, self.numbers)
        forward, thread.forward = thread.forward, 0
        self._explain(error, forward, None)

    def left_block(self, error: Exception) -> None:
        """Note that an error leaves the block: one that was raised beside the model is explained now."""
        from .explain.entry import explain_outside, is_explained

        forward, failing = self.unsure
        explained = is_explained(error) and self.trace is not None and self.trace.failure is not None
        if explained or self.given_up == id(error):
            return
        if failing is not None and self.frames and self.frames[-1].forward == forward:
            self._explain(error, forward, failing)
        else:
            self._explain_with(error, lambda trace, model: explain_outside(trace, model, error, Tap))

    def _explain(self, error: BaseException, forward: int, failing: int | None) -> None:
        from .explain.entry import explain

        self._explain_with(error, lambda trace, model: explain(trace, model, error, forward, failing, Tap))

    def _explain_with(self, error: BaseException, explain: Callable[[ShapeTrace, nn.Module], Failure | None]) -> None:
        from .explain.entry import add_explanation

        model = self.model()
        if model is None or self.trace is None:
            return
        try:
            self.trace.adapters = find_adapters(self.peft_models)
            failure = explain(self.trace, model)
            if failure is not None:
                self.trace.failure = failure
                add_explanation(error, failure)
        except Exception:  # an error while explaining must not hide the error that is explained
            self.given_up = id(error)
            logger.warning("the failed forward could not be explained", exc_info=True)


class Tap:
    """What the trace puts on a module. A copied or unpickled tap belongs to no trace and does nothing."""

    def __init__(
        self,
        recorder: Recorder | None,
        paths: tuple[str, ...],
        kind: str = "",
        names: tuple[str, ...] = (),
        recorded: bool = True,
        runs: bool = True,
        leaf: bool = False,
    ) -> None:
        self.recorder = recorder
        self.paths, self.path = paths, paths[0]
        self.shared = len(paths) > 1
        self.kind, self.names, self.recorded = kind, names, recorded
        self.kept = 0
        self.runs = runs  # whether there is a forward: a ModuleList has none
        # Whether one hook is enough: nothing is called inside. The steps of a pipeline change their features in place.
        self.leaf = leaf

    def __reduce__(self) -> tuple[Any, ...]:
        return Tap, (None, self.paths)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder = self.recorder
        if recorder is None or is_compiling():
            return
        thread = recorder.thread()
        stack = thread.stack
        if stack and stack[0].tap is self and calls_of(module) <= sum(frame.tap is self for frame in stack):
            stack.clear()  # a KeyboardInterrupt ran no forward hook: what is there is over
        frame = self.begin(recorder, thread, sys.exc_info()[1])
        if self.recorded:
            self.record(frame, recorder, thread, args, kwargs)
        stack.append(frame)

    def whole(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Do the work of ``before`` and ``after`` at once, at half the cost: for a module with no others inside."""
        recorder = self.recorder
        if recorder is None or is_compiling():
            return
        thread = recorder.thread()
        frame = self.begin(recorder, thread, None)
        self.record(frame, recorder, thread, args, kwargs)
        error = sys.exc_info()[1]
        # An error that unwinds this very call has its traceback begin with PyTorch's frame, which called this hook;
        # one that is being handled around the call begins further out.
        trace = None if error is None else error.__traceback__
        failed = trace is not None and trace.tb_frame is sys._getframe(1)
        self.finish(frame, recorder, thread, output, error if failed else None)

    def begin(self, recorder: Recorder, thread: Thread, around: object) -> Frame:
        """Make the frame of a call, at its place among those that the thread is in."""
        stack = thread.stack
        path = self.path_in(stack) if self.shared else self.path
        if not stack:
            thread.enter(path, recorder.numbers)
        return Frame(self, path, thread, stack[-1] if stack else None, around)

    def record(
        self, frame: Frame, recorder: Recorder, thread: Thread, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note what goes into a call, and keep it unless there are many of this module."""
        path = frame.path
        thread.calls[path] = frame.call = thread.calls.get(path, 0) + 1
        frame.inputs = inputs_of(self.names, args, kwargs, recorder.stats)
        if self.kept < recorder.max_calls:
            self.kept += 1
            recorder.keep(frame)
        else:
            recorder.skipped[path] = recorder.skipped.get(path, 0) + 1

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorder = self.recorder
        if recorder is None or is_compiling():
            return
        thread = recorder.thread()
        stack, error = thread.stack, sys.exc_info()[1]
        if not stack or stack[-1].tap is not self:
            # A pre-hook of someone else raised before ours ran, or the block began while this module ran.
            if error is not None and not stack:
                recorder.failed_outside(thread, error, self)
            return
        frame = stack.pop()
        around, frame.around = frame.around, None
        self.finish(frame, recorder, thread, output, None if error is around else error)

    def finish(
        self, frame: Frame, recorder: Recorder, thread: Thread, output: Any, error: BaseException | None
    ) -> None:
        """Note what came out of a call, or the error that left it."""
        if self.recorded and (error is None or output is not None):
            frame.outputs = outputs_of(output, recorder.stats)
        if error is not None:
            recorder.left(frame, thread, error)
        else:
            frame.state = "done"

    def path_in(self, stack: list[Frame]) -> str:
        """Return the path of a shared module under which it is called now: the one inside the caller."""
        for frame in reversed(stack):
            inside = f"{frame.path}." if frame.path else ""
            for path in self.paths:
                if path.startswith(inside):
                    return path
        return self.paths[0]
