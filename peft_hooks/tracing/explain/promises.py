"""Layers that broke their own promise: a Dropout that changed a shape, a Linear whose output is not its width.

PyTorch's layers say by their class and their sizes what they return. If one returned something else before the forward
failed, a hook changed it, or someone replaced its forward.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..._format import dtype_of
from ..leaves import Leaf
from ..records import Row
from .failure import Bound, Finding
from .ghosts import Shape
from .operands import Operand
from .origins import Origin
from .scene import Scene, is_autocast

_KEEPING = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.LayerNorm, nn.Identity, nn.GELU, nn.ReLU,
    nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softmax, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.GroupNorm, nn.Hardtanh, nn.ReLU6, nn.Mish, nn.PReLU,
)  # fmt: skip


def due(module: nn.Module, shape: Shape) -> Shape | None:
    """Return the shape that a layer must return for an input of ``shape``, or None if its class does not tell."""
    if type(module) is nn.Linear:
        return (*shape[:-1], module.out_features)
    if type(module) is nn.Embedding:
        return (*shape, module.embedding_dim)
    if type(module) in _CONVOLUTIONS and len(shape) == len(module.weight.shape):  # type: ignore[arg-type]
        return _convolved(module, shape)
    if type(module) is nn.AdaptiveAvgPool2d and isinstance(module.output_size, int):
        return (*shape[:-2], module.output_size, module.output_size)
    return shape if type(module) in _KEEPING else None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _convolved(module: Any, shape: Shape) -> Shape | None:
    if isinstance(module.padding, str):
        return None
    sizes = []
    settings = zip(shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, module.output_padding)
    for size, kernel, stride, padding, dilation, more in settings:
        reach = dilation * (kernel - 1)
        if module.transposed:
            sizes.append((size - 1) * stride - 2 * padding + reach + more + 1)
        else:
            sizes.append((size + 2 * padding - reach - 1) // stride + 1)
    return (shape[0], module.out_channels, *sizes)


def kind_of_dimension(dimension: int, rank: int, wide: bool = False) -> str:
    """Name a dimension of a tensor ``[batch, length, width]``; what has four dimensions ends in two lengths.

    Args:
        dimension: Which dimension.
        rank: How many the tensor has.
        wide: Whether a tensor of two dimensions ends in its width, as embeddings do and masks do not.
    """
    if dimension == 0 and rank > 1:
        return "batch"
    return "width" if dimension == rank - 1 and (rank in (1, 3) or (rank == 2 and wide)) else "length"


def kind_of(operand: Operand, place: int) -> str:
    """Name a dimension of an operand."""
    return kind_of_dimension(place, len(operand.shape), operand.is_float and not operand.text.endswith("mask"))


def what_changed(known: Shape, shape: Shape, wide: bool = True) -> tuple[str, str] | None:
    """Compare two shapes: transposed, or one dimension changed; None if they are the same or have little in common."""
    if len(known) != len(shape):
        if set(known) - {1} and len(known) and len(shape):
            return "rank", f"{len(shape)} dimensions in place of {len(known)}"
        return None
    if known == shape:
        return None
    if sorted(known) == sorted(shape):
        return "transposed", "its dimensions are transposed"
    places = [place for place, (a, b) in enumerate(zip(known, shape)) if a != b]
    if len(places) != 1:
        return None
    place = places[0]
    kind = kind_of_dimension(place, len(shape), wide)
    noun = {"batch": "row", "length": "position", "width": "column"}[kind]
    before, after = known[place], shape[place]
    if after == 2 * before:
        return kind, f"its {noun}s are doubled"
    count = abs(after - before)
    return kind, f"{count} {noun}{'' if count == 1 else 's'} {'more' if after > before else 'fewer'}"


def changed(scene: Scene, birth: Origin, operand: Operand) -> str:
    """Say what a call made of what it was given, if one size of it changed there."""
    module = scene.modules.get(birth.row.path)
    if not birth.made or module is None:
        return ""
    made: Shape = birth.leaf.shape or ()
    for other in birth.row.came:
        change = what_changed(other.shape or (), made, operand.is_float) if other.dtype == operand.dtype else None
        if change is not None and change[0] == "width" and any(one.dim() > 1 for one in module.parameters()):
            continue  # another width is what such a module is for
        if change is not None and change[0] != "rank" and due(module, other.shape or ()) != made:
            return f"{birth.row.where} turned {other.name} {list(other.shape or ())} into {list(made)}: {change[1]}"
    return ""


def broken_promise(scene: Scene) -> Finding | None:
    """Find the first call in this forward whose output is not what its layer's class promises."""
    found = (_promise(scene, event.row) for event in scene.history.events if event.side == "out")
    return next((finding for finding in found if finding is not None), None)


def _promise(scene: Scene, row: Row) -> Finding | None:
    came, went = _only(row.came[:1]), _only(row.outputs)
    module: Any = scene.modules.get(row.path)
    if module is None or came is None or went is None or row.state != "done":
        return None
    shape = due(module, came.shape or ())
    if shape is None:
        return None
    own = next(iter(module.parameters(recurse=False)), None)
    device = came.device if own is None else own.device
    types = [None if one is None else one.type for one in (came.device, device, went.device)]
    if None not in types and types[0] == types[1] != types[2]:
        return _finding(scene, row, "device", f"is on {went.device}, but {device} is due")
    makes_own = isinstance(module, (nn.Linear, nn.Embedding, *_CONVOLUTIONS))
    dtypes = [came.dtype] * (own is None or not makes_own) + ([] if own is None else [own.dtype])
    if went.dtype is not None and went.dtype not in dtypes and not is_autocast():
        names = [dtype_of(one) for one in dict.fromkeys(dtypes) if one is not None]
        return _finding(scene, row, "dtype", f"is {dtype_of(went.dtype)}, but {' or '.join(names)} is due")
    if went.shape == shape:
        return None
    kind, words = what_changed(shape, went.shape or ()) or ("rank", "another shape")
    what = f"is {list(went.shape or ())}, but {list(shape)} is due: {words}"
    return _finding(scene, row, kind, what, _difference(row, went.shape or (), shape))


def _finding(scene: Scene, row: Row, kind: str, what: str, bounds: tuple[Bound, ...] = ()) -> Finding:
    cause = f"the output of {row.where} {what}{scene.on(row.path)}"
    return Finding(kind, cause, f"look at what {row.where} returns", bounds, row.path)


def _difference(row: Row, shape: Shape, wanted: Shape) -> tuple[Bound, ...]:
    """Return the first size that is not what is due, beside what is."""
    for place, (size, other) in enumerate(zip(shape, wanted)):
        if size != other:
            given = Bound(size, f"the output of {row.where}", shape, place, "", row.path)
            return given, Bound(other, "what is due there", wanted, place, "", None)
    return ()


def _only(leaves: tuple[Leaf, ...]) -> Leaf | None:
    """Return the one tensor among ``leaves``, or None if there are none or several."""
    return leaves[0] if len(leaves) == 1 and leaves[0].shape is not None else None
