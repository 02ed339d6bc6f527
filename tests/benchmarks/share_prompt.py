"""What virtual tokens cost a causal decoder: ``python -m tests.benchmarks share_prompt``.

A random Qwen3 of 6 layers encodes 32 texts of up to 24 tokens in one batch, in one thread: without an adapter, with
prompt tuning as PEFT computes it (the hooks on, ``share_prompt=False``), with the virtual tokens shared, and with the
least that sharing can be: written by hand, with no hooks. The four take turns.

Real MiniLM encodes the same texts with a prefix that a network makes (``prefix_projection``): the network run for every
row, as PEFT does, and once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from peft_hooks import register_prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model

from ..tools.methods import backbone_of, put_adapter
from .encode import agree, encoding
from .models import minilm
from .table import Row
from .timing import in_turns, ratios, raw_of

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
    """Measure 10, 50 and 100 virtual tokens of a decoder, and a prefix of 50."""
    sizes, rounds = (list(GOALS)[:1], 2) if quick else (list(GOALS), ROUNDS)
    return [*(row for virtual in sizes for row in _measured(virtual, rounds)), _network(50, rounds)]


def _measured(virtual: int, rounds: int) -> list[Row]:
    model, own, hand, bare = (tiny_model("qwen3", **SIZES) for _ in range(4))
    for one in (model, own, hand):
        put_adapter(one, "prompt_tuning", num_virtual_tokens=virtual)
    hand[0].__class__ = sharing(type(hand[0]), virtual)
    texts = _texts()
    with register_prompt_mask_hooks(model, share_prompt=True), register_prompt_mask_hooks(own, share_prompt=False):
        models = {"no prompt": bare, "PEFT's own way": own, "by hand": hand, "shared": model}
        times = in_turns({name: encoding(one, texts) for name, one in models.items()}, rounds)
        for other in (own, hand):
            agree(model, other, texts)
    what, faster = f"encode with {virtual} virtual tokens, shared", ratios(times, "PEFT's own way", "shared")
    speed = Row.of(f"{what}: times as fast", "PEFT's own way", faster, GOALS[virtual], **raw_of(times))
    return [
        dataclasses.replace(speed, at_least=True),
        Row.of(f"{what}: time", "no prompt", ratios(times, "shared", "no prompt"), OF_NO_PROMPT),
        Row.of(f"{what}: time", "the same by hand, no hooks", ratios(times, "shared", "by hand"), None),
    ]


def _network(virtual: int, rounds: int) -> Row:
    """Measure a prefix whose network is as wide as the backbone."""
    texts, once, own = _texts(), minilm(), minilm()
    for model in (once, own):
        width = backbone_of(model).config.hidden_size
        put_adapter(
            model, "prefix_tuning", num_virtual_tokens=virtual, prefix_projection=True, encoder_hidden_size=width
        )
    with register_prompt_mask_hooks(once), register_prompt_mask_hooks(own, share_prompt=False):
        times = in_turns({"once": encoding(once, texts), "PEFT's own way": encoding(own, texts)}, rounds)
        agree(once, own, texts)
    what = f"encode with a prefix of {virtual} by a network, run once: times as fast"
    return Row.of(what, "PEFT's own way", ratios(times, "PEFT's own way", "once"), None, **raw_of(times))


def sharing(kind: Any, virtual: int) -> Any:
    """Return a Transformer class whose forward runs the virtual tokens once, and does nothing else."""
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
    """Return texts of 3 to 24 tokens, the closing one included."""
    words = TEXTS[3].split() + TEXTS[1].split()
    return [
        " ".join((words * 3)[number % 20 : number % 20 + 2 + number * (TOKENS - 3) // (BATCH - 1)])
        for number in range(BATCH)
    ]
