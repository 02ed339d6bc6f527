"""What the benchmarks of single hooks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def time_of(call: Callable[[], Any], calls: int) -> float:
    """Return the mean time of one call over a short run, in microseconds."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6
