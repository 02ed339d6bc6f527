"""Whether a prefix is keys and values of every layer, as it has to be: compared with a cache that is filled by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import backbones, kv_cache
from ..compat import sentence_transformers as releases
from . import probes

# Tokens of the text, and how many of them a second one has that is padded to the length of the first.
LENGTH, SHORTER = 5, 3


def prefix_is_used(transformer: Any, adapter: str) -> str | None:
    """Return why the backbone does not use the prefix of ``adapter`` as it has to, or None if it does.

    Drawn keys and values, other ones for each layer, take the adapter's place, since keys and values that are mixed up
    make no difference where they are alike. The rows that PEFT's forward gives of a text have to be those that the
    layers give when they are handed a cache that was filled here, and the same in a batch.
    Nothing can be measured on meta or fake tensors.
    """
    peft_model: Any = releases.backbone_of(transformer)
    if not probes.can_measure(peft_model):
        return None
    config, backbone = peft_model.peft_config[adapter], peft_model.get_base_model()
    if probes.longest_text(transformer, config.num_virtual_tokens) < 1:
        return None  # there is no room for a text: `fit_positions` has the words
    with probes.probing(peft_model, adapter):
        prefix = _drawn(config, next(backbone.parameters()))
        with _in_place_of(peft_model, adapter, prefix):
            return _Layers(transformer, peft_model, backbone).why_wrong(prefix, config)


def _drawn(config: Any, like: Tensor) -> Tensor:
    """Return random rows of a prefix, ``[virtual, 2 * layers * width]``, without a touch on the global generator."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(config.num_virtual_tokens, 2 * config.num_layers * config.token_dim, generator=generator)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return rows.to(like.device, dtype)


class _Prefix(nn.Module):
    """Stands for an adapter's prompt encoder, of any method: PEFT reads its rows in one of these two ways."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows.size(0), rows.size(1), _weight=rows)

    def forward(self, indices: Tensor) -> Tensor:
        found: Tensor = self.embedding(indices)
        return found


@contextlib.contextmanager
def _in_place_of(peft_model: Any, adapter: str, rows: Tensor) -> Iterator[None]:
    former = peft_model.prompt_encoder[adapter]
    peft_model.prompt_encoder[adapter] = _Prefix(rows)
    try:
        yield
    finally:
        peft_model.prompt_encoder[adapter] = former


def key_values(rows: Tensor, config: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each layer, ``[1, heads, virtual, head size]`` each.

    A row of a prefix holds the first layer's keys, the first layer's values, the second layer's keys, and so on.
    """
    heads, size = config.num_attention_heads, config.token_dim // config.num_attention_heads
    parts = rows.view(rows.size(0), config.num_layers, 2, heads, size).permute(1, 2, 3, 0, 4).unsqueeze(2)
    return [(layer[0], layer[1]) for layer in parts]


class _Layers:
    """The layers of a backbone below its head, run by PEFT's forward and by hand."""

    def __init__(self, transformer: Any, peft_model: Any, backbone: Any) -> None:
        self.peft_model = peft_model
        self.backbone = backbone
        self.body = probes.body_of(backbone)
        self.transformer = transformer

    def why_wrong(self, prefix: Tensor, config: Any) -> str | None:
        """Return what is wrong with the rows of a text behind ``prefix``, or None."""
        virtual = int(config.num_virtual_tokens)
        ids = probes.text_ids(self.backbone, self._length(virtual))
        text, batch = _one_text(ids), _padded_batch(ids, self.backbone.config)
        try:
            alone, together = self._through_peft(**text), self._through_peft(**batch)
            short = self._through_peft(**_one_text(ids[:SHORTER]))
            without = self.body.forward(**text)[0]
        except Exception as error:  # whatever a backbone raises of keys and values that it does not expect
            return self._or_no_cache(f"rejects a prefix ({probes.in_a_line(error)})")
        if torch.equal(alone, without):
            return self._or_no_cache("ignores the prefix: its output is the same without")
        right = self._by_hand(key_values(prefix, config), text, without)
        if right is None:
            return "takes no keys and values that are handed to its layers, so that a prefix cannot be checked"
        return _difference(alone, right, together, short)

    def _length(self, virtual: int) -> int:
        """Return how long the text is: beyond a window that is known and can be afforded."""
        window = backbones.window_of(self.backbone.config)
        beyond = LENGTH if window is None else max(LENGTH, window + virtual + 1)
        room = probes.longest_text(self.transformer, virtual)
        return beyond if beyond <= min(probes.affordable(self.backbone, 8), room) else min(LENGTH, room)

    def _through_peft(self, **text: Tensor) -> Tensor:
        """Return the rows that the layers give in PEFT's forward."""
        return probes.rows_of(self.backbone, self.peft_model, text)

    def _by_hand(self, pairs: list[tuple[Tensor, Tensor]], text: dict[str, Tensor], without: Tensor) -> Tensor | None:
        """Return the rows of a text that follows keys and values, or None if the layers take none in any way.

        `forward`, not a call: hooks that are on already change positions, so that an ignored cache would look used.
        """
        mask = torch.ones(1, pairs[0][0].size(2) + text["input_ids"].size(1), dtype=torch.int64, device=without.device)
        for cache in kv_cache.filled_caches(pairs):
            try:
                rows: Tensor = self.body.forward(input_ids=text["input_ids"], attention_mask=mask, **cache)[0]
            except Exception:
                continue
            if rows.shape == without.shape and not torch.equal(rows, without):
                return rows
        return None

    def _or_no_cache(self, measured: str) -> str:
        """Return what was measured, or where it is plain from the signature, why."""
        if any(backbones.accepts(self.body, name) for name in kv_cache.NAMES):
            return measured
        return f"has no cache (past_key_values) in its forward, where a prefix would go: it {measured}"


def _one_text(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids.unsqueeze(0), "attention_mask": torch.ones_like(ids).unsqueeze(0)}


def _padded_batch(ids: Tensor, config: Any) -> dict[str, Tensor]:
    """Return the text beside a shorter one, which is padded on the right."""
    padding = getattr(config, "pad_token_id", None)
    rows, mask = ids.repeat(2, 1), torch.ones(2, len(ids), dtype=torch.int64, device=ids.device)
    rows[1, SHORTER:], mask[1, SHORTER:] = padding if isinstance(padding, int) and padding >= 0 else 0, 0
    return {"input_ids": rows, "attention_mask": mask}


def _difference(alone: Tensor, right: Tensor, together: Tensor, short: Tensor) -> str | None:
    tolerance = probes.tolerance_of(alone.dtype)
    if alone.shape != right.shape:
        return f"gives {alone.size(1)} rows behind a prefix where there have to be {right.size(1)}"
    far = probes.apart(alone, right)
    if not far <= tolerance:
        return (
            f"gives other rows than with the prefix as keys and values of its layers, by {far:.0e} of their length: "
            f"PEFT mixes them up"
        )
    beside, far = probes.apart(together[:1], alone), probes.apart(together[1:, :SHORTER], short)
    if not probes.moves(far, beside, alone.dtype):
        return None
    return f"gives other rows in a batch with a prefix, by {max(beside, far):.0e} of their length"
