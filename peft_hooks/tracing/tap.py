"""``Tap``: what ``trace_shapes`` puts on each module, one PyTorch pre-hook and one forward hook.

A tap appends a ``Frame`` of bare tuples to its recorder's list. Names, text and explanations are made only on request
or when a forward fails.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.compiler import is_compiling

from ..compat.torch_internals import drop_hooks
from ..hooks.running import drop_ended, has_frame
from .frames import Frame, Thread, inputs_of, outputs_of

if TYPE_CHECKING:
    from .recorder import Recorder


class Tap:
    """What a trace puts on a module. A copied or unpickled tap belongs to no trace and is removed.

    On a copy it is removed when the block ends, on an unpickled module in its first forward.
    """

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
        self.runs = runs  # whether it has a forward: a ModuleList has none
        # Whether one hook is enough: it has no modules inside. Not for pipeline steps, which change features in place.
        self.leaf = leaf
        self.module: weakref.ReferenceType[nn.Module] | None = None

    def put_on(self, module: nn.Module) -> Iterator[Any]:
        """Put the hooks on a module, and yield PyTorch's handle of each."""
        self.module = weakref.ref(module)
        if self.leaf:
            yield module.register_forward_hook(self.whole, with_kwargs=True, always_call=True)
        else:
            yield module.register_forward_pre_hook(self.before, with_kwargs=True)
            yield module.register_forward_hook(self.after, always_call=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        copied = Tap(None, self.paths)
        module = None if self.module is None else memo.get(id(self.module()))
        if module is not None and self.recorder is not None:
            self.recorder.copies.append((weakref.ref(module), copied))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Tap, (None, self.paths)

    @torch.jit.unused
    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder = self.recorder
        if recorder is None or is_compiling():
            self.take_off(module)
            return
        thread = recorder.thread()
        frame = self.begin(recorder, thread, module, sys.exc_info()[1])
        frame._visible = has_frame(module)
        if self.recorded:
            self.record(frame, recorder, thread, args, kwargs)
        thread.stack.append(frame)

    @torch.jit.unused
    def whole(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Do the work of both ``before`` and ``after`` at half the cost, for a module without modules inside."""
        recorder = self.recorder
        if recorder is None or is_compiling():
            self.take_off(module)
            return
        thread = recorder.thread()
        frame = self.begin(recorder, thread, module, None)
        self.record(frame, recorder, thread, args, kwargs)
        error = sys.exc_info()[1]
        # If an error is leaving this call, its traceback begins with the PyTorch frame that called this hook; that of
        # an error being handled around the call begins further out.
        trace = None if error is None else error.__traceback__
        failed = trace is not None and trace.tb_frame is sys._getframe(1)
        self.finish(frame, recorder, thread, output, error if failed else None)

    def take_off(self, module: nn.Module) -> None:
        """Remove this tap from the module if it belongs to no trace."""
        if self.recorder is None and not is_compiling():
            drop_hooks(module, self)

    def begin(self, recorder: Recorder, thread: Thread, module: nn.Module, around: object) -> Frame:
        """Make the frame of a call, inside the calls that the thread is in."""
        stack, frame = thread.stack, Frame(self, thread.name, module, around)
        drop_ended(stack, frame)
        if self.shared:
            frame.path = self.path_in(stack)
        if stack:
            frame.parent = stack[-1]
        else:
            thread.enter(frame.path, recorder.numbers)
        frame.forward = thread.forward
        return frame

    def record(
        self, frame: Frame, recorder: Recorder, thread: Thread, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Record what goes into a call, and keep the call unless ``max_calls`` of the module are kept already."""
        path = frame.path
        thread.calls[path] = frame.call = thread.calls.get(path, 0) + 1
        frame.inputs = inputs_of(self.names, args, kwargs, recorder.stats)
        if self.kept < recorder.max_calls:
            self.kept += 1
            recorder.keep(frame)
        else:
            recorder.skipped[path] = recorder.skipped.get(path, 0) + 1

    @torch.jit.unused
    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorder = self.recorder
        if recorder is None or is_compiling():
            self.take_off(module)
            return
        thread = recorder.thread()
        stack, error = thread.stack, sys.exc_info()[1]
        if stack and stack[-1].tap is not self:
            drop_ended(stack)
        if not stack or stack[-1].tap is not self:
            # Another pre-hook raised before this tap's ran, or the block began while this module was running.
            if error is not None and not stack:
                recorder.failed_outside(thread, error, self)
            return
        frame = stack.pop()
        around, frame.around = frame.around, None
        self.finish(frame, recorder, thread, output, None if error is around else error)

    def finish(
        self, frame: Frame, recorder: Recorder, thread: Thread, output: Any, error: BaseException | None
    ) -> None:
        """Record what came out of a call, or the error that left it."""
        if self.recorded and (error is None or output is not None):
            frame.outputs = outputs_of(output, recorder.stats)
        if error is not None:
            recorder.left(frame, thread, error)
        else:
            frame.state = "done"

    def path_in(self, stack: list[Frame]) -> str:
        """Return the path under which a shared module is being called: the one inside its caller."""
        for frame in reversed(stack):
            inside = f"{frame.path}." if frame.path else ""
            for path in self.paths:
                if path.startswith(inside):
                    return path
        return self.paths[0]
