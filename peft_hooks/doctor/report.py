"""Shows a diagnosis as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from .._format import difference
from ..compat import tested
from .ribbon import legend, ribbon

if TYPE_CHECKING:
    from .diagnosis import Diagnosis, Run
    from .findings import Finding

WIDEST = 100  # a table across a whole wide screen is hard to read
RIGHT, WRONG = "green", "bold red"
INDENT = 7  # where the text of a finding begins, after its code


class Page:
    """A console, and the layout of titles and sentences on it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = min(console.width, WIDEST)

    def title(self, title: str) -> None:
        """Print the title of a section."""
        self.console.print()
        self.console.print(Rule(Text(title, style="bold"), align="left", style="dim"), width=self.width)

    def say(self, sentence: str, style: str = "", indent: int = 0, first: str = "", first_style: str = "") -> None:
        """Print a wrapped sentence, with ``first`` before it in the indent."""
        lines = [""]
        for number, line in enumerate(sentence.splitlines()):
            room = self.width - 1
            lead = " " * indent if number else first.ljust(indent)
            wrapper = textwrap.TextWrapper(room, initial_indent=lead, subsequent_indent=" " * indent)
            # Paths, calls and error texts are there to be copied: a long word overflows rather than being cut.
            wrapper.break_long_words = wrapper.break_on_hyphens = False
            lines += wrapper.wrap(line)
        text = Text("\n".join(lines[1:]), style=style)
        text.stylize(first_style, 0, len(first))
        self.console.print(text, soft_wrap=True)

    def versions(self) -> None:
        """Print the installed versions."""
        installed = tested.installed()
        self.say(", ".join(f"{name} {number}" for name, number in installed.items()), style="dim")
        untested = tested.in_words(installed)
        if untested is not None:
            self.say(untested + ".", style="dim")


def show(console: Console, diagnosis: Diagnosis, name: str = "") -> None:
    """Show a diagnosis: the model, how its embeddings move, the findings, the verdict."""
    page = Page(console)
    page.versions()
    _show_model(page, diagnosis, name)
    if diagnosis.runs:
        _show_runs(page, diagnosis)
    if any(sum(row.counted) for row in diagnosis.rows) and {"PH002", "PH006"} & {f.code for f in diagnosis.findings}:
        page.title("What Pooling counted in one batch, position by position")
        console.print(ribbon(diagnosis.rows, page.width, console.options.ascii_only))
        console.print()
        console.print(legend(diagnosis.rows, console.options.ascii_only))
    if diagnosis.findings:
        page.title("What is wrong")
        for number, finding in enumerate(diagnosis.findings):
            if number:
                console.print()
            _show_finding(page, finding)
    if diagnosis.refusal:
        page.title("Why the hooks refuse this model as it is")
        page.say(diagnosis.refusal)
    page.title("Verdict")
    word, style = ("healthy", RIGHT) if diagnosis.ok else ("PROBLEMS", WRONG)
    page.say(diagnosis.verdict + ".", indent=len(word) + 2, first=word, first_style=style)


def _show_model(page: Page, diagnosis: Diagnosis, name: str) -> None:
    model = diagnosis.model
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    if name:
        grid.add_row("from", Text(name))
    grid.add_row("model", Text(f"{model['class']}: " + ", ".join(model["modules"])))
    grid.add_row("adapter", Text("\n".join(model["adapters"]) or "none"))
    grid.add_row("hooks", Text(model["hooks"] or "none from this library"))
    cut = f"truncated to {model['max_seq_length']} tokens" if model["max_seq_length"] is not None else "not truncated"
    padding = "not padded" if model["padding_side"] is None else f"padded on the {model['padding_side']}"
    grid.add_row("texts", Text(f"{cut}, {padding}"))
    page.console.print(grid, width=page.width)


def _show_runs(page: Page, diagnosis: Diagnosis) -> None:
    page.title("Is an embedding the same alone and in a batch?")
    page.say(
        f"{diagnosis.texts} texts of different lengths, each encoded alone and then in batches, where the shorter ones "
        f"are padded. The largest difference of a component{_judged_by(diagnosis)}."
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column("padding")
    table.add_column("as it is", no_wrap=True)
    if diagnosis.tried:
        table.add_column("with the hooks", no_wrap=True)
    for side in dict.fromkeys(run.padding for run in diagnosis.runs):
        runs = [run for run in diagnosis.runs if run.padding == side]
        cells = [next((_run_text(run) for run in runs if run.hooks is hooks), Text("-")) for hooks in (False, True)]
        own = "its tokenizer's" if runs[0].own else "if you choose it"
        table.add_row(f"{side}, {own}", *cells[: 2 if diagnosis.tried else 1])
    page.console.print(table, width=page.width)


def _judged_by(diagnosis: Diagnosis) -> str:
    """Return what counts as the same, and the reason if that is not the usual tolerance, as text."""
    if not diagnosis.tolerance:
        return ""
    widest = max(diagnosis.runs, key=lambda run: run.tolerance)
    reason = widest.judged_by.partition(": ")[2]
    return f"; up to {difference(diagnosis.tolerance)} is rounding{f' ({reason})' if reason else ''}"


def _run_text(run: Run) -> Text:
    if run.error is not None:
        refused = run.error.startswith("UnsupportedModelError")
        return Text("refused" if refused else f"raises {run.error.partition(':')[0]}", "" if refused else WRONG)
    # Padding that the tokenizer does not use affects nobody yet, so it is a warning only.
    style = RIGHT if run.same else WRONG if run.own else "yellow"
    return Text(f"same, to {run.shown}" if run.same else f"moves by {run.shown}", style)


def _show_finding(page: Page, finding: Finding) -> None:
    page.console.print(
        Text.assemble((finding.code.ljust(INDENT), WRONG), (finding.name, "bold"), f", at {finding.place}"),
        width=page.width,
    )
    page.say(finding.sentence, indent=INDENT)
    for word, text in (("measured", finding.measured), ("fix", finding.fix)):
        lead = " " * INDENT + word
        page.say(text, indent=INDENT + 10, first=lead, style="dim" if word == "measured" else "")
    if finding.fixed:
        page.say("tried: this fixes it", indent=INDENT + 10, style=RIGHT)


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return findings as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("code", "what", "where", "measured", "fix"):
        table.add_column(title, overflow="fold")
    for found in findings:
        table.add_row(*map(Text, (found.code, found.name, found.place, found.measured, found.fix)))
    return table


def as_text(diagnosis: Diagnosis, width: int = 80) -> str:
    """Return a diagnosis as plain text."""
    console = Console(file=StringIO(), width=width, color_system=None, highlight=False, legacy_windows=False)
    show(console, diagnosis)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.rstrip()
