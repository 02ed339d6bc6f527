"""``trace_shapes``: record what goes through every module while a block runs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .._arguments import need_module
from .._public import public
from ..compat.cross_encoders import root_of
from ..compat.sentence_transformers import find_roles
from ..compat.torch_internals import has_children
from ..hooks.call import of_module, positional
from ..hooks.selectors import Selector
from ..hooks.selectors import select as find
from .recorder import Recorder
from .records import find_peft_models
from .tap import Tap
from .trace import ShapeTrace


@public
@contextlib.contextmanager
def trace_shapes(
    model: nn.Module,
    *,
    depth: int | None = None,
    select: Selector | None = None,
    max_calls: int = 100,
    stats: bool = False,
) -> Iterator[ShapeTrace]:
    """Record what goes into every module and what comes out while a block runs.

    Records shapes, dtypes and devices only; no tensor is kept alive. If a forward raises, or code outside the model
    such as a loss, the error propagates with a note (https://peps.python.org/pep-0678) that says where, on what and
    why, and ``trace.failure`` holds the same as data. Exceptions that the model's own code catches, or that the caller
    raises itself, are not failures. Blocks can be nested, threads are told apart, and nothing stays on the model.
    Modules whose ``forward`` is called directly run no hooks: ``trace.gaps`` names them.

    Hooks disable PyTorch's fast paths: ``nn.TransformerEncoder`` in eval mode then runs its layers one by one, and the
    last bits of its output may differ.

    Args:
        model: Any ``nn.Module``.
        depth: The number of levels of modules below the model to record; all by default.
        select: Record only these modules: a role, path, glob, module class, module or predicate, as in
            ``HookRegistry.attach``.
        max_calls: The number of calls to keep per module; further calls, except one that fails, are only counted in
            ``trace.skipped``.
        stats: Also read values: what masks keep, and how many elements are not finite. Synchronizes with the device.

    Yields:
        The trace, which is filled while the block runs.

    Raises:
        TypeError: If ``model`` is not an ``nn.Module``.
        ValueError: If ``depth`` is negative or ``max_calls`` is less than 1.
        SelectorError: If ``select`` matches no module.

    Example:
        >>> import torch
        >>> from peft_hooks import trace_shapes
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> with trace_shapes(model) as trace:
        ...     _ = model(torch.zeros(4, 2))
        >>> [f"{row.path} {row.module}: {row.outputs[0]}" for row in trace.rows]
        [' Sequential: output f32[4,3]', '0 Linear: output f32[4,3]', '1 ReLU: output f32[4,3]']
    """
    model = root_of(model)
    need_module(model, "trace_shapes")
    if max_calls < 1 or (depth is not None and depth < 0):
        raise ValueError(f"max_calls must be at least 1 and depth not negative, got {max_calls} and {depth}")
    recorder = Recorder(model, max_calls, stats)
    recorder.trace = trace = ShapeTrace(recorder.kind, recorder.frames, recorder.skipped, stats)
    handles: list[Any] = []
    try:
        for handle in _put_on(model, recorder, depth, select):
            handles.append(handle)
        try:
            yield trace
        except Exception as error:
            recorder.left_block(error)
            raise
    finally:
        for handle in handles:
            handle.remove()
        recorder.end()


def _put_on(model: nn.Module, recorder: Recorder, depth: int | None, select: Selector | None) -> Iterator[Any]:
    """Put a tap on every module to record, and yield PyTorch's handle of each hook. Nothing here outlives the loop."""
    paths: dict[nn.Module, tuple[str, ...]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths[module] = (*paths.get(module, ()), path)
    recorder.peft_models = find_peft_models(paths)
    chosen = None if select is None else {module for _, module in find(model, select, find_roles)}
    for module, tap in _taps(recorder, paths, depth, chosen):
        yield from tap.put_on(module)
        recorder.taps.append(tap)


def _taps(
    recorder: Recorder,
    paths: Mapping[nn.Module, tuple[str, ...]],
    depth: int | None,
    chosen: Collection[nn.Module] | None,
) -> Iterator[tuple[nn.Module, Tap]]:
    """Yield a tap for every module to record, and for the model and its children, which tell forwards apart."""
    for module, places in paths.items():
        # The level of a shared module is that of its highest path.
        level = _level(places[0]) if len(places) == 1 else min(map(_level, places))
        recorded = (chosen is None or module in chosen) and (depth is None or level <= depth)
        if (recorded or level <= 1) and not isinstance(module, torch.jit.ScriptModule):
            runs = type(module).forward is not nn.Module.forward
            leaf = level > 1 and not has_children(module)
            yield module, Tap(recorder, places, type(module).__name__, parameters_of(module), recorded, runs, leaf)


def _level(path: str) -> int:
    return path.count(".") + 1 if path else 0


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's forward."""
    own = vars(module).get("forward")
    if own is not None:  # PEFT leaves one on a model whose adapter was disabled
        return positional(own, 0)
    return of_module(module)
