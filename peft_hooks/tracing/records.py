"""The records in a trace: calls, prompt-learning adapters, and modules that hooks cannot see."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..compat import sentence_transformers as releases
from .leaves import Leaf, as_leaf, tensors_of


@dataclass(frozen=True)
class Row:
    """One call of one module.

    Attributes:
        index: The position in ``trace.rows``, which is in the order in which calls began.
        path: The module's path; for a shared module, the path under which it was called.
        module: The module's class name.
        also: Other paths of a shared module.
        forward: The number of the forward that the call belongs to, from 1.
        call: The number of the call of this path in this forward, from 1.
        parent: The index of the traced call around this one, or None.
        thread: The name of the thread.
        inputs: What went in, as it was when the call began, named after the parameters.
        outputs: What came out.
        state: ``"done"``, ``"raised"``, ``"stopped"`` if gradient checkpointing ended a recomputation early, or
            ``"running"`` if the trace saw none of these.
    """

    index: int
    path: str
    module: str
    also: tuple[str, ...]
    forward: int
    call: int
    parent: int | None
    thread: str
    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    state: str

    @property
    def where(self) -> str:
        """The module as text: ``"Pooling '1'"``."""
        return f"{self.module} {self.path!r}"

    @property
    def came(self) -> tuple[Leaf, ...]:
        """The tensors that went in."""
        return tensors_of(self.inputs)

    @property
    def went(self) -> tuple[Leaf, ...]:
        """The tensors that came out, except those that went in under the same key with the same shape and dtype."""
        known = {(leaf.key, leaf.shape, leaf.dtype) for leaf in self.came}
        return tuple(leaf for leaf in tensors_of(self.outputs) if (leaf.key, leaf.shape, leaf.dtype) not in known)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-serializable data."""
        plain = {name: getattr(self, name) for name in ("index", "path", "module", "forward", "call", "parent")}
        return {
            **plain,
            "also": list(self.also),
            "thread": self.thread,
            "state": self.state,
            "inputs": [leaf.to_dict() for leaf in self.inputs],
            "outputs": [leaf.to_dict() for leaf in self.outputs],
        }


def text_length(rows: Sequence[Row]) -> int | None:
    """Return the length of the first ``input_ids`` that went into a call, or of the first ``inputs_embeds``."""
    for key, rank in (("input_ids", 2), ("inputs_embeds", 3)):
        for row in rows:
            for leaf in row.came:
                if leaf.key == key and leaf.shape is not None and len(leaf.shape) == rank:
                    return leaf.shape[1]
    return None


def row_of(frame: Any) -> Row:
    """Make a row from the frame of a call."""
    parent = frame.parent
    while parent is not None and parent.index < 0:
        parent = parent.parent
    return Row(
        index=frame.index,
        path=frame.path,
        module=frame.tap.kind,
        also=tuple(path for path in frame.tap.paths if path != frame.path),
        forward=frame.forward,
        call=frame.call,
        parent=None if parent is None else parent.index,
        thread=frame.thread,
        inputs=tuple(as_leaf(raw) for raw in frame.inputs),
        outputs=tuple(as_leaf(raw) for raw in frame.outputs),
        state=frame.state,
    )


class Adapter(NamedTuple):
    """The active prompt-learning adapter of one ``PeftModel``.

    Attributes:
        path: The path of the ``PeftModel``.
        name: The adapter's name.
        method: Its PEFT type, such as ``"PROMPT_TUNING"``.
        virtual_tokens: ``num_virtual_tokens`` of its config.
    """

    path: str
    name: str
    method: str
    virtual_tokens: int

    def __str__(self) -> str:
        return f"the active {self.method} adapter {self.name!r}"


class Gap(NamedTuple):
    """A module that must have run, because modules inside it were called, but whose own call was never seen."""

    path: str
    module: str


def find_peft_models(modules: Mapping[nn.Module, tuple[str, ...]]) -> list[tuple[str, nn.Module]]:
    """Return every ``PeftModel`` with its path."""
    kind = releases.peft_class()
    return [] if kind is None else [(paths[0], module) for module, paths in modules.items() if isinstance(module, kind)]


def find_adapters(peft_models: Iterable[tuple[str, Any]]) -> tuple[Adapter, ...]:
    """Return the active prompt-learning adapters."""
    found = []
    for path, peft_model in peft_models:
        config = peft_model.active_peft_config
        if getattr(config, "is_prompt_learning", False) and config.num_virtual_tokens:
            name = str(peft_model.active_adapter)
            found.append(Adapter(path, name, releases.method_of(config), int(config.num_virtual_tokens)))
    return tuple(found)


def find_gaps(taps: Sequence[Any], called: Collection[str]) -> tuple[Gap, ...]:
    """Return the traced modules that were never called although modules inside them were."""
    around = {""} if called else set()
    for path in called:
        while "." in path:
            path = path.rpartition(".")[0]
            around.add(path)
    return tuple(
        Gap(tap.paths[0], tap.kind)
        for tap in taps
        if tap.runs
        and tap.recorded
        and not any(path in called for path in tap.paths)
        and any(path in around for path in tap.paths)
    )
