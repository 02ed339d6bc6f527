"""Store and display the results of ``train_prompt.py``."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from docstring_search import Found
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass
class Row:
    """Measurements of one way to embed; the lists have one entry per seed."""

    found: list[Found] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: int | None = None
    moves: float | None = None


def table(rows: Mapping[str, Row]) -> Table:
    """Return a table with the mean over the seeds, and the largest distance from it."""
    shown = Table("held-out queries", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("MRR@10", "recall@10", "embedding\nmoves by", "para-\nmeters", "training"):
        shown.add_column(title, justify="right", no_wrap=True)
    for name, row in rows.items():
        shown.add_row(
            name,
            mean_and_spread([each.mrr for each in row.found]),
            mean_and_spread([each.recall for each in row.found]),
            "" if row.moves is None else f"{row.moves:.2f}" if row.moves > 0.005 else f"{row.moves:.0e}",
            "" if row.parameters is None else f"{row.parameters:,}",
            f"{statistics.mean(row.seconds):.0f} s" if row.seconds else "",
        )
    return shown


def tried(rows: Mapping[tuple[str, float], Row]) -> Table:
    """Return a table of the settings tried on the validation split, by name and learning rate."""
    shown = Table("on the validation split", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("learning rate", "MRR@10"):
        shown.add_column(title, justify="right")
    for (name, rate), row in rows.items():
        shown.add_row(name, f"{rate:g}", mean_and_spread([each.mrr for each in row.found]))
    return shown


def mean_and_spread(values: Sequence[float]) -> str:
    """Return mean and spread as text, such as ``"0.517 ± 0.002"``; for a single value, just the value."""
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {max(abs(value - mean) for value in values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def gain(better: Row, worse: Row) -> str:
    """Return the difference in MRR@10 as text, with the 95 % interval of a paired bootstrap over the queries."""
    means = [torch.stack([each.reciprocal_ranks for each in row.found]).mean(dim=0) for row in (better, worse)]
    gains = means[0] - means[1]
    draws = torch.randint(len(gains), (2000, len(gains)), generator=torch.Generator().manual_seed(0))
    low, high = gains[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=gains.dtype)).tolist()
    return f"{gains.mean().item():+.3f} (95 % of bootstraps: {low:+.3f} to {high:+.3f})"


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yield the function that advances it."""
    columns = (TextColumn("training and measuring"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda steps: bar.advance(task, steps)
