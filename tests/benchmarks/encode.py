"""Measure what the hooks add to ``encode`` for 1,000 real sentences on real MiniLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .models import by_hand, hooked, sentences
from .table import Row
from .timing import in_turns, ratios, raw_of

VIRTUAL, BATCH = 10, 32


def measure(quick: bool = False) -> list[Row]:
    """Measure the batches into which ``encode`` divides the sentences, with the models taking turns at each batch.

    ``encode`` sorts by length, and so does this: each call of ``encode`` gets one of its own batches. A text's time is
    thus compared with its own, within a tenth of a second, however busy the machine is.
    """
    texts = sorted(sentences(64 if quick else 1000), key=len, reverse=True)
    models = {
        "auto": hooked(VIRTUAL),
        "auto again": hooked(VIRTUAL),
        "strip": hooked(VIRTUAL, "strip"),
        "by hand": by_hand(VIRTUAL),
    }
    # All share the same tensors: the location of its weights in memory can make a model 1 % slower or faster.
    weights = models["auto"].state_dict(keep_vars=True)
    for model in models.values():
        model.load_state_dict(weights, assign=True)
    agree(models["auto"], models["by hand"], texts[::50])
    rounds = 1 if quick else 5
    times: dict[str, list[float]] = {name: [] for name in models}
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        for name, found in in_turns({name: encoding(model, part) for name, model in models.items()}, rounds).items():
            times[name] += found
    what = f"encode of {len(texts):,} sentences"
    return [
        Row.of(
            f"{what}, hooks on",
            "the mask put right in the forward",
            ratios(times, "auto", "by hand"),
            1.01,
            **raw_of(times),
        ),
        Row.of(f'{what}, virtual_tokens="strip"', '"auto"', ratios(times, "strip", "auto"), 1.0),
        Row.of(f'{what}, "auto" once more', '"auto"', ratios(times, "auto again", "auto"), None),
    ]


def encoding(model: Any, texts: list[str]) -> Callable[[], Any]:
    """Return a function that encodes the texts as one batch."""
    return lambda: model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)


def agree(one: Any, other: Any, texts: list[str]) -> None:
    """Raise if two models to be compared do not compute the same embeddings."""
    torch.testing.assert_close(encoding(one, texts)(), encoding(other, texts)(), rtol=0, atol=1e-5)
