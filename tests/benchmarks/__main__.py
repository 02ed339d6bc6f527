"""Run ``python -m tests.benchmarks [NAME...] [--quick] [--out DIR]``: measure, print one table, save the numbers.

``PARTS`` lists the names. Raw numbers go to ``benchmarks.json``, the plot to ``scaling.svg``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from peft_hooks.compat.quiet import quiet

from .table import Row, print_table, write_json

# Other tracers come last: some change PyTorch, or every object, for the rest of the process.
PARTS = (
    "mask_hook",
    "attached",
    "dimensions",
    "registry",
    "memory",
    "importing",
    "encode",
    "one_query",
    "share_prompt",
    "scaling",
    "tracing",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested parts, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("parts", nargs="*", metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a few rounds of each, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path(".tox/benchmarks"), help="where the numbers go")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = measured([name for name in PARTS if name in (options.parts or PARTS)], options.quick)
    print_table(rows)
    write_json(rows, options.out / "benchmarks.json")
    print(f"raw numbers: {options.out / 'benchmarks.json'}")
    draw(rows, options.out / "scaling.svg")


def measured(names: Sequence[str], quick: bool) -> list[Row]:
    """Measure part by part, showing a progress bar."""
    rows: list[Row] = []
    columns = TextColumn("{task.description:<12}"), *Progress.get_default_columns()[1:3]
    with Progress(*columns, MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(names))
        for name in names:
            bar.update(task, description=name)
            if importlib.util.find_spec(f"{__package__}.{name}") is not None:
                with quiet(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows += importlib.import_module(f".{name}", __package__).measure(quick)
            bar.advance(task)
    return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the plot, if there are points and matplotlib is installed."""
    with_points = next((row for row in rows if "points" in row.raw), None)
    if with_points is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
        return
    from .scaling import draw as draw_points

    draw_points(with_points, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
