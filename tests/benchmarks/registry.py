"""Measure the cost of the registry's order, names and counts against PyTorch's own hooks, and how attaching scales."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from peft_hooks import HookRegistry, register_prompt_mask_hooks

from .attached import Nothing
from .dimensions import HandOn
from .models import minilm
from .table import Row
from .timing import in_turns, ratios, raw_of

HOOKS, MODULES = (1, 10, 100), (10, 100, 1000, 10_000)


class Counting:
    """Two native hooks that do what an empty registry hook does: count the calls, and run before and after."""

    def __init__(self) -> None:
        self.calls = 0

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls += 1

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        return None


def measure(quick: bool = False) -> list[Row]:
    """Measure calling a module with hooks, attaching and removing."""
    return [*running(quick), *attaching(quick)]


def running(quick: bool) -> list[Row]:
    """Measure one call of a module with different numbers of hooks, run before and after."""
    rows = []
    features = {"attention_mask": torch.ones(1)}
    for count in HOOKS:
        ours, native = HandOn(), HandOn()
        registry = HookRegistry(ours)
        for _ in range(count):
            registry.attach(Nothing(), to="")
            hook = Counting()
            native.register_forward_pre_hook(hook.before, with_kwargs=True)
            native.register_forward_hook(hook.after, always_call=True)
        works = {"ours": lambda m=ours: m(features), "native": lambda m=native: m(features)}
        times = in_turns(works, 3 if quick else 300, 50)
        what = f"a call with {count} hook{'s' if count > 1 else ''} of a registry on the module"
        goal = 1.5 if count > 1 else None  # noting the call, for what is called inside, costs about a native pair
        rows.append(Row.of(what, "as many native pairs", ratios(times, "ours", "native"), goal, **raw_of(times)))
    return rows


def attaching(quick: bool) -> list[Row]:
    """Measure attaching one hook to all modules and removing it."""
    counts = MODULES[:2] if quick else MODULES
    models = {str(count): nn.Sequential(*(HandOn() for _ in range(count - 1))) for count in counts}
    # Many new objects trigger Python's garbage collector, which walks everything that PyTorch and transformers have
    # loaded. At 10,000 modules this takes longer than attaching, for native hooks too, and is not what is measured.
    with no_collector():
        times = in_turns({name: cycle(model) for name, model in models.items()}, 3 if quick else 15)
    each = {name: [taken / int(name) for taken in found] for name, found in times.items()}
    first, last = str(counts[1]), str(counts[-1])
    rows = [
        Row.of(
            f"attach and remove, per module of {int(last):,}",
            f"per module of {first}",
            ratios(each, last, first),
            1.5,
            **{f"microseconds per module of {name}": found for name, found in each.items()},
        )
    ]
    model = minilm(10)
    taken = in_turns({"MiniLM": lambda: register_prompt_mask_hooks(model).remove()}, 3 if quick else 40)["MiniLM"]
    every = minilm()
    both = in_turns({"every": cycle(every)}, 3 if quick else 40)["every"]
    what = "register_prompt_mask_hooks on MiniLM, and remove"
    rows.append(Row.of(what, "-", [us / 1000 for us in taken], None, "ms"))  # with forwards that measure the model
    what = f"a hook on all {sum(1 for _ in every.modules())} modules of MiniLM, and remove"
    return [*rows, Row.of(what, "-", [us / 1000 for us in both], 5, "ms")]


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Collect no garbage for the duration of a block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cycle(model: nn.Module) -> Callable[[], None]:
    """Return a function that attaches a hook to every module and removes it."""
    registry = HookRegistry(model)

    def run() -> None:
        registry.detach(registry.attach(Nothing(), to=every))

    return run


def every(path: str, module: nn.Module) -> bool:
    """Select all modules."""
    return True
