"""Watches one forward: what Transformers give to Pooling, which positions count, which hooks fire."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._format import dtype_of
from ..compat import sentence_transformers as releases
from ..compat.quiet import quiet
from ..compat.torch_internals import forward_hooks_of
from ..hooks.dispatcher import dispatchers_on
from .findings import Seen
from .taps import copied, features_of, tapped

Features = dict[str, Any]


@dataclass
class Event:
    """One call of a Transformer or a Pooling.

    Attributes:
        path: Where the module is.
        module: The module.
        came: The features as they came in, before any hook.
        got: The features that the module's own forward got, after all hooks.
        gave: The features that came out, after all hooks; None if it raised.
    """

    path: str
    module: nn.Module
    came: Features
    got: Features = field(default_factory=dict)
    gave: Features | None = None

    @property
    def where(self) -> str:
        """The module for a reader."""
        return f"{type(self.module).__name__} {self.path!r}"


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[list[Event]]:
    """Record every call of a Transformer or a Pooling for the length of a block."""
    events: list[Event] = []

    def came(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        events.append(Event(path, module, copied(features_of(args, kwargs))))

    def got(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _last(events, module).got = copied(features_of(args, kwargs))

    def gave(path: str, module: nn.Module, output: Any) -> None:
        _last(events, module).gave = copied(output)

    with tapped((*releases.transformers_of(model), *releases.poolings_of(model)), came=came, got=got, gave=gave):
        yield events


def _last(events: list[Event], module: nn.Module) -> Event:
    return next(event for event in reversed(events) if event.module is module)


def seen_in(events: list[Event], gradients: bool = False) -> Iterator[Seen]:
    """Pair every Transformer with the Pooling behind it. Calls Pooling again if ``gradients`` are wanted."""
    for number, event in enumerate(events):
        rows = None if event.gave is None else event.gave.get("token_embeddings")
        given = event.got or event.came  # in the order of the rows: the hooks put padding last
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if not isinstance(rows, Tensor) or rows.dim() != 3 or ids is None or mask is None or _is_pooling(event):
            continue
        behind = events[number + 1] if number + 1 < len(events) and _is_pooling(events[number + 1]) else None
        got = event.gave if behind is None else behind.got or behind.came
        assert got is not None
        counted = first = None
        if gradients and behind is not None and behind.gave is not None:
            counted = positions_read(behind.module, behind.came)
            part = releases.cls_part(behind.module, int(got["token_embeddings"].size(-1)))
            first = None if part is None else positions_read(behind.module, behind.came, part)
        yield Seen(
            event.where,
            (behind or event).where,
            ids,
            mask.bool(),
            dtype_of(mask.dtype),
            rows,
            tuple(got["token_embeddings"].shape),
            got.get("attention_mask"),
            counted,
            first,
        )


def _is_pooling(event: Event) -> bool:
    kind = releases.pooling_class()
    return kind is not None and isinstance(event.module, kind)


def positions_read(pooling: nn.Module, came: Features, part: slice = slice(None)) -> Tensor:
    """Return ``bool[batch, positions]``: which positions the pooled embedding, or a part of it, depends on.

    This is measured, by the gradient, not read from a mask: a release may well put its mask aside.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features = copied(came)
        rows = features["token_embeddings"].float().requires_grad_()
        features["token_embeddings"] = rows * 1  # no leaf: before 5.4 max pooling writes into it
        pooled = pooling(features)["sentence_embedding"][:, part].sum()
        found = torch.autograd.grad(pooled, rows, allow_unused=True)[0]
        return torch.zeros_like(rows[..., 0], dtype=torch.bool) if found is None else found.abs().sum(dim=2) > 0


@contextlib.contextmanager
def counting(model: nn.Module, paths: set[str]) -> Iterator[Counter[str]]:
    """Count the calls, as hooks see them, of the modules at ``paths`` for the length of a block."""
    calls: Counter[str] = Counter()
    modules = modules_of(model)
    targets = [(path, modules[path]) for path in paths]
    with tapped(targets, came=lambda path, *_: calls.update([path])):
        yield calls


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by path. ``get_submodule`` would not find one that a property of the same name hides."""
    return dict(model.named_modules(remove_duplicate=False))


def hooked_paths(model: nn.Module) -> set[str]:
    """Return where hooks are that someone put on the model."""
    return {path for path, module in model.named_modules() if forward_hooks_of(module)}


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Leave the model and every random state as they were, whatever is encoded in the block. ``encode`` sets eval."""
    import numpy as np

    training = {module: module.training for module in model.modules()}
    tokenizers = [(tokenizer, tokenizer.padding_side) for tokenizer in tokenizers_of(model)]
    entries = [
        (entry, entry.calls)
        for _, _, dispatcher in dispatchers_on(model.named_modules())
        for entry in dispatcher.entries
    ]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(devices)), quiet():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for entry, calls in entries:
            entry.calls = calls
        for tokenizer, side in tokenizers:
            tokenizer.padding_side = side
        for module, flag in training.items():
            module.training = flag


def tokenizers_of(model: nn.Module) -> list[Any]:
    """Return the tokenizers of the model's Transformers that pad."""
    found = [getattr(transformer, "tokenizer", None) for _, transformer in releases.transformers_of(model)]
    return [tokenizer for tokenizer in found if hasattr(tokenizer, "padding_side")]


@contextlib.contextmanager
def padded(model: nn.Module, side: str) -> Iterator[None]:
    """Pad on one side for the length of a block."""
    former = [(tokenizer, tokenizer.padding_side) for tokenizer in tokenizers_of(model)]
    try:
        for tokenizer, _ in former:
            tokenizer.padding_side = side
        yield
    finally:
        for tokenizer, was in former:
            tokenizer.padding_side = was
