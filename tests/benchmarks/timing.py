"""Time everything that is compared in turns, in one process, for many rounds.

Times are CPU times of this thread, so that a busy machine disturbs all works alike, and little. pytest-benchmark is not
used because it completes one benchmark before the next: the ratios would change if the machine's clock rate changed in
between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Work = Callable[[], Any]


def time_of(call: Work, calls: int = 1) -> float:
    """Return the mean time of one call over a short run, in microseconds."""
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls * 1e6


def in_turns(works: Mapping[str, Work], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Return the microseconds per call of each work, round by round.

    Every round begins with a different work, so that none always follows the same one. One round is run to warm up.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = time_of(works[name], calls)
            if number >= 0:
                times[name].append(taken)
    return times


def raw_of(times: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Return the times under names that include the unit, for the raw numbers of a row."""
    return {f"microseconds, {name}": found for name, found in times.items()}


def ratios(times: Mapping[str, Sequence[float]], what: str, against: str, less: str | None = None) -> list[float]:
    """Return the ratio of two works round by round; if ``less`` is given, of their costs beyond that work."""
    zeros = [0.0] * len(times[what])
    triples = zip(times[what], times[against], zeros if less is None else times[less], strict=True)
    found = [(mine - base) / (other - base) for mine, other, base in triples if other > base]
    return found or [float("nan")]


def beyond(times: Mapping[str, Sequence[float]], what: str, base: str) -> list[float]:
    """Return how much longer a work takes than another, round by round."""
    return [mine - other for mine, other in zip(times[what], times[base], strict=True)]
