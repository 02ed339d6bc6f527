"""``peft-hooks demo``: real MiniLM weights with a prompt adapter, without the hooks and with them.

Here is what is measured; ``_demo_report`` and ``_demo_svg`` say how it is shown. Nothing of it is known beforehand.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._format import tensors_in
from ..compat.quiet import quiet
from ..compat.sentence_transformers import poolings_of
from ..doctor.invariance import PaddingReport, check_padding_invariance
from ..doctor.ribbon import Kind, Row
from ..hooks.call import Call, Hook
from ..hooks.registry import HookRegistry
from ..prompts.attach import prompt_mask_hooks
from ..prompts.tensors import input_length
from .console import one_thread, saying
from .demo_model import load, model_path

TOLERANCE = 1e-5  # float32 rounding is about 3e-7 here

# The first is a question; the others are what it is compared with.
TEXTS = (
    "How do I get my money back?",
    "Refunds take five days.",
    "Our shop is open from nine to six.",
    "Return it within 30 days with the receipt, and we refund the full price.",
    "The train to Geneva leaves from platform four at a quarter past seven.",
    "To change your password, open the settings page, choose Security, type the old password once and the new one "
    "twice, and press Save; your other devices are signed out within a few minutes, and we send you a message.",
)


@dataclass(frozen=True)
class Flow:
    """What one module got and gave in one forward, or the error that it raised."""

    module: str
    given: dict[str, Tensor]
    made: dict[str, Tensor]
    error: str | None = None


class RecordFlow(Hook):
    """Keep what goes in and out, in ``flows``. Of one forward in one thread: it is the demo's own."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []

    def before(self, call: Call) -> None:
        call.notes[self] = dict(tensors_in(call.given_first))  # now: the module changes the dict in place

    def after(self, call: Call, output: Any) -> None:
        self.flows.append(Flow(type(call.module).__name__, call.notes[self], dict(tensors_in(output))))

    def failed(self, call: Call, error: BaseException) -> None:
        self.flows.append(Flow(type(call.module).__name__, call.notes[self], {}, type(error).__name__))


@dataclass(frozen=True)
class Findings:
    """What was measured in one condition. Embeddings are float64 ``[texts, width]``, None where encode raised.

    ``invariance`` tries smaller shuffled batches too, so it can be larger than what ``alone`` and ``batch`` differ by.
    """

    alone: Tensor | None
    batch: Tensor | None
    flows: tuple[Flow, ...]
    rows: tuple[Row, ...]
    invariance: PaddingReport | None
    error: str | None

    @property
    def moved(self) -> Tensor:
        """For every text, the largest difference of a component, alone and in the batch."""
        assert self.alone is not None
        assert self.batch is not None
        return (self.alone - self.batch).abs().amax(dim=1)


@one_thread()
def measure(model: Any, texts: Sequence[str], hooked: bool) -> Findings:
    """Encode ``texts`` one by one and all at once, and record what flowed. Call it within ``quiet``."""
    record, rows = RecordFlow(), cast("tuple[Row, ...]", ())
    alone = batch = invariance = error = None
    with prompt_mask_hooks(model) if hooked else contextlib.nullcontext():
        registry = HookRegistry(model)
        try:
            # Attached after the library's hooks, so that it sees what these make of a module's input and output.
            with registry.attached(record, to="transformer"), registry.attached(record, to="pooling"):
                batch = encode(model, texts)
            rows = count(model, texts, record.flows)  # next: Pooling's input is checked against the last forward
            alone = torch.cat([encode(model, [text]) for text in texts])
            invariance = check_padding_invariance(model, texts, tolerance=TOLERANCE)
        except Exception as raised:
            if hooked:
                raise
            error = f"{type(raised).__name__}: {raised}"  # what a release makes of it is the finding
    return Findings(alone, batch, tuple(record.flows), rows, invariance, error)


def encode(model: Any, texts: Sequence[str]) -> Tensor:
    """Return the embeddings of ``texts`` as one batch."""
    found = model.encode(list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
    return torch.as_tensor(found).double()


def count(model: Any, texts: Sequence[str], flows: Sequence[Flow]) -> tuple[Row, ...]:
    """Return for every text what stood at each position, and what Pooling counted, from the recorded flows.

    ``encode`` sorts a batch by length, so that the texts are found again by their token ids.
    """
    transformer, pooling = flows[0], flows[-1]
    ids, mask = transformer.given["input_ids"], transformer.given["attention_mask"].bool()
    length = input_length(pooling.given)
    assert length is not None
    virtual = pooling.given["token_embeddings"].size(1) - length
    counted = counted_positions(poolings_of(model)[0][1], pooling.given)
    rows = []
    for number, text in enumerate(texts):
        own = model.tokenizer(text)["input_ids"]
        at = next(row for row in range(len(texts)) if ids[row][mask[row]].tolist() == own)
        kinds: list[Kind] = ["virtual"] * virtual
        kinds += ["text" if kept else "padding" for kept in mask[at].tolist()]
        rows.append(Row(letter(number), kinds, counted[at].tolist()))
    return tuple(rows)


def counted_positions(pooling: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Return ``bool[batch, positions]``: which positions the pooled embedding depends on.

    This is measured, by the gradient, not read from a mask: a release may well put its mask aside.
    """
    features = {name: tensor.clone() for name, tensor in given.items()}  # out of inference mode
    rows = features["token_embeddings"].requires_grad_()
    pooling(features)["sentence_embedding"].sum().backward()
    assert rows.grad is not None
    return rows.grad.abs().sum(dim=2) > 0


def letter(number: int) -> str:
    """Return what a text goes by: A, B, C."""
    return chr(ord("A") + number)


@dataclass(frozen=True)
class Comparison:
    """One model without the hooks and with them."""

    without: Findings
    hooked: Findings

    def show(self) -> bool:
        """Print everything, and return whether the embeddings are right with the hooks."""
        from rich.console import Console

        from .demo_report import Report

        report = Report(Console(highlight=False), TEXTS, TOLERANCE)
        report.show(self.without, self.hooked)
        return report.is_right(self.hooked)

    def to_svg(self, path: str) -> None:
        """Write the picture that README begins with."""
        from .demo_svg import picture

        Path(path).write_text(picture(TEXTS, self.without, self.hooked, TOLERANCE), encoding="utf-8")


def compare() -> Comparison:
    """Load the real weights and measure."""
    path = model_path()
    with saying("Loading Sentence Transformers and PEFT"):
        importlib.import_module("sentence_transformers")
        importlib.import_module("peft")
    with quiet():
        with saying("Loading MiniLM and putting a prompt adapter on"):
            model = load(path)
        with saying(f"Encoding {len(TEXTS)} texts without hooks"):
            without = measure(model, TEXTS, hooked=False)
        with saying(f"Encoding {len(TEXTS)} texts with hooks"):
            hooked = measure(model, TEXTS, hooked=True)
    return Comparison(without, hooked)
