"""What a trace records about each call and each thread while forwards run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import Tensor, nn

from .leaves import Raw, collect

if TYPE_CHECKING:
    from .tap import Tap


class Frame:
    """One call of one module, during the call and after it. Holds no tensor and no exception."""

    __slots__ = (
        "_module",
        "_visible",
        "around",
        "call",
        "forward",
        "index",
        "inputs",
        "outputs",
        "parent",
        "path",
        "raised",
        "state",
        "tap",
        "thread",
    )

    def __init__(self, tap: Tap, thread: str, module: nn.Module, around: object) -> None:
        self.tap = tap
        self.path = tap.path
        self.thread = thread
        self._module = ref(module)
        self._visible = False
        self.forward = 0
        self.parent: Frame | None = None
        self.call = 0
        self.index = -1
        self.inputs: list[Raw] | tuple[()] = ()
        self.outputs: list[Raw] | tuple[()] = ()
        self.state = "running"
        self.around = around  # the error that was being handled when the call began
        self.raised = 0  # id of the last error that left this call or a recorded call inside it

    @property
    def module(self) -> nn.Module | None:
        """The module that is called (a replica, under ``DataParallel``), while it lives."""
        return self._module()

    @property
    def _owner(self) -> Tap:
        return self.tap


class Thread:
    """What one thread is doing: the calls that it is in, and the forward that they belong to."""

    def __init__(self) -> None:
        self.name = threading.current_thread().name
        self.stack: list[Frame] = []
        self.forward = 0
        self.calls: dict[str, int] = {}
        self.outermost: set[str] = set()
        self.failing: int | None = None  # index of the innermost recorded call that the current error left

    def enter(self, path: str, numbers: Iterator[int]) -> None:
        """Begin a forward, unless ``path`` continues the one that the last outermost call belongs to.

        Sentence Transformers before 5.7 never calls the whole model, only its modules one by one.
        """
        if not self.forward or path in self.outermost or not path or "" in self.outermost:
            self.forward = next(numbers)
            self.calls = {}
            self.outermost = set()
        self.outermost.add(path)


def inputs_of(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], stats: bool) -> list[Raw]:
    """Return every leaf of what goes in, named after the parameters."""
    found: list[Raw] = []
    for index, value in enumerate(args):
        name = names[index] if index < len(names) else f"args.{index}"
        if type(value) is Tensor and not stats:  # the most common input; every microsecond counts here
            try:
                found.append((name, value.shape, value.dtype, value.device, ref(value), None))
                continue
            except RuntimeError:  # a nested tensor has no shape
                pass
        collect(found, name, value, stats)
    for name, value in kwargs.items():
        collect(found, name, value, stats)
    return found


def outputs_of(output: Any, stats: bool) -> list[Raw]:
    """Return every leaf of what came out."""
    if type(output) is Tensor and not stats:
        try:
            return [("output", output.shape, output.dtype, output.device, ref(output), None)]
        except RuntimeError:  # a nested tensor has no shape
            pass
    found: list[Raw] = []
    collect(found, "" if isinstance(output, (dict, Mapping)) else "output", output, stats)
    return found
