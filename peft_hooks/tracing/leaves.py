"""Take the inputs and outputs of modules apart into named leaves: plain data that keeps no tensor alive.

``collect`` runs inside every traced forward, so it appends bare tuples; they become ``Leaf`` objects on demand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from .._format import dtype_of, nested_shape, padding_of

Raw = tuple[Any, ...]
"""``(name, shape, dtype, device, reference, stats)`` for a tensor, ``(name, text)`` for anything else."""

MOST = 256  # leaves per call: enough for the hidden states of the deepest models, not for a list of a thousand ids
_DEEPEST = 6
_SHOWN_ROWS = 8


class Stats(NamedTuple):
    """What was read from a tensor's values; only with ``stats=True``.

    Attributes:
        kept: The number of positions that a mask keeps; None if the tensor is not a mask.
        total: The number of elements.
        padding: Where a mask has its padding: ``none``, ``left``, ``right``, ``inside`` or ``mixed``.
        rows: The runs in each of a mask's first rows, ``((kept, length), ...)``.
        nonfinite: The number of elements that are NaN or infinite.
    """

    kept: int | None
    total: int
    padding: str
    rows: tuple[tuple[tuple[bool, int], ...], ...]
    nonfinite: int


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of what went into or came out of a module.

    Attributes:
        name: ``"features.token_embeddings"`` on the way in, ``"token_embeddings"`` or ``"output"`` on the way out.
        shape: The tensor's shape; None if the leaf is not a tensor.
        dtype: The tensor's dtype.
        device: The tensor's device.
        text: A leaf that is not a tensor, as text: ``"None"``, ``"True"``, ``"10"``, or its class.
        stats: What was read from the values, with ``stats=True``.
        identity: Identifies the tensor as long as the trace keeps its calls: see ``identity_of``.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    text: str = ""
    stats: Stats | None = None
    identity: int = dataclasses.field(default=0, compare=False, repr=False)

    @property
    def key(self) -> str:
        """The last part of the name: ``"token_embeddings"``."""
        return self.name.rpartition(".")[2]

    @property
    def size(self) -> str:
        """Dtype and shape, such as ``"f32[2,18,384]"``, or the text of a leaf that is not a tensor."""
        if self.shape is None or self.dtype is None:
            return self.text
        where = "" if self.device is None or self.device.type != "meta" else " on meta"
        return f"{dtype_of(self.dtype)}[{','.join(map(str, self.shape))}]{where}"

    def __str__(self) -> str:
        line = f"{self.name} {self.size}"
        if self.stats is not None and self.stats.kept is not None:
            line += f" kept {self.stats.kept}/{self.stats.total} pad {self.stats.padding}"
        if self.stats is not None and self.stats.nonfinite:
            line += f" ({self.stats.nonfinite} not finite)"
        return line

    def to_dict(self) -> dict[str, Any]:
        """Return the leaf as JSON-serializable data."""
        if self.shape is None:
            return {"name": self.name, "value": self.text}
        data: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }
        if self.stats is not None:
            data["stats"] = self.stats._asdict()
        return data


def tensors_of(leaves: Iterable[Leaf]) -> tuple[Leaf, ...]:
    """Return the leaves that are tensors."""
    return tuple(leaf for leaf in leaves if leaf.shape is not None)


def as_leaf(raw: Raw) -> Leaf:
    """Make a ``Leaf`` from a tuple that ``collect`` appended."""
    name = raw[0].encode("utf-8", "backslashreplace").decode("utf-8")  # escapes what a terminal could not print
    if len(raw) == 2:
        return Leaf(name, text=raw[1])
    _, shape, dtype, device, reference, stats = raw
    try:
        sizes = tuple(int(size) for size in shape)
    except Exception:  # a symbolic size
        return Leaf(name, text=f"{dtype_of(dtype)}[{','.join(map(str, shape))}]")
    return Leaf(name, sizes, dtype, device, "", stats, id(reference))


def identity_of(tensor: Tensor) -> int:
    """Return a number that identifies a tensor among all those that a trace has recorded.

    The ``id`` of a tensor is reused once the tensor is freed. Its weak reference is the same object for as long as the
    tensor lives, and the trace keeps the reference afterwards, so the reference's ``id`` is not reused.
    """
    return id(ref(tensor))


def collect(found: list[Raw], name: str, value: Any, stats: bool = False, depth: int = 0) -> None:
    """Append every leaf of ``value`` to ``found``: tensors in dicts, tuples, model outputs, dataclasses and caches.

    Args:
        found: Grows by one tuple for each leaf, up to a limit.
        name: The name of ``value``; a leaf inside it is called ``name.key``, or ``key`` if ``name`` is empty.
        value: Anything.
        stats: Whether to read values.
        depth: How deeply the value is nested.
    """
    if len(found) >= MOST:
        if found[-1][0] != "...":
            found.append(("...", "more"))
    elif type(value) is Tensor or isinstance(value, Tensor):
        found.append(_tensor(name, value, stats))
    elif value is None or value is True or value is False or type(value) is int:
        found.append((name, str(value)))
    elif depth > _DEEPEST:
        found.append((name, type(value).__name__))
    else:
        _collect_inside(found, name, value, stats, depth)


def _tensor(name: str, value: Tensor, stats: bool) -> Raw:
    try:
        if value.is_nested:
            return (name, "nested" + nested_shape(value))
        reference = ref(value)
        return (name, value.shape, value.dtype, value.device, reference, _stats(name, value) if stats else None)
    except Exception:  # a foreign tensor without a shape or weak references
        return (name, type(value).__name__)


def _collect_inside(found: list[Raw], name: str, value: Any, stats: bool, depth: int) -> None:
    """Append the leaves of a value that is not a tensor, as far as they can be read, up to the limit."""
    try:
        inner = _inside(value)
        if inner is None:
            found.append((name, type(value).__name__))
            return
        for key, part in inner:
            if len(found) >= MOST:
                collect(found, name, None)
                return
            collect(found, f"{name}.{key}" if name else str(key), part, stats, depth + 1)
    except Exception:  # it is recorded as unreadable, and the forward continues
        found.append((name, f"{type(value).__name__}(unreadable)"))


def _inside(value: Any) -> Any:
    """Return the parts of ``value`` with their names, or None if it is a leaf."""
    if isinstance(value, (dict, Mapping)):  # dict first: checking for the abstract class is slow
        return value.items()
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        return zip(names, value) if names else enumerate(value)
    if "Cache" in type(value).__name__ or type(value).__name__.endswith("Layer"):
        # transformers' caches hold keys and values in lists, or in one object per layer; the rest is bookkeeping.
        own = getattr(value, "__dict__", {})
        return [(key, part) for key, part in own.items() if isinstance(part, (Tensor, list, dict, tuple))] or [
            (key, part) for key, part in own.items() if "cache" in key
        ]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return None


def _stats(name: str, tensor: Tensor) -> Stats | None:
    try:
        return _read(name, tensor)
    except Exception:  # the values cannot be read, for instance under vmap
        return None


def _read(name: str, tensor: Tensor) -> Stats | None:
    if type(tensor.data) is not Tensor or tensor.device.type == "meta" or not tensor.numel():
        return None
    total = tensor.numel()
    if name.endswith("mask") and tensor.dim() == 2:
        kept = tensor.detach().bool().cpu()
        rows = tuple(_runs(row) for row in kept[:_SHOWN_ROWS].tolist())
        return Stats(int(kept.sum()), total, padding_of(kept), rows, 0)
    if tensor.is_floating_point() and tensor.layout == torch.strided:
        return Stats(None, total, "", (), int((~tensor.detach().isfinite()).sum()))
    return None


def _runs(row: list[bool]) -> tuple[tuple[bool, int], ...]:
    runs: list[tuple[bool, int]] = []
    for kept in row:
        if runs and runs[-1][0] == kept:
            runs[-1] = (kept, runs[-1][1] + 1)
        else:
            runs.append((kept, 1))
    return tuple(runs)
