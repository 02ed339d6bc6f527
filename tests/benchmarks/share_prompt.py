"""What virtual tokens cost a causal decoder: ``python -m tests.benchmarks.share_prompt [ROUNDS]``.

A random Qwen3 of 6 layers encodes 32 texts of up to 24 tokens in one batch, in one thread: without an adapter, with
prompt tuning as PEFT computes it (the hooks on, ``share_prompt=False``), and with the virtual tokens shared. The three
take turns; each row of the table is the median of the ratios of one round, and the middle half of them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from peft_hooks import prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model

from ..methods import put_adapter
from .timing import time_of

ROUNDS, BATCH, TOKENS = 15, 32, 24
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 256,
}
# Virtual tokens, and how many times faster than PEFT's own way sharing them has to be.
GOALS = {10: 1.4, 50: 3.0, 100: 5.0}
OF_NO_PROMPT = 1.2


class Row(NamedTuple):
    """One measured ratio.

    Attributes:
        what: What was measured.
        against: What it is compared with.
        ratio: The median over all rounds.
        low: The first quarter.
        high: The third quarter.
        goal: What the ratio has to be at least, for ``"PEFT's own way"``, or at most, for ``"no prompt"``.
        difference: The largest difference of a component of an embedding from PEFT's own way, in float32.
    """

    what: str
    against: str
    ratio: float
    low: float
    high: float
    goal: float
    difference: float


def measure(rounds: int = ROUNDS) -> list[Row]:
    """Measure 10, 50 and 100 virtual tokens."""
    torch.set_num_threads(1)
    return [row for virtual in GOALS for row in _measured(virtual, rounds)]


def _measured(virtual: int, rounds: int) -> list[Row]:
    model, bare = tiny_model("qwen3", **SIZES), tiny_model("qwen3", **SIZES)
    put_adapter(model, "prompt_tuning", num_virtual_tokens=virtual)
    own = tiny_model("qwen3", **SIZES)
    put_adapter(own, "prompt_tuning", num_virtual_tokens=virtual)
    texts = _texts()
    with register_prompt_mask_hooks(model, share_prompt=True), register_prompt_mask_hooks(own, share_prompt=False):
        models = {"no prompt": bare, "PEFT's own way": own, "shared": model}
        times = _in_turn({name: _encoding(one, texts) for name, one in models.items()}, rounds)
        apart = float((_encoding(model, texts)() - _encoding(own, texts)()).abs().max())
    rows = []
    for against, goal in (("PEFT's own way", GOALS[virtual]), ("no prompt", OF_NO_PROMPT)):
        pairs = zip(times[against], times["shared"], strict=True)
        ratios = [other / ours if against != "no prompt" else ours / other for other, ours in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        what = f"encode with {virtual} virtual tokens, shared: {'speed' if against != 'no prompt' else 'time'}"
        rows.append(Row(what, against, middle, low, high, goal, apart))
    return rows


def _texts() -> list[str]:
    """Return texts of 3 to 24 tokens, the closing one included."""
    words = TEXTS[3].split() + TEXTS[1].split()
    return [
        " ".join((words * 3)[number % 20 : number % 20 + 2 + number * (TOKENS - 3) // (BATCH - 1)])
        for number in range(BATCH)
    ]


def _encoding(model: Any, texts: list[str]) -> Callable[[], Any]:
    return lambda: model.encode(texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)


def _in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            taken = time_of(call, 1)
            if number >= 2:
                times[name].append(taken)
    return times


def attaching(rounds: int = ROUNDS) -> dict[bool, float]:
    """Return the median time of attaching and removing the hooks, in microseconds, by ``share_prompt``."""
    torch.set_num_threads(1)
    model = tiny_model("qwen3", **SIZES)
    put_adapter(model, "prompt_tuning", num_virtual_tokens=10)

    def attach(share: bool) -> None:
        with prompt_mask_hooks(model, share_prompt=share):
            pass

    calls = {str(share): (lambda share=share: attach(share)) for share in (False, True)}
    return {name == "True": statistics.median(found) for name, found in _in_turn(calls, rounds).items()}


def main(rounds: int = ROUNDS) -> None:
    """Measure and print."""
    for row in measure(rounds):
        bound = "at least" if row.against == "PEFT's own way" else "at most"
        spread = f"middle half {row.low:.2f} to {row.high:.2f}"
        print(
            f"{row.what} / {row.against}: {row.ratio:.2f} ({spread}; goal {bound} {row.goal}); "
            f"largest difference {row.difference:.0e}"
        )
    times = attaching(rounds)
    print(f"attaching and removing: {times[False] / 1e3:.1f} ms, with the proof {times[True] / 1e3:.1f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
