"""From an exception's message and the shapes that were recorded to a cause. What is not known is said to be unknown.

Each rule looks at the scene and returns a ``Finding``, or None if it does not apply; the first that applies wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..._format import dtype_of
from ..model import Adapter
from ..trace import Row
from .failure import Finding
from .history import History, Operand
from .inputs import too_long
from .layers import broken_promise
from .missing import argument, missing_key, named_argument, none
from .shapes import because_of_shapes


@dataclass(frozen=True)
class Scene:
    """What is known when a forward has failed.

    Attributes:
        row: The innermost recorded call that raised.
        module: Its module.
        inner: The innermost module that was running, recorded or not.
        kind: The exception's class.
        message: Its message.
        history: What happened in this forward.
        modules: The model's modules by path.
        adapters: The active adapters that learn prompts.
        hooks_of: Returns the hooks that others have on the module at a path.
        pipeline: Whether the model is one of Sentence Transformers'.
    """

    row: Row
    module: nn.Module
    inner: nn.Module
    kind: type[BaseException]
    message: str
    history: History
    modules: Mapping[str, nn.Module]
    adapters: Sequence[Adapter]
    hooks_of: Callable[[str], list[str]]
    pipeline: bool

    def on(self, path: str | None) -> str:
        """Name the hooks that others have on the module at ``path``, as the end of a sentence."""
        names = [] if path is None else self.hooks_of(path)
        return f"; it has {' and '.join(names)} on it" if names else ""


def find_cause(scene: Scene) -> Finding:
    """Return the cause of the first rule that applies, or one of kind ``"unknown"``."""
    for rule in (
        missing_key,
        none,
        argument,
        named_argument,
        broken_promise,
        _device,
        _dtype,
        _index,
        because_of_shapes,
        _turned,
    ):
        finding = rule(scene)
        if finding is not None:
            return finding
    return Finding("unknown", "no known cause: the shapes that were recorded do not tell")


def _turned(scene: Scene) -> Finding | None:
    """An error that tells nothing, after a module exchanged batch and length."""
    origin = scene.history.turned()
    if origin is None:
        return None
    row, shape = origin.event.row, list(origin.leaf.shape or ())
    cause = f"{row.where} was given [batch, length, ...] and returned {shape}: batch and length are transposed"
    return Finding("transposed", cause + scene.on(row.path), f"look at what {row.where} returns", culprit=row.path)


def _parameters(module: nn.Module) -> list[Any]:
    return [*module.parameters(recurse=False)] or [*module.parameters()]


def _device(scene: Scene) -> Finding | None:
    words = r"same device|on device|meta tensor|out of meta|meta device|device meta|device type"
    if not re.search(words, scene.message):
        return None
    operands = scene.history.operands()
    own = next((parameter.device for parameter in _parameters(scene.module)), None)
    if own is not None and own.type == "meta":
        cure = "load the weights, for instance with from_pretrained, or call model.to_empty(device=...)"
        return Finding("device", f"the parameters of {scene.row.where} are on the meta device and have no values", cure)
    usual = own or next((one.leaf.device for one in operands if one.leaf.key == "input_ids"), None)
    for one in operands:
        if one.leaf.device is not None and one.leaf.device != (usual or one.leaf.device):
            return _odd(scene, one, "device", f"is on {one.leaf.device}, but {_whose(scene, own)} on {usual}")
    for one in operands:
        if one.leaf.device is not None and one.leaf.device.type == "meta":
            return _odd(scene, one, "device", "is on meta and has no values")
    return None


def _dtype(scene: Scene) -> Finding | None:
    words = (
        r"dtype|scalar type|not implemented for|Float and|same type|can't be cast|type \(|index tensors|used as indices"
    )
    if not re.search(words, scene.message):
        return None
    operands = scene.history.operands()
    own = next((parameter.dtype for parameter in _parameters(scene.module)), None)
    floats = [one for one in operands if one.leaf.dtype is not None and one.leaf.dtype.is_floating_point]
    if isinstance(scene.module, nn.Embedding):
        one = next(iter(floats), None)
        return (
            None if one is None else _odd(scene, one, "dtype", f"is {_short(one)}, but an Embedding looks up integers")
        )
    takes_any = not isinstance(scene.module, (nn.Linear, nn.LayerNorm))
    for one in floats if takes_any else operands:
        if own is not None and one.leaf.dtype != own:
            return _odd(scene, one, "dtype", f"is {_short(one)}, but {_whose(scene, own)} {dtype_of(own)}")
    kinds = {one.leaf.dtype: one for one in floats}
    if len(kinds) > 1:
        latest = max(kinds.values(), key=lambda one: getattr(scene.history.origin(one.leaf), "when", -1))
        others = ", ".join(f"{one.label} is {_short(one)}" for one in kinds.values() if one is not latest)
        return _odd(scene, latest, "dtype", f"is {_short(latest)}, but {others}")
    return None


def _whose(scene: Scene, own: object) -> str:
    return f"the parameters of {scene.row.where} are" if own is not None else "the rest is"


def _index(scene: Scene) -> Finding | None:
    module = scene.inner
    if not issubclass(scene.kind, IndexError) or "out of range in self" not in scene.message:
        return None
    if not isinstance(module, nn.Embedding):
        return None
    cause = f"an index is beyond the {module.num_embeddings} rows of the Embedding"
    longest = max((leaf.shape[-1] for leaf in scene.row.came if leaf.shape), default=0)
    if longest > module.num_embeddings and "position" in scene.row.path:
        return too_long(scene, longest, module.num_embeddings, ())
    return Finding("index", cause, "check that the tokenizer belongs to the model, and the length of the texts")


def _short(one: Operand) -> str:
    return "" if one.leaf.dtype is None else dtype_of(one.leaf.dtype)


def _odd(scene: Scene, one: Operand, kind: str, what: str) -> Finding:
    """Return a finding about a tensor that is not like the rest, with where it comes from."""
    origin = scene.history.origin(one.leaf)
    if origin is None or not origin.made:  # a part of a tensor, made between the calls: go back to the whole
        origin = scene.history.first(lambda leaf: getattr(leaf, kind) == getattr(one.leaf, kind)) or origin
    source = "" if origin is None or origin.event.row is one.row else f", {origin.source(scene.history.rows)},"
    if origin is None or not origin.made:
        return Finding(kind, f"{one.label}{source} {what}", f"convert {one.label} before the call")
    row = origin.event.row
    cause = f"{one.label}{source} {what}{scene.on(row.path)}"
    return Finding(kind, cause, f"look at what {row.where} returns", culprit=row.path)
