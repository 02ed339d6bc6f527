"""Which module of a pipeline makes an embedding depend on its batch, and by what: measured, for modules of any kind.

Each module that takes features is called again with what it got in one batch: with other values where padding stands,
with other values in the other texts, and with one text alone. What its own text's result does then tells what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .findings import LOOK, Finding
from .inside import first_inside
from .invariance import apart
from .taps import copied, features_of, tapped

Features = dict[str, Any]

# What a module of a pipeline works on. Ids, which cannot take any value, are exchanged for others of the batch.
_ROWS, _EMBEDDING, _MASK = "token_embeddings", "sentence_embedding", "attention_mask"
_EXACT, _ROUNDED = 4, 16  # steps of the dtype's precision: with tensors of the same shape, and of another


@dataclass(frozen=True)
class Taken:
    """What one module took in one forward.

    Attributes:
        path: Where the module is.
        module: The module.
        features: What it was given, before any hook.
    """

    path: str
    module: nn.Module
    features: Features

    @property
    def kept(self) -> Tensor | None:
        """``bool[batch, positions]``: where text stands; None where the mask is not for what is taken."""
        mask, rows = self.features.get(_MASK), self.features.get(_ROWS, self.features.get("input_ids"))
        if not isinstance(mask, Tensor) or not isinstance(rows, Tensor) or rows.dim() < 2:
            return None
        return mask.bool() if mask.dim() == 2 and mask.shape == rows.shape[:2] else None

    @property
    def texts(self) -> int:
        """How many texts there are."""
        known = (self.features.get(name) for name in (_EMBEDDING, _ROWS, "input_ids"))
        return next((value.size(0) for value in known if isinstance(value, Tensor) and value.dim()), 0)


def blamed(model: nn.Module, run: Callable[[], Any], measured: str) -> Iterator[Finding]:
    """Yield the modules that make an embedding depend on its batch: PH002 where padding is pooled, else PH011.

    Args:
        model: The model.
        run: Encodes one batch of texts of different lengths.
        measured: By how much an embedding moves.
    """
    for taken in _taken(model, run):
        try:
            reasons = _reasons(taken)
        except Exception:  # a module that cannot be called with one text, or by itself: nothing is known of it
            continue
        if not reasons:
            continue
        name = type(taken.module).__name__
        pools = reasons[0] == _PADDING and _EMBEDDING not in taken.features
        code = "PH002" if pools and _EMBEDDING in _call(taken.module, taken.features) else "PH011"
        does = " and ".join(reasons)
        sentence = (
            f"{name} {does}{_begins(taken, reasons[0])}, so that an embedding depends on what else is in its batch."
        )
        yield Finding(code, f"{name} {taken.path!r}", sentence, measured, _CURES.get(reasons[0], LOOK))


def _begins(taken: Taken, reason: str) -> str:
    """Say in which of its submodules it begins, if it does not do it by itself."""
    own = taken.kept if reason == _PADDING else torch.arange(taken.texts) == 0
    if own is None or reason == _LENGTH:
        return ""
    changed = _replaced(taken.features, ~own)
    inner = first_inside(
        taken.module,
        taken.path,
        own,
        lambda: _call(taken.module, taken.features),
        lambda: _call(taken.module, changed),
    )
    return "" if inner is None else f", which begins in its {inner}"


_PADDING = "reads positions of padding as if they were text"
_OTHERS = "lets one text's result depend on the values of the other texts"
_LENGTH = "gives a text alone another result than the same text in a padded batch"
_CURES = {
    _PADDING: 'mask = features["attention_mask"].bool()  # in its forward: leave out the positions where this is False',
    _OTHERS: "# in its forward: no statistics over dimension 0, the texts, and no running ones while evaluating",
}


def _taken(model: nn.Module, run: Callable[[], Any]) -> list[Taken]:
    """Return what each module took that takes features and holds no other that does."""
    found: list[Taken] = []

    def came(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = features_of(args, kwargs)
        if isinstance(features, Mapping) and {_ROWS, _EMBEDDING, "input_ids"} & set(features):
            found.append(Taken(path, module, copied(features)))

    with tapped([(path, module) for path, module in model.named_modules() if path], came=came):
        run()
    paths = {taken.path for taken in found}
    return [taken for taken in found if not any(path.startswith(f"{taken.path}.") for path in paths)]


@torch.no_grad()
def _call(module: nn.Module, features: Features) -> Features:
    return dict(module(copied(features)))


def _reasons(taken: Taken) -> list[str]:
    """Return what a module reads that it should not; empty if its results are those of each text alone."""
    whole, kept = _call(taken.module, taken.features), taken.kept
    reasons = []
    if kept is not None and not bool(kept.all()):
        others = _call(taken.module, _replaced(taken.features, ~kept))
        if any(_differ(whole, others, number, kept, _EXACT) for number in range(taken.texts)):
            reasons.append(_PADDING)
    if any(_reads_others(taken, whole, number) for number in range(taken.texts)):
        reasons.append(_OTHERS)
    if not reasons and kept is not None and any(_differs_alone(taken, whole, number) for number in range(taken.texts)):
        reasons.append(_LENGTH)
    return reasons


def _reads_others(taken: Taken, whole: Features, number: int) -> bool:
    """Tell whether a text's result changes with the values of the other texts."""
    rest = torch.ones(taken.texts, dtype=torch.bool)
    rest[number] = False
    return _differ(whole, _call(taken.module, _replaced(taken.features, rest)), number, taken.kept, _EXACT)


def _differs_alone(taken: Taken, whole: Features, number: int) -> bool:
    """Tell whether a text's result is another if it is given alone, cut to its own length."""
    kept = taken.kept
    assert kept is not None
    own = {key: _cut(value, kept, number) for key, value in taken.features.items()}
    alone = _call(taken.module, own)
    batched = {key: _cut(value, kept, number) for key, value in whole.items()}
    return _differ(batched, alone, 0, None, _ROUNDED)


def _cut(value: Any, kept: Tensor, number: int) -> Any:
    """Cut what belongs to all texts to one, without its padding."""
    if not isinstance(value, Tensor) or not value.dim() or value.size(0) != kept.size(0):
        return value
    own = value[number : number + 1]
    if value.dim() > 1 and value.shape[:2] == kept.shape:
        own = own[:, kept[number].to(value.device)]
    return own


def _replaced(features: Features, where: Tensor) -> Features:
    """Put other values where ``where``, ``bool[batch]`` or ``bool[batch, positions]``, is True. Masks stay."""
    generator = torch.Generator().manual_seed(0)
    return {key: value if key == _MASK else _other(value, where, generator) for key, value in features.items()}


def _other(value: Any, where: Tensor, generator: torch.Generator) -> Any:
    if type(value) in (tuple, list):  # the hidden states of all layers
        return type(value)(_other(part, where, generator) for part in value)
    if not isinstance(value, Tensor) or value.shape[: where.dim()] != where.shape:
        return value
    chosen, new = where.to(value.device), value.clone()
    if value.is_floating_point():
        noise = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        new[chosen] += (1 + value[chosen].abs()) * noise[chosen]
    elif value.dtype != torch.bool and value.dim() > 1:  # ids; lengths, [batch], are sizes, not values
        pick = torch.randint(value.numel(), new[chosen].shape, generator=generator).to(value.device)
        new[chosen] = value.flatten()[pick]
    return new


def _differ(first: Features, second: Features, number: int, kept: Tensor | None, steps: int) -> bool:
    """Tell whether a text's embedding, or where there is none its token embeddings, are not the same."""
    name = _EMBEDDING if _EMBEDDING in first else _ROWS
    whole, changed = first.get(name), second.get(name)
    if not isinstance(whole, Tensor) or not isinstance(changed, Tensor) or not whole.is_floating_point():
        return False
    one, other = whole[number], changed[number]
    if name == _ROWS and kept is not None and kept.shape == whole.shape[:2] and one.shape == other.shape:
        own = kept[number].to(one.device)
        one, other = one[own], other[own]
    size = max(1.0, float(one.abs().nan_to_num(nan=0.0).max())) if one.numel() else 1.0
    return apart(one, other) > steps * torch.finfo(one.dtype).eps * size
