"""What virtual tokens cost a causal decoder: ``python -m tests.benchmarks share_prompt``.

A random Qwen3 of 6 layers encodes 32 texts of up to 24 tokens in one batch, in one thread: without an adapter, with
prompt tuning as PEFT computes it (the hooks on, ``share_prompt=False``), and with the virtual tokens shared. The three
take turns.
"""

from __future__ import annotations

import dataclasses

from peft_hooks import register_prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model

from ..methods import put_adapter
from .encode import encoding
from .table import Row
from .timing import in_turns, ratios

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


def measure(quick: bool = False) -> list[Row]:
    """Measure 10, 50 and 100 virtual tokens."""
    sizes, rounds = (list(GOALS)[:1], 2) if quick else (list(GOALS), ROUNDS)
    return [row for virtual in sizes for row in _measured(virtual, rounds)]


def _measured(virtual: int, rounds: int) -> list[Row]:
    model, bare = tiny_model("qwen3", **SIZES), tiny_model("qwen3", **SIZES)
    put_adapter(model, "prompt_tuning", num_virtual_tokens=virtual)
    own = tiny_model("qwen3", **SIZES)
    put_adapter(own, "prompt_tuning", num_virtual_tokens=virtual)
    texts = _texts()
    with register_prompt_mask_hooks(model, share_prompt=True), register_prompt_mask_hooks(own, share_prompt=False):
        models = {"no prompt": bare, "PEFT's own way": own, "shared": model}
        times = in_turns({name: encoding(one, texts) for name, one in models.items()}, rounds)
        apart = float((encoding(model, texts)() - encoding(own, texts)()).abs().max())
    raw = {f"microseconds, {name}": found for name, found in times.items()}
    what, faster = f"encode with {virtual} virtual tokens, shared", ratios(times, "PEFT's own way", "shared")
    speed = Row.of(f"{what}: times as fast", "PEFT's own way", faster, GOALS[virtual], difference=apart, **raw)
    return [
        dataclasses.replace(speed, at_least=True),
        Row.of(f"{what}: time", "no prompt", ratios(times, "shared", "no prompt"), OF_NO_PROMPT),
    ]


def _texts() -> list[str]:
    """Return texts of 3 to 24 tokens, the closing one included."""
    words = TEXTS[3].split() + TEXTS[1].split()
    return [
        " ".join((words * 3)[number % 20 : number % 20 + 2 + number * (TOKENS - 3) // (BATCH - 1)])
        for number in range(BATCH)
    ]
