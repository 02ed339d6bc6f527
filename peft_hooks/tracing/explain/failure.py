"""``Failure``: why a traced forward raised, as data and as the text of the exception's note."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..leaves import Leaf

_LISTED = 9  # the most inputs that a note lists


@dataclass(frozen=True)
class Bound:
    """One of the sizes that disagree, and where it comes from.

    Attributes:
        size: The size.
        leaf: The tensor or parameter that has it, such as ``"features.attention_mask"``.
        shape: Its shape.
        dimension: The dimension that has the size.
        source: Where it comes from, as text: ``"an output of Transformer '0'"``.
        path: The path of the module that it comes from, or None.
    """

    size: int
    leaf: str
    shape: tuple[int, ...]
    dimension: int
    source: str
    path: str | None

    def __str__(self) -> str:
        if not self.shape:
            return f"{self.size} is {self.leaf}{self.source and ', ' + self.source}"
        shape = ", ".join(map(str, self.shape))
        return f"{self.size} is dimension {self.dimension} of {self.leaf} [{shape}]{self.source and ', ' + self.source}"


@dataclass(frozen=True)
class Finding:
    """What is known about a cause.

    Attributes:
        kind: ``"virtual tokens"``, ``"length"``, ``"batch"``, ``"width"``, ``"transposed"``, ``"rank"``, ``"dtype"``,
            ``"device"``, ``"none"``, ``"object"``, ``"key"``, ``"argument"``, ``"index"``, ``"view"``, ``"operation"``
            (PyTorch refuses the shapes by a rule of its own), ``"checkpointing"``, ``"check"`` (a library made the
            comparison itself), ``"hook"``, ``"own"`` (the code has its own ``raise``), or ``"unknown"``.
        cause: The cause, as a sentence.
        fix: How to fix it, or where to look; None if that is unknown.
        bounds: The sizes that disagree, and where they come from.
        culprit: The path of the module where the problem originated, or None.
    """

    kind: str
    cause: str
    fix: str | None = None
    bounds: tuple[Bound, ...] = ()
    culprit: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a forward raised.

    Attributes:
        path: The innermost traced module that raised, or the module whose hook raised.
        module: The module's class name.
        forward: The number of the forward; 0 if no trace has seen it.
        call: The number of the call of this module in the forward.
        row: The index of the call in ``trace.rows``, or None if the hook raised before it began.
        inputs: What went into the module.
        error: The exception's class name.
        message: The exception's message.
        hook: The hook that raised, or None if the model itself did.
        inside: The untraced module inside it that actually raised, or None.
        source: The line of code that raised, as ``"pooling.py:188: ..."``, or None.
        finding: The cause, its fix, and the sizes.
        outside: Whether code outside the model raised, not a module; ``inputs`` is then the model's last output.
    """

    path: str
    module: str
    forward: int
    call: int
    row: int | None
    inputs: tuple[Leaf, ...]
    error: str
    message: str
    hook: str | None
    inside: str | None
    source: str | None
    finding: Finding
    outside: bool = False

    @property
    def where(self) -> str:
        """The module as text: ``"Pooling '1'"``."""
        if self.outside or not (self.path or self.forward):
            return self.module
        return f"{self.module} {self.path!r}"

    @property
    def kind(self) -> str:
        """The kind of the cause."""
        return self.finding.kind

    @property
    def cause(self) -> str:
        """The likely cause, as a sentence."""
        return self.finding.cause

    @property
    def fix(self) -> str | None:
        """How to fix it, or None if that is not known."""
        return self.finding.fix

    @property
    def culprit(self) -> str | None:
        """The path of the module where the problem originated, or None."""
        return self.finding.culprit

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that disagree."""
        return tuple(bound.size for bound in self.finding.bounds)

    @property
    def dimension(self) -> int | None:
        """The dimension that disagrees, in the first of the tensors."""
        return self.finding.bounds[0].dimension if self.finding.bounds else None

    @property
    def summary(self) -> str:
        """What raised what, in one line."""
        inside = f", inside it {self.inside}" if self.inside else ""
        if self.outside:
            return f"{self.where} raised {self.error}" + ("; no module of the model did" if self.forward else "")
        if self.hook is not None:
            return f"{self.hook} on {self.where} raised {self.error}{inside}; the model itself did not"
        when = f" in its call {self.call} of forward {self.forward}" if self.forward else ""
        return f"{self.where} raised {self.error}{when}{inside}"

    def __str__(self) -> str:
        lines = [f"peft_hooks: {self.summary}"]
        if self.source:
            lines.append(f"  at {self.source}")
        if self.inputs:
            lines.append("  the model's last forward returned:" if self.outside else "  it was given:")
            lines += folded(self.inputs)
        lines += [f"  {bound}" for bound in self.finding.bounds[:4]]
        lines.append(f"  {self.cause}" if self.kind == "own" else f"  cause: {self.cause}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as JSON-serializable data."""
        names = ("path", "module", "forward", "call", "row", "error", "message", "hook", "inside", "source")
        more = ("kind", "cause", "fix", "culprit", "dimension")
        return {
            **{name: getattr(self, name) for name in (*names, *more)},
            "inputs": [leaf.to_dict() for leaf in self.inputs],
            "bounds": [{**vars(bound), "shape": list(bound.shape)} for bound in self.finding.bounds],
        }


def folded(leaves: Sequence[Leaf]) -> list[str]:
    """Return a line for each leaf, with those of repeated layers on one line: a note has at most twenty."""
    groups: dict[tuple[str, str], list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault((re.sub(r"\d+", "#", leaf.name), str(leaf)[len(leaf.name) + 1 :]), []).append(leaf)
    names = [same[0].name if len(same) == 1 else f"{same[0].name}...{same[-1].name}" for same in groups.values()]
    width = max(map(len, names[:_LISTED]), default=0)
    lines = [f"    {name.ljust(width)}  {size}" for name, (_, size) in zip(names[:_LISTED], groups)]
    return [*lines, f"    ... and {len(names) - _LISTED} more"] if len(names) > _LISTED else lines
