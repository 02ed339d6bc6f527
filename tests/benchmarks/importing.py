"""How long ``import peft_hooks`` takes where PyTorch is there: fresh processes in turns."""

from __future__ import annotations

import subprocess
import sys

from .table import Row

LAZY = "import torch, time; start = time.perf_counter(); import peft_hooks; print(time.perf_counter() - start)"
# Every public name is looked up, which imports the modules behind it.
WHOLE = LAZY.replace("import peft_hooks;", "import peft_hooks; [getattr(peft_hooks, n) for n in peft_hooks.__all__];")
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
        Row.of("import peft_hooks, and every public name", "the same", found[WHOLE], 20, "ms"),
    ]
