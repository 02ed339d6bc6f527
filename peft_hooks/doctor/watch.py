"""Watches one forward: what Transformers pass on to Pooling, which positions count, and which hooks fire."""

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
        path: The path of the module.
        module: The module.
        given: The features that the caller gave, before any hook.
        received: The features that the module's own forward got, after all hooks.
        returned: The features that came out, after all hooks; None if it raised.
    """

    path: str
    module: nn.Module
    given: Features
    received: Features = field(default_factory=dict)
    returned: Features | None = None

    @property
    def where(self) -> str:
        """The module as text."""
        return f"{type(self.module).__name__} {self.path!r}"


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[list[Event]]:
    """Record every call of a Transformer or a Pooling within a block."""
    events: list[Event] = []

    def given(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        events.append(Event(path, module, copied(features_of(args, kwargs))))

    def received(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _last(events, module).received = copied(features_of(args, kwargs))

    def returned(path: str, module: nn.Module, output: Any) -> None:
        _last(events, module).returned = copied(output)

    with tapped(
        (*releases.transformers_of(model), *releases.poolings_of(model)),
        given=given,
        received=received,
        returned=returned,
    ):
        yield events


def _last(events: list[Event], module: nn.Module) -> Event:
    return next(event for event in reversed(events) if event.module is module)


def seen_in(events: list[Event], gradients: bool = False) -> Iterator[Seen]:
    """Pair every Transformer with the Pooling after it. Calls Pooling again if ``gradients`` are wanted."""
    for number, event in enumerate(events):
        rows = None if event.returned is None else event.returned.get("token_embeddings")
        given = event.received or event.given  # in the order of the rows, as the hooks move padding last
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if not isinstance(rows, Tensor) or rows.dim() != 3 or ids is None or mask is None or _is_pooling(event):
            continue
        behind = events[number + 1] if number + 1 < len(events) and _is_pooling(events[number + 1]) else None
        received = event.returned if behind is None else behind.received or behind.given
        assert received is not None
        counted = first = None
        if gradients and behind is not None and behind.returned is not None:
            counted = positions_read(behind.module, behind.given)
            part = releases.cls_part(behind.module, int(received["token_embeddings"].size(-1)))
            first = None if part is None else positions_read(behind.module, behind.given, part)
        yield Seen(
            event.where,
            (behind or event).where,
            ids,
            mask.bool(),
            dtype_of(mask.dtype),
            rows,
            tuple(received["token_embeddings"].shape),
            received.get("attention_mask"),
            counted,
            first,
        )


def _is_pooling(event: Event) -> bool:
    kind = releases.pooling_class()
    return kind is not None and isinstance(event.module, kind)


def positions_read(pooling: nn.Module, given: Features, part: slice = slice(None)) -> Tensor:
    """Return ``bool[batch, positions]``: which positions the pooled embedding, or a part of it, depends on.

    Measured by the gradient instead of read from the mask, which a release may well ignore.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features = copied(given)
        rows = features["token_embeddings"].float().requires_grad_()
        features["token_embeddings"] = rows * 1  # not a leaf: before 5.4 max pooling writes to it in place
        pooled = pooling(features)["sentence_embedding"][:, part].sum()
        found = torch.autograd.grad(pooled, rows, allow_unused=True)[0]
        return torch.zeros_like(rows[..., 0], dtype=torch.bool) if found is None else found.abs().sum(dim=2) > 0


@contextlib.contextmanager
def counting(model: nn.Module, paths: set[str]) -> Iterator[Counter[str]]:
    """Count the calls of the modules at ``paths``, as hooks see them, within a block."""
    calls: Counter[str] = Counter()
    modules = modules_of(model)
    targets = [(path, modules[path]) for path in paths]
    with tapped(targets, given=lambda path, *_: calls.update([path])):
        yield calls


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by path; ``get_submodule`` cannot find one that a property of the same name hides."""
    return dict(model.named_modules(remove_duplicate=False))


def hooked_paths(model: nn.Module) -> set[str]:
    """Return the paths of the modules that anyone has put hooks on."""
    return {path for path, module in model.named_modules() if forward_hooks_of(module)}


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the model and every random state at the end of a block. ``encode`` itself sets eval mode."""
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
    """Return the tokenizers of the model's Transformers, as far as they pad."""
    found = [getattr(transformer, "tokenizer", None) for _, transformer in releases.transformers_of(model)]
    return [tokenizer for tokenizer in found if hasattr(tokenizer, "padding_side")]


@contextlib.contextmanager
def padded(model: nn.Module, side: str) -> Iterator[None]:
    """Pad on one side within a block."""
    former = [(tokenizer, tokenizer.padding_side) for tokenizer in tokenizers_of(model)]
    try:
        for tokenizer, _ in former:
            tokenizer.padding_side = side
        yield
    finally:
        for tokenizer, was in former:
            tokenizer.padding_side = was
