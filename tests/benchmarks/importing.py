"""How long ``import peft_hooks`` takes where PyTorch is there: fresh processes in turns."""

from __future__ import annotations

import subprocess
import sys

from .table import Row

# The names that most programs use, with the modules behind them. Sentence Transformers comes when a model is there.
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
    """Measure in processes of their own."""
    torch: list[float] = []
    found: dict[str, list[float]] = {line: [] for line in IMPORTS}
    for _ in range(1 if quick else 5):
        for line, times in found.items():
            command = [sys.executable, "-c", CODE.format(line)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            first, second = (float(number) * 1000 for number in done.stdout.split())
            torch.append(first)
            times.append(second)
    raw = {"milliseconds of import torch": torch}
    return [Row.of(line, "import torch, before it", times, 20, "ms", **raw) for line, times in found.items()]
