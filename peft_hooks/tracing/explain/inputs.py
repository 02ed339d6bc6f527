"""Causes that lie in what the model is called with: features that do not go together, texts that are too long."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import nn

from .failure import Bound, Finding
from .history import Operand
from .messages import Clash, kind_of_dimension

if TYPE_CHECKING:
    from .rules import Scene

_TOGETHER = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "token_embeddings")


def too_many_positions(scene: Scene, clash: Clash, bounds: tuple[Bound, ...]) -> Finding | None:
    """More positions than a table of position embeddings has rows."""
    short = next((bound for bound in bounds if bound.size == min(clash.sizes)), None)
    table = None if short is None or short.path is None else scene.modules.get(short.path)
    if not isinstance(table, nn.Embedding) or short is None or "position" not in (short.path or ""):
        return None
    return too_long(scene, max(clash.sizes), short.size, bounds) if table.num_embeddings == short.size else None


def too_long(scene: Scene, length: int, positions: int, bounds: tuple[Bound, ...]) -> Finding:
    """Return the finding that a text, and virtual tokens, are longer than the model has positions for."""
    adapter = next(iter(scene.adapters), None)
    more = f", {adapter.virtual_tokens} of them virtual tokens of {adapter}" if adapter else ""
    left = positions - (adapter.virtual_tokens if adapter else 0)
    cure = f"model.max_seq_length = {left}" if scene.pipeline else f"truncate the texts to {left} tokens"
    return Finding("length", f"{length} positions{more}, but the model has {positions}", cure, bounds)


def inputs_disagree(scene: Scene, clash: Clash | None) -> Finding | None:
    """Two features that must be of one batch and length, and are not: as given to the model, or to this call."""
    rows = [event.row for event in scene.history.events[:1]] + [scene.row]
    for row in rows:
        known = [leaf for leaf in row.came if leaf.key in _TOGETHER and leaf.shape is not None and len(leaf.shape) > 1]
        for one, other in itertools.combinations(known, 2):
            for place, (a, b) in enumerate(zip((one.shape or ())[:2], (other.shape or ())[:2])):
                if a == b or 1 in (a, b) or (clash is not None and {a, b} != set(clash.sizes)):
                    continue
                kind = kind_of_dimension(place, 3)
                pair = [Operand(leaf, leaf.name, None) for leaf in (one, other)]
                bounds = tuple(scene.history.bound(operand, place) for operand in pair)
                words = f"{one.name} {list(one.shape or ())} and {other.name} {list(other.shape or ())}"
                cause = f"{row.where} was given {words}, which are not of one {kind}"
                births = [birth for birth in (scene.history.birth(operand, place) for operand in pair) if birth]
                odd = max(births, key=lambda birth: birth.when, default=None)
                made = odd.event.row.path if odd is not None and odd.made else None
                cure = f"give the model tensors of one {kind}" if made is None else f"look at what {made!r} returns"
                return Finding(kind, cause + scene.on(made), cure, bounds, made)
    return None
