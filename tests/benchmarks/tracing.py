"""Measure tracing one forward of real MiniLM, against other ways to see what goes through a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from peft_hooks import trace_shapes

from .models import features_of, minilm, text_of
from .table import Row
from .timing import in_turns, ratios, raw_of

BATCH, WORDS = 8, 20


def measure(quick: bool = False) -> list[Row]:
    """Measure a forward, including attaching the trace before it and removing it afterwards."""
    model = minilm()
    features = features_of(model, [text_of(WORDS)] * BATCH)

    def plain() -> None:
        model(dict(features))

    def traced() -> None:
        with trace_shapes(model):
            model(dict(features))

    def hooks() -> None:
        handles = [module.register_forward_hook(nothing) for module in model.modules()]
        model(dict(features))
        for handle in handles:
            handle.remove()

    with torch.no_grad():
        times = in_turns({"plain": plain, "traced": traced, "hooks": hooks}, 3 if quick else 80)
        shape = list(features["input_ids"].shape)
        what = f"trace_shapes, one MiniLM forward {shape}"
        rows = [
            Row.of(what, "plain", ratios(times, "traced", "plain"), None, **raw_of(times)),
            Row.of(what, "an empty hook on every module", ratios(times, "traced", "hooks"), 1.3),
        ]
        # torchlens comes last: it wraps PyTorch's functions for the rest of the process.
        for name, start in (("nnsight", nnsight), ("torchlens", torchlens)):
            if importlib.util.find_spec(name) is None:
                continue
            times = in_turns({"plain": plain, "traced": traced, name: start(model, features)}, 1 if quick else 7)
            less = ratios(times, "traced", name, "plain")
            # nnsight adds so little to a forward that no trace can cost a tenth of it.
            goal = 0.1 if name == "torchlens" else None
            rows.append(Row.of(what, name, ratios(times, "traced", name), goal, **raw_of(times)))
            rows.append(Row.of("what the trace adds to the forward", f"what {name} adds", less, goal))
    return rows


def nothing(module: Any, args: Any, output: Any) -> None:
    """Do nothing."""


def torchlens(model: Any, features: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that traces the forward with torchlens: metadata only, as ours."""
    import torchlens as lens

    kept = {key: value for key, value in features.items() if isinstance(value, torch.Tensor)}
    return lambda: lens.trace(model, [dict(kept)], save=None)


def nnsight(model: Any, features: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that keeps all modules' inputs and outputs with nnsight, which cannot keep shapes alone.

    It gets a model of its own, because nnsight keeps watching it after the block.
    """
    from nnsight import NNsight

    watched = NNsight(minilm())

    def run() -> None:
        with watched.trace(dict(features)) as tracer:
            kept = tracer.cache(include_inputs=True).save()
        assert kept is not None

    return run
