"""Finds which module of a pipeline makes an embedding depend on its batch, and why: measured, for any kind of module.

Each module that takes features is called again with the input it got in one batch: with other values in the padding,
with other values in the other texts, and with one text alone. How a text's own result changes shows what it depends on.
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

# The features that modules of a pipeline work on. Token ids cannot take any value, so those of the batch are swapped.
_ROWS, _EMBEDDING, _MASK = "token_embeddings", "sentence_embedding", "attention_mask"
_EXACT, _ROUNDED = 4, 16  # steps of the dtype's precision: for tensors of the same shape, and of another shape


@dataclass(frozen=True)
class Taken:
    """The input of one module in one forward.

    Attributes:
        path: The path of the module.
        module: The module.
        features: Its features, before any hook.
    """

    path: str
    module: nn.Module
    features: Features

    @property
    def kept(self) -> Tensor | None:
        """``bool[batch, positions]``: True where there is text; None if the mask does not describe the input."""
        mask, rows = self.features.get(_MASK), self.features.get(_ROWS, self.features.get("input_ids"))
        if not isinstance(mask, Tensor) or not isinstance(rows, Tensor) or rows.dim() < 2:
            return None
        return mask.bool() if mask.dim() == 2 and mask.shape == rows.shape[:2] else None

    @property
    def texts(self) -> int:
        """The number of texts."""
        known = (self.features.get(name) for name in (_EMBEDDING, _ROWS, "input_ids"))
        return next((value.size(0) for value in known if isinstance(value, Tensor) and value.dim()), 0)


def blamed(model: nn.Module, run: Callable[[], Any], measured: str) -> Iterator[Finding]:
    """Yield the modules that make an embedding depend on its batch: PH002 if padding is pooled, otherwise PH011.

    Args:
        model: The model.
        run: Encodes one batch of texts of different lengths.
        measured: How far an embedding moves, as text.
    """
    for taken in _taken(model, run):
        try:
            reasons = _reasons(taken)
        except Exception:  # it cannot be called with one text, or on its own: nothing is known about it
            continue
        if not reasons:
            continue
        name = type(taken.module).__name__
        pools = reasons[0] == _PADDING and _EMBEDDING not in taken.features
        code = "PH002" if pools and _EMBEDDING in _call(taken.module, taken.features) else "PH011"
        does = " and ".join(reasons)
        sentence = f"{name} {does}{_begins(taken, reasons[0])}, so an embedding depends on what else is in its batch."
        yield Finding(code, f"{name} {taken.path!r}", sentence, measured, _CURES.get(reasons[0], LOOK))


def _begins(taken: Taken, reason: str) -> str:
    """Return in which submodule the dependence begins, as text; empty if it is in the module itself."""
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
    return "" if inner is None else f", starting in its {inner}"


_PADDING = "reads padding positions as if they were text"
_OTHERS = "lets one text's result depend on the values of the other texts"
_LENGTH = "gives a text a different result alone than in a padded batch"
_CURES = {
    _PADDING: 'mask = features["attention_mask"].bool()  # in its forward: leave out the positions where this is False',
    _OTHERS: "# in its forward: no statistics over dimension 0, the texts, and no running statistics in eval mode",
}


def _taken(model: nn.Module, run: Callable[[], Any]) -> list[Taken]:
    """Return the input of each module that takes features and contains no other module that does."""
    found: list[Taken] = []

    def given(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = features_of(args, kwargs)
        if isinstance(features, Mapping) and {_ROWS, _EMBEDDING, "input_ids"} & set(features):
            found.append(Taken(path, module, copied(features)))

    with tapped([(path, module) for path, module in model.named_modules() if path], given=given):
        run()
    paths = {taken.path for taken in found}
    return [taken for taken in found if not any(path.startswith(f"{taken.path}.") for path in paths)]


@torch.no_grad()
def _call(module: nn.Module, features: Features) -> Features:
    return dict(module(copied(features)))


def _reasons(taken: Taken) -> list[str]:
    """Return what a module wrongly depends on; empty if each text's result depends on that text alone."""
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
    """Tell whether a text's result changes when it is given alone, cut to its own length."""
    kept = taken.kept
    assert kept is not None
    own = {key: _cut(value, kept, number) for key, value in taken.features.items()}
    alone = _call(taken.module, own)
    batched = {key: _cut(value, kept, number) for key, value in whole.items()}
    return _differ(batched, alone, 0, None, _ROUNDED)


def _cut(value: Any, kept: Tensor, number: int) -> Any:
    """Cut a value of all texts down to one text without its padding."""
    if not isinstance(value, Tensor) or not value.dim() or value.size(0) != kept.size(0):
        return value
    own = value[number : number + 1]
    if value.dim() > 1 and value.shape[:2] == kept.shape:
        own = own[:, kept[number].to(value.device)]
    return own


def _replaced(features: Features, where: Tensor) -> Features:
    """Change the values where ``where``, ``bool[batch]`` or ``bool[batch, positions]``, is True; masks are kept."""
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
    elif value.dtype != torch.bool and value.dim() > 1:  # ids; a 1-D tensor holds lengths, which must stay valid
        pick = torch.randint(value.numel(), new[chosen].shape, generator=generator).to(value.device)
        new[chosen] = value.flatten()[pick]
    return new


def _differ(first: Features, second: Features, number: int, kept: Tensor | None, steps: int) -> bool:
    """Tell whether a text's embedding differs, or its token embeddings if there is no embedding."""
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
