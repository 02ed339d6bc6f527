"""Measure how the hooks' share of ``encode`` varies with batch size, length and number of virtual tokens, and plot it.

Peak memory is that of the tensors beyond what was there before, from every allocation and release that PyTorch's
profiler sees: unlike the memory of the process, it is the same in every run.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .encode import encoding
from .models import by_hand, hooked, text_of
from .table import Row
from .timing import in_turns, ratios

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler logs a line whenever it starts or stops
AXES = {"batch size": (1, 4, 16, 64), "tokens": (8, 32, 128, 254), "virtual tokens": (0, 10, 50, 100, 200)}
USUAL = {"batch size": 16, "tokens": 32, "virtual tokens": 10}


class Point(NamedTuple):
    """One setting, with the hooks and with the mask put right in the forward."""

    axis: str
    at: int
    rates: tuple[float, float]
    shares: tuple[float, ...]
    peaks: tuple[int, int]

    @property
    def share(self) -> float:
        """The time that the hooks add, as a fraction."""
        return statistics.median(self.shares) - 1


def measure(quick: bool = False) -> list[Row]:
    """Return the largest ratios of time and of peak memory over all settings; the raw numbers have the points."""
    points = list(points_of(quick))
    raw = [{**point._asdict(), "share": point.share} for point in points]
    slowest = max(points, key=lambda point: point.share)
    memory = [point.peaks[0] / point.peaks[1] for point in points]
    where = f"{slowest.axis} = {slowest.at}"
    spread = min(point.share for point in points) + 1, slowest.share + 1
    return [
        Row(
            f"encode over all sizes, the worst: {where}",
            "mask in the forward",
            spread[1],
            spread,
            None,
            raw={"points": raw},
        ),
        Row("peak memory of tensors, the worst", "mask in the forward", max(memory), (min(memory), max(memory)), 1.01),
    ]


def points_of(quick: bool) -> Any:
    """Yield the points of all axes, changing one number at a time."""
    models: dict[int, tuple[Any, Any]] = {}
    for axis, values in AXES.items():
        for value in values[:2] if quick else values:
            setting = {**USUAL, axis: value}
            virtual = setting["virtual tokens"]
            if virtual not in models:
                models[virtual] = hooked(virtual), by_hand(virtual)
            # The tokenizer adds one token at each end.
            texts = [text_of(setting["tokens"] - 2)] * setting["batch size"]
            yield point(axis, value, models[virtual], texts, quick)


def point(axis: str, value: int, models: tuple[Any, Any], texts: list[str], quick: bool) -> Point:
    """Measure one setting, with calls taking turns: a machine's clock rate changes from one second to the next."""
    works = dict(zip(("hooks", "by hand"), (encoding(model, texts) for model in models)))
    once = in_turns(works, 1)["hooks"][0]
    times = in_turns(works, 2 if quick else max(11, min(99, int(3e6 / once))))
    rates = tuple(len(texts) / statistics.median(times[name]) * 1e6 for name in works)
    peaks = tuple(peak(work) for work in works.values())
    return Point(axis, value, (rates[0], rates[1]), tuple(ratios(times, "hooks", "by hand")), (peaks[0], peaks[1]))


def peak(work: Any) -> int:
    """Return the most bytes that tensors took at once during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    # Allocations belong to their operation; a release outside of any operation is an event of its own.
    changes = sorted((event.time_range.start, event.self_cpu_memory_usage) for event in profiler.events() or ())
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def draw(row: Row, path: Path) -> None:
    """Plot throughput, the hooks' share of the time, and peak memory against each axis."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plot

    figure, grid = plot.subplots(3, len(AXES), figsize=(11, 8), sharey="row", layout="constrained")
    for column, axis in enumerate(AXES):
        points = [point for point in row.raw["points"] if point["axis"] == axis]
        at = [point["at"] for point in points]
        rate, share, memory = (grid[line][column] for line in range(3))
        for index, (name, style) in enumerate((("with the hooks", "o-"), ("mask in the forward", "x--"))):
            rate.plot(at, [point["rates"][index] for point in points], style, label=name)
            memory.plot(at, [point["peaks"][index] / 2**20 for point in points], style)
        middle = [100 * point["share"] for point in points]
        tenths = [statistics.quantiles(point["shares"], n=10) for point in points]
        below = [share_of - 100 * (found[0] - 1) for share_of, found in zip(middle, tenths, strict=True)]
        above = [100 * (found[-1] - 1) - share_of for share_of, found in zip(middle, tenths, strict=True)]
        share.errorbar(at, middle, yerr=(below, above), fmt="o-", capsize=3)
        share.axhline(0, color="black", linewidth=0.5)
        share.set_ylim(-15, 15)
        memory.set_xlabel(axis if axis != "virtual tokens" else f"{axis} (0: LoRA)")
        for cell in (rate, share, memory):
            if axis != "virtual tokens":
                cell.set_xscale("log", base=2)
            cell.set_xticks(at, [str(value) for value in at])
        rate.set_yscale("log")
        memory.set_yscale("log")
    for line, name in enumerate(("sentences per second", "time that the hooks add, %", "peak memory of tensors, MiB")):
        grid[line][0].set_ylabel(name)
    grid[0][0].legend()
    figure.suptitle("encode on MiniLM; where not said otherwise 16 texts of 32 tokens, 10 virtual tokens")
    figure.savefig(path)
    plot.close(figure)
