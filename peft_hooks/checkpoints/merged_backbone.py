"""A plain backbone with a prompt among its word embeddings: the rows that its layers get become rows of new ids."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..compat.torch_internals import copied_without_hooks
from ..errors import UnsupportedModelError

TO_USE = (
    "use peft_hooks.save(model, path) and load it with this library, or peft_hooks.export_onnx(model, path), which "
    "puts everything into one graph"
)
"""What to use for a model that no plain one equals."""


@dataclass(frozen=True)
class Prompt:
    """What a backbone gets before a text.

    Attributes:
        rows: ``[virtual, width]``, in the dtype of the backbone.
        segments: Whether the backbone gets segment ids: PEFT drops them for a task that it does not know.
    """

    rows: Tensor
    segments: bool


def read_prompt(transformer: Any, run: Callable[[], Any]) -> Prompt:
    """Return what the backbone gets before a text in a forward with the adapter, which ``run`` performs.

    Whatever computes them, an embedding, a network or a task's matrix: these are the rows that count.
    """
    plain, virtual = releases.plain_backbone(transformer), releases.active_virtual_tokens(transformer)
    seen: list[dict[str, Any]] = []
    with plain.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True):
        run()
    given = next((kwargs for kwargs in seen if kwargs.get("inputs_embeds") is not None), None)
    if given is None:
        raise UnsupportedModelError(f"the backbone gets no word embeddings in its forward: {TO_USE}")
    rows = given["inputs_embeds"][0, :virtual].detach().clone()
    return Prompt(rows, given.get("token_type_ids") is not None)


def bare_backbone(transformer: Any) -> Any:
    """Return a trainable copy of the backbone without PEFT and hooks, with its heads as they were trained."""
    plain = releases.plain_backbone(transformer)
    heads = [(head, copied_without_hooks(state.active_head(head))) for head in state.wrapped_heads(plain)]
    bare = copied_without_hooks(plain, heads)
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        vars(bare).pop(leftover, None)
    _unfreeze(bare)
    return bare


def _unfreeze(backbone: nn.Module) -> None:
    """Make everything trainable that PEFT froze, except quantized weights, which cannot be."""
    for parameter in backbone.parameters():
        parameter.requires_grad = parameter.is_floating_point()


def put_rows(backbone: Any, rows: Tensor, first_id: int) -> None:
    """Make ``rows``, ``[new, width]`` as the module returns them, the word embeddings of the ids from ``first_id`` on.

    Raises:
        UnsupportedModelError: If the module does not return a multiple of its weight's rows.
    """
    count = first_id + len(rows)
    if count > backbone.get_input_embeddings().weight.size(0):
        _grow(backbone, count)
    module = backbone.get_input_embeddings()
    factor = _factor(module)
    with torch.no_grad():
        module.weight[first_id:count] = (rows.double() / factor).to(module.weight)
        found = embedded(module, range(first_id, count))
    precision = 4 * torch.finfo(module.weight.dtype).eps
    if not torch.allclose(found.double(), rows.double(), rtol=precision, atol=precision * float(rows.abs().max())):
        raise UnsupportedModelError(
            f"the word embeddings are a {type(module).__name__}, which does not return a multiple of its weight, so no "
            f"weight can give the prompt: {TO_USE}"
        )


def embedded(module: nn.Module, ids: Any) -> Tensor:
    """Return an embedding's output for some ids, ``[ids, width]``."""
    weight: Any = module.weight
    with torch.no_grad():
        rows: Tensor = module(torch.tensor([list(ids)], device=weight.device))[0]
    return rows


def _factor(module: Any) -> Tensor:
    """Return the factor between the module's weight and its output: for Gemma 3, the square root of its width."""
    weight = module.weight.detach()
    row = int(weight[:256].abs().sum(dim=1).argmax())
    given, own = embedded(module, [row])[0].double(), weight[row].double()
    large = own.abs() >= own.abs().max() / 2
    ratio: Tensor = (given[large] / own[large]).median()
    return ratio


def _grow(backbone: Any, count: int) -> None:
    """Add rows to the word embeddings and to the output embeddings that are tied to them."""
    known = inspect.signature(backbone.resize_token_embeddings).parameters
    options = {"mean_resizing": False} if "mean_resizing" in known else {}  # it takes minutes for a large vocabulary
    with torch.random.fork_rng(devices=[]):
        backbone.resize_token_embeddings(count, **options)
    _unfreeze(backbone)


def rows_behind_first(backbone: Any, rows: Tensor, first: int, probe: Tensor) -> Tensor:
    """Return ``rows`` moved one place back, after a row for a first token in place 0: ``[virtual + 1, width]``.

    If learned positions are added to the words, a text's first token can come before the virtual tokens and be to every
    layer what it was after them: the difference of two positions goes into the words. Whether that holds for a backbone
    is left to the comparison.

    Args:
        backbone: The plain backbone.
        rows: ``[virtual, width]``.
        first: The id of the first token.
        probe: Ids of a text, ``int64[1, virtual + 1 or more]``, used to read the positions.

    Raises:
        UnsupportedModelError: If it has no learned positions.
    """
    positions = _positions(backbone, probe)
    if positions is None:
        raise UnsupportedModelError(
            f"the first token of a text is read (cls), and the backbone {backbone.config.model_type!r} adds no learned "
            f"positions to its words, so no plain model can have that token before the virtual tokens: merge with "
            f'virtual_tokens="pool" if it was trained like that, use another pooling (mean), or {TO_USE}'
        )
    virtual, places = len(rows), positions.double()
    moved = rows.double() + places[:virtual] - places[1 : virtual + 1]
    word = embedded(backbone.get_input_embeddings(), [first])[0].double()
    return torch.cat([moved, (word + places[virtual] - places[0]).unsqueeze(0)])


def _positions(backbone: Any, probe: Tensor) -> Tensor | None:
    """Return a text's learned positions, ``[seq, width]``: the output of the only embedding whose ids count up."""
    words, found = backbone.get_input_embeddings(), []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        ids = args[0] if args else None
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.numel() < probe.size(1):
            return
        counted = ids.reshape(-1, ids.size(-1))[0]
        if torch.equal(counted - counted[0], torch.arange(len(counted), device=ids.device)):
            found.append(output.reshape(-1, *output.shape[-2:])[0].detach())

    inner = [module for module in backbone.modules() if isinstance(module, nn.Embedding) and module is not words]
    hooks = [module.register_forward_hook(note) for module in inner]
    try:
        with torch.no_grad():
            backbone(input_ids=probe, attention_mask=torch.ones_like(probe))
    finally:
        for hook in hooks:
            hook.remove()
    width = words.weight.size(1)
    return found[0] if len(found) == 1 and found[0].size(-1) == width else None
