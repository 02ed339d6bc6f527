"""Measure ``import peft_hooks`` after PyTorch has been imported, in fresh processes that take turns."""

from __future__ import annotations

import os
import subprocess
import sys

from .table import Row

# The names that most programs use, with the modules behind them. Sentence Transformers comes with the first model.
NAMES = "HookRegistry, register_prompt_mask_hooks, trace_shapes"
IMPORTS = ("import peft_hooks", f"from peft_hooks import {NAMES}")
CODE = """
import time
start = time.perf_counter()
import torch
between = time.perf_counter()
{}
print(between - start, time.perf_counter() - between)
"""


def measure(quick: bool = False) -> list[Row]:
    """Measure in separate processes."""
    # An installed package has its bytecode cached. The first round, which does not count, caches it here.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    torch: list[float] = []
    found: dict[str, list[float]] = {line: [] for line in IMPORTS}
    for number in range(2 if quick else 6):
        for line, times in found.items():
            command = [sys.executable, "-c", CODE.format(line)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            first, second = (float(seconds) * 1000 for seconds in done.stdout.split())
            if number:
                torch.append(first)
                times.append(second)
    raw = {"milliseconds of import torch": torch}
    goals = dict(zip(IMPORTS, (20, None)))
    return [Row.of(line, "import torch, before it", found[line], goals[line], "ms", **raw) for line in IMPORTS]
