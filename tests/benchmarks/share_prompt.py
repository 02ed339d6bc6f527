"""Measure what virtual tokens cost in a causal decoder: ``python -m tests.benchmarks share_prompt``.

A random Qwen3 with 6 layers encodes 1, 8 and 32 texts of 10 tokens in one batch, in one thread: without an adapter;
with prompt tuning as PEFT computes it (hooks on, ``share_prompt=False``); with the virtual tokens shared within a
forward; with them kept between forwards; and, for 32 texts, with minimal sharing written by hand, without hooks. All
take turns.

The forwards of 32 texts are also compiled, if there is a C++ compiler: ``torch.compile`` with its own backend.

Real MiniLM encodes texts with a prefix computed by a network (``prefix_projection``), which runs for every row, as in
PEFT; once; or not again.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peft_hooks import register_prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model

from ..tools.methods import backbone_of, pipeline_of, put_adapter
from .encode import agree, encoding
from .models import features_of, minilm
from .table import Row
from .timing import in_turns, ratios, raw_of

ROUNDS, BATCH, TOKENS = 15, 32, 10
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 256,
}
VIRTUAL, BATCHES = (50, 100), (1, 8, BATCH)


def measure(quick: bool = False) -> list[Row]:
    """Measure a decoder with 50 and 100 virtual tokens, also compiled, and a prefix of 50."""
    every = list(itertools.product(VIRTUAL, BATCHES))
    sizes, rounds = (every[:1], 2) if quick else (every, ROUNDS)
    rows = [row for virtual, batch in sizes for row in _measured(virtual, batch, rounds if batch > 1 else 4 * rounds)]
    compiled = [] if quick or shutil.which("c++") is None else _compiled(VIRTUAL[0], rounds)
    return [*rows, *compiled, *_network(50, rounds)]


def _measured(virtual: int, batch: int, rounds: int) -> list[Row]:
    texts = _texts()[:batch]
    models = {name: tiny_model("qwen3", **SIZES) for name in ("no prompt", "PEFT's own way", "shared", "kept")}
    for name in list(models)[1:]:
        put_adapter(models[name], "prompt_tuning", num_virtual_tokens=virtual)
    with (
        register_prompt_mask_hooks(models["PEFT's own way"], share_prompt=False),
        register_prompt_mask_hooks(models["shared"], share_prompt=True),
        register_prompt_mask_hooks(models["kept"], share_prompt="keep"),
    ):
        models.update(_by_hand(virtual) if batch == BATCH else {})
        times = in_turns({name: encoding(one, texts) for name, one in models.items()}, rounds)
        for name in {"PEFT's own way", "shared", "by hand"} & set(models):
            agree(models["kept"], models[name], texts)
    return _rows_of(times, f"encode of {batch} with {virtual} virtual tokens")


def _by_hand(virtual: int) -> dict[str, Any]:
    hand = tiny_model("qwen3", **SIZES)
    put_adapter(hand, "prompt_tuning", num_virtual_tokens=virtual)
    hand[0].__class__ = sharing(type(hand[0]), virtual)
    return {"by hand": hand}


def _rows_of(times: dict[str, list[float]], what: str) -> list[Row]:
    own, raw = "PEFT's own way", raw_of(times)
    rows = [
        Row.of(f"{what}, shared: times as fast", own, ratios(times, own, "shared"), None),
        Row.of(f"{what}, kept: times as fast", own, ratios(times, own, "kept"), None, **raw),
        Row.of(f"{what}, kept: time", "no prompt", ratios(times, "kept", "no prompt"), None),
    ]
    if "by hand" in times:
        rows.append(Row.of(f"{what}, shared: time", "by hand, no hooks", ratios(times, "shared", "by hand"), None))
    return rows


def _compiled(virtual: int, rounds: int) -> list[Row]:
    """Measure forwards of 32 texts: as PEFT computes it and shared, both compiled; and shared, not compiled."""
    own, shared = (tiny_model("qwen3", **SIZES) for _ in range(2))
    works: dict[str, Callable[[], Tensor]] = {}
    for model, name in ((own, "PEFT's own way"), (shared, "shared")):
        put_adapter(model, "prompt_tuning", num_virtual_tokens=virtual)
        register_prompt_mask_hooks(model, share_prompt=model is shared)
        works[f"{name}, compiled"] = _forward(model, torch.compile(pipeline_of(model)))
    works["shared"] = _forward(shared, pipeline_of(shared))
    times = in_turns(works, rounds)
    torch.testing.assert_close(*(work() for name, work in works.items() if "compiled" in name), rtol=0, atol=1e-5)
    what = f"forward of {BATCH} with {virtual} virtual tokens, compiled"
    fast, raw = ratios(times, "PEFT's own way, compiled", "shared, compiled"), raw_of(times)
    return [
        Row.of(f"{what}, shared: times as fast", "PEFT's own way, compiled", fast, None, **raw),
        Row.of(f"{what}, shared: times as fast", "not compiled", ratios(times, "shared", "shared, compiled"), None),
    ]


def _forward(model: Any, pipeline: Callable[[dict[str, Any]], Tensor]) -> Callable[[], Tensor]:
    """Return a function that runs a pipeline on 32 texts, as tokens: a tokenizer is not compiled."""
    features = features_of(model, _texts())
    tokens = {name: features[name] for name in ("input_ids", "attention_mask")}

    def run() -> Tensor:
        with torch.no_grad():
            return pipeline(dict(tokens))

    return run


def _network(virtual: int, rounds: int) -> list[Row]:
    """Measure a prefix with a network as wide as the backbone."""
    texts, models = _texts(), {name: minilm() for name in ("PEFT's own way", "run once", "kept")}
    shares: dict[str, Any] = {"PEFT's own way": False, "run once": "auto", "kept": "keep"}
    for name, model in models.items():
        width = backbone_of(model).config.hidden_size
        put_adapter(
            model, "prefix_tuning", num_virtual_tokens=virtual, prefix_projection=True, encoder_hidden_size=width
        )
        register_prompt_mask_hooks(model, share_prompt=shares[name])
    times = in_turns({name: encoding(one, texts) for name, one in models.items()}, rounds)
    own = "PEFT's own way"
    for name in list(models)[1:]:
        agree(models[name], models[own], texts)
    what = f"encode with a prefix of {virtual} by a network"
    return [
        Row.of(f"{what}, {name}: times as fast", own, ratios(times, own, name), None, **raw_of(times))
        for name in list(models)[1:]
    ]


def sharing(kind: Any, virtual: int) -> Any:
    """Return a Transformer class whose forward also runs the virtual tokens only once, and nothing else."""
    from transformers import DynamicCache

    class Sharing(kind):
        def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
            adapter, mask = backbone_of([self]), features["attention_mask"]
            rows, batch = adapter.get_prompt(batch_size=1), len(mask)
            once = adapter.base_model(inputs_embeds=rows, use_cache=True)
            pairs = [(layer.keys, layer.values) for layer in once.past_key_values.layers]
            cache = DynamicCache([[part.expand(batch, -1, -1, -1) for part in pair] for pair in pairs])
            wide = torch.constant_pad_nd(mask, (virtual, 0), 1)
            positions = (wide.cumsum(1) - 1)[:, virtual:]
            text = adapter.base_model(
                input_ids=features["input_ids"], attention_mask=wide, position_ids=positions, past_key_values=cache
            )
            first = once.last_hidden_state.expand(batch, -1, -1)
            hidden = torch.cat([first, text.last_hidden_state], dim=1)
            return {**features, "token_embeddings": hidden, "attention_mask": wide}

    return Sharing


def _texts() -> list[str]:
    """Return texts of 10 tokens, including the closing one."""
    words = (TEXTS[3].split() + TEXTS[1].split()) * 4
    return [" ".join(words[number % 20 : number % 20 + TOKENS - 1]) for number in range(BATCH)]
