"""``Diagnosis``: the result of ``diagnose``, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from .._format import difference
from .._public import public
from ..compat import backbones, tested
from ..compat import sentence_transformers as releases
from ..prompts.handle import options_on
from .findings import Finding
from .invariance import TextDifference
from .ribbon import Row
from .watch import tokenizers_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Run:
    """The result of encoding the texts alone and in batches, in one condition.

    Attributes:
        padding: ``"left"`` or ``"right"``.
        own: Whether the model's tokenizer pads this way.
        hooks: Whether ``diagnose`` put the hooks on for it.
        difference: The largest difference of any component between a text alone and in a batch; None if it raised.
        tolerance: What counts as the same.
        error: What was raised, or None.
        judged_by: Where the tolerance comes from, as text.
        differences: How far each text moves; empty if it raised.
    """

    padding: str
    own: bool
    hooks: bool
    difference: float | None
    tolerance: float
    error: str | None = None
    judged_by: str = ""
    differences: tuple[TextDifference, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every embedding is the same alone and in a batch."""
        return self.difference is not None and self.difference <= self.tolerance

    @property
    def badness(self) -> float:
        """The difference, or infinity if there is none."""
        return math.inf if self.difference is None else self.difference

    @property
    def shown(self) -> str:
        """The difference as text."""
        if self.difference is None:
            return "nothing, it raises"
        return difference(self.difference) if math.isfinite(self.difference) else "NaN"

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON-compatible data: NaN and infinity become None."""
        finite = self.difference is not None and math.isfinite(self.difference)
        plain = {name: value for name, value in asdict(self).items() if name != "differences"}
        return {**plain, "difference": self.difference if finite else None, "same": self.same}


@public
@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a model. True as a condition if nothing is.

    Attributes:
        findings: What is wrong, by code.
        runs: The results of encoding alone and in batches, padded on the right and on the left, without and with hooks.
        tolerance: The largest difference of any component that counts as the same.
        texts: The number of texts that were encoded.
        model: A summary of the model: its class, modules, adapters, hooks, padding and longest text.
        hooks: The call that attaches the hooks.
        refusal: Why the hooks refuse the model, or None.
        left: The codes that were still found with the hooks on.
        rows: For every text of one batch, what is at each position and whether Pooling counted it.

    Example:
        >>> from peft_hooks import diagnose
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> diagnosis = diagnose(tiny_model("bert"), TEXTS[:2])
        >>> diagnosis.findings, sorted({run.padding for run in diagnosis.runs})
        ((), ['left', 'right'])
    """

    findings: tuple[Finding, ...]
    runs: tuple[Run, ...]
    tolerance: float
    texts: int
    model: dict[str, Any]
    hooks: str
    refusal: str | None = None
    left: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    @property
    def tried(self) -> bool:
        """Whether the hooks were put on and measured."""
        return any(run.hooks for run in self.runs)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if self.ok:
            return f"{self.texts} embeddings are the same alone and in every batch tried, to {self.runs[0].shown}"
        call = self.hooks.replace("\n", " and then ")
        count = f"{len(self.findings)} finding{'' if len(self.findings) == 1 else 's'}"
        fixed = [found.code for found in self.findings if found.fixed and found.fix == self.hooks]
        if len(fixed) == len(self.findings) and not self.left:
            return f"{count}; {call} fixes this (measured)"
        if fixed:
            rest = sorted({found.code for found in self.findings if found.code not in fixed} | set(self.left))
            return f"{count}; {call} fixes {', '.join(fixed)} (measured). Left: {', '.join(rest)}"
        if self.tried or self.refusal:
            return f"{count}; the hooks {'refuse this model' if self.refusal else 'do not help'}: see the fixes"
        return f"{count}; see the fixes"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible data."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "findings": [found.to_dict() for found in self.findings],
            "runs": [run.to_dict() for run in self.runs],
            "tolerance": self.tolerance,
            "texts": self.texts,
            "model": self.model,
            "hooks": {"call": self.hooks, "tried": self.tried, "refusal": self.refusal, "left": list(self.left)},
            "versions": tested.installed(),
        }

    def table(self) -> Table:
        """Return the findings as a rich table."""
        from .report import findings_table

        return findings_table(self.findings)

    def __str__(self) -> str:
        from .report import as_text

        return as_text(self)


def summarize_model(model: Any) -> dict[str, Any]:
    """Return a summary of the model, as JSON-compatible data."""
    options = options_on(model)
    limits = [transformer.max_seq_length for _, transformer in transformers_with_length(model)]
    return {
        "class": type(model).__name__,
        "modules": [describe_module(module) for module in model.children()],
        "adapters": [line for _, transformer in releases.transformers_of(model) for line in adapter_lines(transformer)],
        "hooks": None if options is None else repr(options),
        "padding_side": next((str(tokenizer.padding_side) for tokenizer in tokenizers_of(model)), None),
        "max_seq_length": next((limit for limit in limits if limit is not None), None),
    }


def transformers_with_length(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the Transformers that truncate texts, with their paths."""
    found: list[tuple[str, Any]] = list(releases.transformers_of(model))
    return [(path, transformer) for path, transformer in found if hasattr(transformer, "max_seq_length")]


def describe_module(module: nn.Module) -> str:
    """Describe a module by its class and what it does: ``"Transformer (bert)"``, ``"Pooling (mean)"``."""
    name, kind, pooling = type(module).__name__, releases.transformer_class(), releases.pooling_class()
    if kind is not None and isinstance(module, kind):
        return f"{name} ({backbones.model_type(module)})"
    if pooling is not None and isinstance(module, pooling):
        return f"{name} ({', '.join(sorted(releases.pooling_modes(module)))})"
    return name


def adapter_lines(transformer: Any) -> list[str]:
    """Describe the Transformer's adapters: ``"'default': PROMPT_TUNING, 10 virtual tokens"``."""
    configs = getattr(releases.backbone_of(transformer), "peft_config", None) or {}
    lines = []
    for name, config in configs.items():
        tokens = f", {config.num_virtual_tokens} virtual tokens" if config.is_prompt_learning else ""
        lines.append(f"{name!r}: {releases.method_of(config)}{tokens}")
    return lines
