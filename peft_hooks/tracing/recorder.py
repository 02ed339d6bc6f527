"""``Recorder``: what one trace has seen, and what happens to an error on its way out."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from ..compat.torch_internals import drop_hooks, ends_recomputation, is_checkpointing
from .frames import Frame, Thread
from .records import find_adapters
from .tap import Tap
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
        self.copies: list[tuple[weakref.ReferenceType[nn.Module], Tap]] = []
        self.numbers = itertools.count(1)
        self.indices = itertools.count()
        self.skipped: dict[str, int] = {}
        self.trace: ShapeTrace | None = None
        self.peft_models: list[tuple[str, nn.Module]] = []
        self.local = threading.local()
        self.unsure: tuple[int, int | None] = (0, None)  # a forward that may have failed, and its failing call
        self.given_up = 0  # the id of an error that could not be explained

    def end(self) -> None:
        """Break all reference cycles.

        A trace is then freed along with the last reference to it, without the garbage collector, which takes as long as
        many forwards once PyTorch and transformers are loaded.
        """
        if self.trace is not None:
            self.trace._end(self.peft_models, self.taps)
        self.trace = None
        for tap in self.taps:
            tap.recorder = None
        for reference, tap in self.copies:
            module = reference()
            if module is not None:
                drop_hooks(module, tap)
        self.copies.clear()

    def thread(self) -> Thread:
        """Return the state of the current thread."""
        try:
            state: Thread = self.local.state
        except AttributeError:
            state = self.local.state = Thread()
        return state

    def keep(self, frame: Frame) -> None:
        """Add a call to the trace. Threads may append out of order; the index gives the order."""
        frame.index = next(self.indices)
        self.frames.append(frame)

    def left(self, frame: Frame, thread: Thread, error: BaseException) -> None:
        """Record that ``error`` left a call; if it is the outermost one, the forward has failed."""
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
        forward, thread.forward = thread.forward, 0  # the next call begins another forward
        failing, thread.failing = thread.failing, None
        if is_checkpointing():
            # Gradient checkpointing ends a recomputation with an exception of its own. Any other error leaves the block
            # and is explained there.
            self.unsure = forward, failing
        else:
            self._explain(error, forward, failing)

    def failed_outside(self, thread: Thread, error: BaseException, tap: Tap) -> None:
        """Record that another hook raised before the outermost call could be recorded."""
        thread.forward = 0
        thread.enter(tap.path, self.numbers)
        forward, thread.forward = thread.forward, 0
        self._explain(error, forward, None)

    def left_block(self, error: Exception) -> None:
        """Explain an error that leaves the block if it was raised outside the model, or has not been explained yet."""
        from .explain.entry import explain_outside, is_explained

        forward, failing = self.unsure
        explained = is_explained(error) and self.trace is not None and self.trace.failure is not None
        if explained or self.given_up == id(error):
            return
        if failing is not None and self.frames and self.frames[-1].forward == forward:
            self._explain(error, forward, failing)
        else:
            self._explain_with(error, lambda trace, model: explain_outside(trace, model, error))

    def _explain(self, error: BaseException, forward: int, failing: int | None) -> None:
        from .explain.entry import explain

        self._explain_with(error, lambda trace, model: explain(trace, model, error, forward, failing))

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
        except Exception:  # an error in the explanation must not hide the original error
            self.given_up = id(error)
            logger.warning("the failed forward could not be explained", exc_info=True)
