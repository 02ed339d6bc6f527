"""How the findings of the demo are shown: tables, ribbons and sentences, all made from the numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .._format import difference, dtype_of
from ..doctor.ribbon import legend, ribbon
from .demo import letter
from .demo_model import PROMPT, VIRTUAL_TOKENS

if TYPE_CHECKING:
    from .demo import Findings, Flow

WIDEST = 100  # a table across a whole wide screen is hard to read
RIGHT, WRONG = "green", "bold red"

# Of the many tensors that flow, those that tell the story: in a module's input, and in its output.
TOLD = {
    "Transformer": (("input_ids", "attention_mask"), ("token_embeddings", "attention_mask")),
    "Pooling": (("token_embeddings", "attention_mask"), ("sentence_embedding",)),
}


class Report:
    """Shows findings on a console. Every ``show_...`` is one part.

    Args:
        console: Where to.
        texts: What was encoded; the first is the question.
        tolerance: The largest difference that counts as rounding.
    """

    def __init__(self, console: Console, texts: Sequence[str], tolerance: float) -> None:
        self.console = console
        self.texts = texts
        self.tolerance = tolerance
        self.width = min(console.width, WIDEST)
        self.ascii = console.options.ascii_only

    def show(self, without: Findings, hooked: Findings) -> None:
        """Show everything."""
        self.show_setup()
        self.show_embeddings("1. Without hooks", without)
        self.show_embeddings("2. With peft_hooks", hooked)
        self.show_same_alone(without, hooked)
        self.show_terms()
        self.show_shapes(without, hooked)
        self.show_ribbons(without, hooked)
        self.show_verdict(without, hooked)

    def is_right(self, found: Findings) -> bool:
        """Tell whether no embedding depends on its batch."""
        if found.error is not None or found.invariance is None:
            return False
        return found.invariance.ok and bool((found.moved <= self.tolerance).all())

    def show_setup(self) -> None:
        """Say what is about to be seen."""
        names = ("sentence-transformers", "peft", "transformers", "torch")
        self._say(", ".join(f"{name} {version(name)}" for name in names), style="dim")
        self._say(
            f"The model is MiniLM (real weights) with a PEFT prompt adapter: {VIRTUAL_TOKENS} virtual tokens stand "
            f'before every text, here made of "{PROMPT}". The {len(self.texts)} texts below are encoded one by one, '
            f"and then all in one batch, where the shorter ones are padded to the length of the longest. A text stays "
            f"the same, so its embedding must stay the same."
        )

    def show_embeddings(self, title: str, found: Findings) -> None:
        """Show how far each embedding moves with its batch, and what that does to a search."""
        self._title(f"{title}: is an embedding the same alone and in a batch?")
        if found.error is not None:
            self._say("There is no embedding. Sentence Transformers stops with:")
            self._say(found.error, style=WRONG, indent="  ")
            return
        self.console.print(self._embedding_table(found), width=self.width)
        alone, batch = (best_answer(embeddings) for embeddings in (found.alone, found.batch))
        self._say(
            f"Which text is most like question A? Alone: {letter(alone)}. In the batch: {letter(batch)}, "
            f"{'the same' if alone == batch else 'another'} answer.",
            style="" if alone == batch else WRONG,
        )

    def _embedding_table(self, found: Findings) -> Table:
        assert found.alone is not None
        assert found.batch is not None
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("")
        table.add_column("text", no_wrap=True, ratio=1, overflow="crop" if self.ascii else "ellipsis")
        for title in ("tokens", "moved by", "cosine", "like A,\nalone", "like A,\nin batch"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, min_width=len("moved"))
        for number, cosine in enumerate((found.alone * found.batch).sum(dim=1).tolist()):
            moved = float(found.moved[number])
            style, verdict = (RIGHT, "same") if moved <= self.tolerance else (WRONG, "moved")
            table.add_row(
                letter(number),
                Text(self.texts[number]),
                str(sum(kind == "text" for kind in found.rows[number].kinds)),
                Text(difference(moved), style),
                Text(f"{cosine:.4f}", style),
                similarity(found.alone, number),
                similarity(found.batch, number),
                Text(verdict, style),
            )
        return table

    def show_terms(self) -> None:
        """Explain the columns of the tables of embeddings."""
        terms = Table.grid(padding=(0, 2, 0, 0))
        terms.add_row("moved by", f"largest difference of a component; up to {self.tolerance:.0e} is rounding")
        terms.add_row("cosine", "of the two embeddings of the text, alone and in the batch; 1 is right")
        terms.add_row("like A", "similarity to A, which is a question; * marks the best answer")
        self.console.print()
        self.console.print(terms, style="dim", width=self.width)

    def show_same_alone(self, without: Findings, hooked: Findings) -> None:
        """Say whether the hooks change the embedding of a text by itself, which has no padding."""
        if without.alone is None or hooked.alone is None:
            return
        largest = float((without.alone - hooked.alone).abs().max())
        same = "the same" if largest <= self.tolerance else "not the same"
        self._say(f"Encoded alone, every text is {same} with and without hooks: difference {difference(largest)}.")

    def show_shapes(self, without: Findings, hooked: Findings) -> None:
        """Show the tensors that go from module to module."""
        self._title("3. The shapes that flow, for the batch")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
        for title in ("module", "tensor", "without hooks", "with hooks"):
            table.add_column(title, no_wrap=True)
        for place, name, left, right in shape_rows(without.flows, hooked.flows):
            table.add_row(place, name, *(Text(cell, WRONG if cell.endswith("!") else "") for cell in (left, right)))
        self.console.print(table)
        self._say("[texts, positions, components] of 64-bit integers (i64) or 32-bit floats (f32)", style="dim")
        for title, flows in (("Without", without.flows), ("With", hooked.flows)):
            for flow in flows:
                short = missing_positions(flow.given)
                if short and flow.module == "Pooling":
                    masked = flow.given["attention_mask"].size(1)
                    self._say(
                        f"! {title} hooks Pooling gets {masked + short} embeddings per text and a mask of {masked}: "
                        f"it is not told of {short} positions."
                    )

    def show_ribbons(self, without: Findings, hooked: Findings) -> None:
        """Draw what Pooling counted."""
        self._title("4. What Pooling counted, position by position")
        self._say("One row per text, one sign per position, and how many of them Pooling counted.")
        self.console.print()
        for title, found in (("Without hooks", without), ("With hooks", hooked)):
            self._say(title if found.rows else f"{title}: nothing, it stopped with the error of part 1.", style="bold")
            if found.rows:
                self.console.print(ribbon(found.rows, self.width, self.ascii))
                self.console.print()
        self.console.print(legend([*without.rows, *hooked.rows], self.ascii))

    def show_verdict(self, without: Findings, hooked: Findings) -> None:
        """Sum up."""
        self._title("Verdict")
        for title, found in (("Without hooks", without), ("With hooks", hooked)):
            word, style = ("right", RIGHT) if self.is_right(found) else ("WRONG", WRONG)
            line = Text.assemble((f"{title:<15}", "bold"), (word, style), f"  {self._summary(found)}")
            self.console.print(line, width=self.width)

    def _summary(self, found: Findings) -> str:
        if found.error is not None or found.invariance is None:
            return "no embedding at all"
        moved = sum(not row.difference <= self.tolerance for row in found.invariance.differences)
        largest = difference(found.invariance.largest_difference)
        if moved:
            return f"{moved} of {len(self.texts)} embeddings move with their batch, by up to {largest}"
        return f"all {len(self.texts)} are the same in every batch tried, to {largest}"

    def _title(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(title, style="bold"), align="left", style="dim"), width=self.width)

    def _say(self, sentence: str, style: str = "", indent: str = "") -> None:
        lines = textwrap.wrap(sentence, self.width - 1, initial_indent=indent, subsequent_indent=indent)
        self.console.print(Text("\n".join(lines), style=style))


def best_answer(embeddings: Tensor | None) -> int:
    """Return which text is most similar to the first."""
    assert embeddings is not None
    return 1 + int((embeddings[1:] @ embeddings[0]).argmax())


def similarity(embeddings: Tensor, number: int) -> str:
    """Return how similar a text is to the first, the most similar marked."""
    if number == 0:
        return "-"
    return f"{float(embeddings[number] @ embeddings[0]):.2f}{'*' if number == best_answer(embeddings) else ' '}"


def shape_rows(without: Sequence[Flow], hooked: Sequence[Flow]) -> Iterator[tuple[str, str, str, str]]:
    """Yield module, tensor, and its shape without and with hooks. Without may end early, hooked is whole."""
    for number, flow in enumerate(hooked):
        other = without[number] if number < len(without) else None
        for way, names in zip(("in", "out"), TOLD.get(flow.module, ((), ()))):
            for position, name in enumerate(names):
                place = "" if position else f"{flow.module} {way}"
                yield place, name, _cell(other, way, name), _cell(flow, way, name)


def _cell(flow: Flow | None, way: str, name: str) -> str:
    if flow is None:
        return "-"
    if way == "out" and flow.error is not None:
        return f"{flow.error} !"
    tensors = flow.given if way == "in" else flow.made
    if name not in tensors:
        return "-"
    mark = " !" if name == "attention_mask" and missing_positions(tensors) else ""
    return f"{dtype_of(tensors[name].dtype)}[{', '.join(map(str, tensors[name].shape))}]{mark}"


def missing_positions(tensors: dict[str, Tensor]) -> int:
    """Return by how many positions a mask is shorter than the token embeddings that it is for."""
    embeddings, mask = tensors.get("token_embeddings"), tensors.get("attention_mask")
    return 0 if embeddings is None or mask is None else embeddings.size(1) - mask.size(1)
