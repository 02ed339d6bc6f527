"""The table of costs and its rows."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "sentence-transformers", "transformers", "peft", "torchlens", "nnsight", "numpy")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement, and what it is measured against.

    Attributes:
        what: What was measured.
        against: What ran in turns with it.
        ratio: The median of all rounds' ratios, or a plain number if ``unit`` says so.
        spread: The 10th and 90th percentiles.
        goal: The maximum of ``ratio``, or the minimum, or None.
        unit: ``"x"``, or whatever the number counts.
        raw: The raw measurements.
        at_least: Whether more is better, as with a speedup.
    """

    what: str
    against: str
    ratio: float
    spread: tuple[float, float]
    goal: float | None = None
    unit: str = "x"
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at_least: bool = False

    @classmethod
    def of(
        cls, what: str, against: str, values: Sequence[float], goal: float | None, unit: str = "x", **raw: Any
    ) -> Row:
        """Make a row from the values of all rounds."""
        tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
        spread = tenths[0], tenths[-1]
        return cls(what, against, statistics.median(values), spread, goal, unit, {"values": list(values), **raw})

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal


def shown(number: float, unit: str = "x") -> str:
    """Format a number with three significant digits."""
    text = f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.2f}"
    if abs(number) < 0.1 and number:
        text = f"{number:.4f}"
    return text if unit == "x" else f"{text} {unit}"


def table_of(rows: Sequence[Row]) -> Table:
    """Return all rows as one table."""
    table = Table(caption="medians; the spread is from the 10th to the 90th percentile")
    for name in ("what", "against"):
        table.add_column(name, overflow="fold")
    for name in ("ratio", "spread", "goal", "met"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        low, high = (shown(number) for number in row.spread)
        met = {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[row.met]
        goal = "" if row.goal is None else f"{'>=' if row.at_least else '<='} {shown(row.goal, row.unit)}"
        table.add_row(row.what, row.against, shown(row.ratio, row.unit), f"{low} - {high}", goal, met)
    return table


def print_table(rows: Sequence[Row]) -> None:
    """Print the table, wide enough for a file, too."""
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(table_of(rows))
    goals = [row.met for row in rows if row.met is not None]
    console.print(f"{sum(goals)} of {len(goals)} goals met", highlight=False)


def machine() -> dict[str, Any]:
    """Return the machine and releases on which the numbers were measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows, including the raw measurements."""
    data = {"machine": machine(), "rows": [{**dataclasses.asdict(row), "met": row.met} for row in rows]}
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
