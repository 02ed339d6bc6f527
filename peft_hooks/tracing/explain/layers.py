"""Modules that broke their own promise: a Dropout that changes a shape, a Linear whose output is not its width.

PyTorch's layers say by their class and their sizes what they return. If one returned something else before the forward
failed, a hook changed it, and that is the cause, wherever the error was raised in the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..._format import dtype_of
from ..leaves import Leaf
from ..trace import Row
from .failure import Bound, Finding
from .messages import due, what_changed
from .shapes import clash_bounds

if TYPE_CHECKING:
    from .rules import Scene


def broken_promise(scene: Scene) -> Finding | None:
    """Find the first call in this forward whose output is not what its module's class promises, or its like gave."""
    found = [_promise(scene, event.row) for event in scene.history.events if event.side == "out"]
    sure = next((finding for finding in found if finding is not None), None)
    return sure if sure is not None else _unlike_its_last_part(scene)


def _promise(scene: Scene, row: Row) -> Finding | None:
    came, went = _only(row.came[:1]), _only(row.outputs)
    module = scene.modules.get(row.path)
    if module is None or came is None or went is None or row.state != "done":
        return None
    shape = due(module, came.shape or ())
    if shape is None:
        return None
    device = next((parameter.device for parameter in module.parameters(recurse=False)), came.device)
    if went.device is not None and device is not None and went.device.type != device.type:
        what = f"is on {went.device}, but {device} is due"
        return _finding(scene, row, "device", what)
    dtypes = _dtypes_due(module, came)
    if went.dtype is not None and went.dtype not in dtypes and not _autocast():
        what = f"is {dtype_of(went.dtype)}, but {' or '.join(map(dtype_of, dtypes))} is due"
        return _finding(scene, row, "dtype", what)
    if went.shape == shape:
        return None
    kind, words = what_changed(shape, went.shape or ()) or ("unknown", "another shape")
    what = f"is {list(went.shape or ())}, but {list(shape)} is due: {words}"
    return _finding(scene, row, kind, what, _difference(row, went.shape or (), shape))


def _finding(scene: Scene, row: Row, kind: str, what: str, bounds: tuple[Bound, ...] = ()) -> Finding:
    cause = f"the output of {row.where} {what}{scene.on(row.path)}"
    return Finding(kind, cause, f"look at what {row.where} returns", clash_bounds(scene) or bounds, row.path)


def _difference(row: Row, shape: tuple[int, ...], due: tuple[int, ...]) -> tuple[Bound, ...]:
    """Return the first size that is not what is due, beside what is; for messages that name no sizes."""
    for place, (size, wanted) in enumerate(zip(shape, due)):
        if size != wanted:
            given = Bound(size, f"the output of {row.where}", shape, place, "", row.path)
            return given, Bound(wanted, "what is due there", due, place, "", None)
    return ()


def _dtypes_due(module: nn.Module, came: Leaf) -> list[torch.dtype]:
    """Return the dtypes that a module may return: a norm may keep its input's, or cast to its weight's as T5's does."""
    weight = next((parameter.dtype for parameter in module.parameters(recurse=False)), None)
    if isinstance(module, (nn.Linear, nn.Embedding)):
        return [module.weight.dtype]
    return list(dict.fromkeys(dtype for dtype in (came.dtype, weight) if dtype is not None))


def _autocast() -> bool:
    return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def _unlike_its_last_part(scene: Scene) -> Finding | None:
    """Find the first call that returned nearly, but not quite, what the last call inside it did.

    Most modules return what their last part returned. Only those with a hook of someone else on them are looked at.
    """
    for when, event in enumerate(scene.history.events):
        row, went = event.row, _only(event.row.outputs[:1])
        if event.side != "out" or row.state != "done" or went is None:
            continue
        origin = scene.history.origin(went)
        parts = [other for other in scene.history.rows if other.parent == row.index and other.state == "done"]
        last = _only(parts[-1].outputs[:1]) if parts else None
        if last is None or origin is None or not origin.made or origin.when != when:
            continue
        change = what_changed(last.shape or (), went.shape or ())
        if change is None and last.dtype == went.dtype and last.device == went.device:
            continue
        if change is None:
            kind = "dtype" if last.dtype != went.dtype else "device"
            change = kind, f"it is {went.size}, not {last.size}"
        if not scene.on(row.path):  # what a module does after its last part is its own affair
            continue
        what = (
            f"is {list(went.shape or ())}, but {list(last.shape or ())} came out of {parts[-1].where} last: {change[1]}"
        )
        return _finding(scene, row, change[0], what, _difference(row, went.shape or (), last.shape or ()))
    return None


def _only(leaves: tuple[Leaf, ...]) -> Leaf | None:
    """Return the one tensor among ``leaves``, or None if there are none or several."""
    return leaves[0] if len(leaves) == 1 and leaves[0].shape is not None else None
