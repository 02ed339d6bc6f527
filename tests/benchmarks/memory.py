"""Measure what a trace of 1,000 forwards holds: no tensors, and a bounded number of rows."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import torch
from torch import nn

from peft_hooks import Hook, HookRegistry, trace_shapes

from .table import Row

MOST, LAYERS, BATCH, WIDTH = 10, 8, 4, 16


class Weak(Hook):
    """Count the modules' output tensors that are still alive."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Any]] = []

    def after(self, call: Any, output: Any) -> None:
        self._seen.append(weakref.ref(output))

    def alive(self) -> int:
        """Return the number of live tensors."""
        gc.collect()
        return sum(reference() is not None for reference in self._seen)


def measure(quick: bool = False) -> list[Row]:
    """Trace many forwards of a small model in one block."""
    forwards = 20 if quick else 1000
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    weak, modules = Weak(), LAYERS + 1
    HookRegistry(model).attach(weak, to=nn.Linear)
    with torch.no_grad(), trace_shapes(model, max_calls=MOST) as trace:
        run(model, forwards)
        alive, rows = weak.alive(), len(trace)
    what = f"a trace of {forwards:,} forwards"
    after, after_more = memory(forwards)
    return [
        Row.of(f"{what}: tensors kept alive", "of all that passed", [alive], 0, "tensors", passed=forwards * LAYERS),
        Row.of(f"{what}: rows", f"max_calls={MOST} for each of {modules} modules", [rows / (MOST * modules)], 1),
        Row.of(f"{what}: bytes held after twice as many", "after so many", [after_more / after], 1.01),
    ]


def run(model: nn.Module, forwards: int) -> None:
    """Run the given number of forwards."""
    for _ in range(forwards):
        model(torch.zeros(BATCH, WIDTH))


def memory(forwards: int) -> tuple[int, int]:
    """Return the bytes of Python memory that a trace holds after ``forwards`` forwards, and after twice as many.

    Only allocations by the library and PyTorch count: the progress bar allocates in a thread of its own.
    """
    ours = [tracemalloc.Filter(True, f"*/{package}/*") for package in ("peft_hooks", "torch")]
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    sizes = []
    tracemalloc.start()
    try:
        with torch.no_grad(), trace_shapes(model, max_calls=MOST):
            run(model, MOST)  # so that one-time allocations are done
            for _ in range(2):
                run(model, forwards)
                gc.collect()
                held = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
                sizes.append(sum(of_file.size for of_file in held))
    finally:
        tracemalloc.stop()
    return sizes[0], sizes[1]
