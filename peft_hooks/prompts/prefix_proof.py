"""Prove that hooks put a prefix into its place, by comparison with forwards of the backbone without any of them.

To a text, a token in front of it is nothing but keys and values. So the keys and values of tokens in front, recorded in
a forward of the backbone, form a prefix, and behind that prefix the text's rows must equal those of that forward.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks.registry import HookRegistry
from ..hooks.wanted import Wanted
from . import probes
from .prefix import CutRowsInFront, OverwriteRows, PutPrefixInAttention, PutRowsInFront
from .prefix_forwards import Texts, in_a_batch, in_place_of, one_text
from .prefix_record import Places, Projection


def hooks_of_places(places: Places, backbone: nn.Module, scale: float = 1.0) -> Iterator[tuple[str, Any, nn.Module]]:
    """Yield the hooks that put a prefix into a backbone's attention: name, hook, module."""
    yield "", PutPrefixInAttention(places), backbone
    yield ":rows", PutRowsInFront(scale), backbone.get_submodule(places.body)
    if places.inner is not None:
        yield ":cut", CutRowsInFront(), backbone.get_submodule(places.inner)
    for number, one in enumerate(places.projections):
        yield f":{number}", OverwriteRows(one.layers, one.pieces), backbone.get_submodule(one.path)


def why_not_right(transformer: Any, peft_model: Any, adapter: str, places: Places) -> str | None:
    """Return what is wrong with the rows of a text behind a prefix that hooks put into ``places``, or None."""
    config, backbone = peft_model.peft_config[adapter], peft_model.get_base_model()
    reason = _other_sizes(config, places)
    if reason is not None:
        return reason
    virtual = int(config.num_virtual_tokens)
    texts = Texts(transformer, backbone, virtual)
    front = probes.text_ids(backbone, virtual + 1).flip(0)[:virtual]
    right, prefix = _by_tokens(backbone, places, front, texts.ids)
    with in_place_of(peft_model, adapter, prefix):
        try:
            return _wrong(peft_model, places, texts, right)
        except Exception as error:  # whatever PEFT and the backbone raise
            return f"it raises {probes.in_a_line(error)}"


def _other_sizes(config: Any, places: Places) -> str | None:
    has = int(config.num_layers), int(config.token_dim)
    if has == (places.layers, places.width):
        return None
    return (
        f"the adapter has keys and values for {has[0]} layers, {has[1]} wide (num_layers, token_dim), but the backbone "
        f"has {places.layers} layers, {places.width} wide"
    )


def _wrong(peft_model: Any, places: Places, texts: Texts, right: Tensor) -> str | None:
    backbone = peft_model.get_base_model()
    with put_in(backbone, places):
        alone, together, short = (
            probes.rows_of(backbone, peft_model, text) for text in (texts.long, texts.both, texts.short)
        )
        one = peft_model(**texts.both)
    if alone.shape != right.shape:
        return f"it returns {alone.size(1)} rows instead of {right.size(1)}"
    far = probes.apart(alone, right)
    if not far <= probes.tolerance_of(alone.dtype):
        return f"a text's rows are off by {far:.0e} of their length"
    with put_in(backbone, places, scale=-1.0):
        other = peft_model(**texts.both)
    for name, value, same in _tensors(one, other):
        far = probes.apart(value, same)
        if not far <= probes.tolerance_of(value.dtype):
            return f"{name} moves by {far:.0e} of its length with rows that nothing should read"
    return in_a_batch(alone, together, short)


def _tensors(one: Any, other: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the float tensors in two outputs of the same kind: name, one, other."""
    if isinstance(one, Tensor):
        if one.is_floating_point() and one.dim():
            yield "its output", one, other
    elif isinstance(one, Mapping):
        for key in one:
            yield from ((str(key), mine, its) for _, mine, its in _tensors(one[key], other[key]))
    elif isinstance(one, (tuple, list)):
        for pair in zip(one, other, strict=True):
            yield from _tensors(*pair)


@contextlib.contextmanager
def put_in(backbone: nn.Module, places: Places, scale: float = 1.0) -> Iterator[None]:
    """Have hooks put a prefix into ``places`` for a ``with`` block of probes."""
    registry = HookRegistry(backbone)
    wanted = hooks_of_places(places, backbone, scale)
    registry.attach_all(Wanted(f"prefix{name}", hook, module, 0) for name, hook, module in wanted)
    try:
        yield
    finally:
        registry.reset()


def _by_tokens(backbone: Any, places: Places, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a text behind other tokens, and the keys and values of these tokens as a prefix.

    It runs ``forward`` instead of calling the module, with no hook of this library, to get the backbone's own result.

    Returns:
        ``[1, text, hidden]`` and ``[front, 2 * layers * width]``.
    """
    body, seen = probes.body_of(backbone), _Seen(len(front))
    with contextlib.ExitStack() as stack:
        for one in places.projections:
            stack.enter_context(backbone.get_submodule(one.path).register_forward_hook(seen.hook_of(one)))
        rows: Tensor = body.forward(**one_text(torch.cat([front, text])))[0]
    return rows[:, len(front) :], seen.prefix(places)


class _Seen:
    """Keys and values of the tokens in front, recorded from the projections."""

    def __init__(self, virtual: int) -> None:
        self._virtual = virtual
        self._parts: dict[tuple[int, str], list[Tensor]] = {}
        self._calls: Counter[str] = Counter()

    def hook_of(self, projection: Projection) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            number = self._calls[projection.path]
            self._calls[projection.path] += 1
            layer = projection.layers[number] if number < len(projection.layers) else None
            start = 0
            for source, first, stop in projection.pieces:
                columns = output[0, : self._virtual, start : start + stop - first]
                start += stop - first
                if layer is not None and source != "own":
                    self._parts.setdefault((layer, source), []).append(columns.clone())

        return hook

    def prefix(self, places: Places) -> Tensor:
        order = [(layer, source) for layer in range(places.layers) for source in ("keys", "values")]
        return torch.cat([part for key in order for part in self._parts[key]], dim=1)
