"""How long ``import peft_hooks`` takes where PyTorch is there: fresh processes in turns."""

from __future__ import annotations

import subprocess
import sys

from .table import Row

LAZY = "import torch, time; start = time.perf_counter(); import peft_hooks; print(time.perf_counter() - start)"
# The names that most programs use, with the modules behind them. Sentence Transformers comes when a model is there.
NAMES = "HookRegistry, register_prompt_mask_hooks, trace_shapes"
WHOLE = LAZY.replace("import peft_hooks", f"from peft_hooks import {NAMES}")
TORCH = "import time; start = time.perf_counter(); import torch; print(time.perf_counter() - start)"


def measure(quick: bool = False) -> list[Row]:
    """Measure in processes of their own."""
    found: dict[str, list[float]] = {LAZY: [], WHOLE: [], TORCH: []}
    for _ in range(1 if quick else 7):
        for code, times in found.items():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            times.append(float(done.stdout) * 1000)
    raw = {"milliseconds of import torch": found[TORCH]}
    return [
        Row.of("import peft_hooks", "import torch, which comes before", found[LAZY], 20, "ms", **raw),
        Row.of(f"from peft_hooks import {NAMES}", "the same", found[WHOLE], 20, "ms"),
    ]
