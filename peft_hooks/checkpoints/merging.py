"""``merge_and_unload``: turn a prompt into words of a plain model, which runs wherever models do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .._public import public
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..compat.torch_internals import copied_without_hooks
from ..errors import UnsupportedModelError
from ..prompts import probes
from ..prompts.attach import prompt_mask_hooks
from ..prompts.mask import VirtualTokens
from ..prompts.plan import given_options
from ..prompts.refusals import level_of_caller
from .framing import Front
from .merge_check import Comparison, Truth, encoder_of
from .merge_refusals import refuse_modules, refuse_without_task, the_transformer
from .merged_backbone import TO_USE, Prompt, bare_backbone, put_rows, read_prompt, rows_behind_first
from .merged_modules import adapt_modules, pads_right, reads_first, silence_logits
from .merged_tokenizer import first_free_id, first_special_id, longer, with_front
from .portable import portable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@public
def merge_and_unload(
    model: nn.Module, *, task_id: int | None = None, virtual_tokens: VirtualTokens | None = None
) -> SentenceTransformer:
    """Return a plain model with the prompt in it: no PEFT, no hooks.

    The virtual tokens become new words, which are rows of the word embeddings, and the tokenizer's post-processor puts
    them before every text. Everything else is the given model's: ``max_seq_length`` (with room for the virtual tokens),
    prompts, similarity function, modules after Pooling, and model card. ``SentenceTransformer(path)`` loads what its
    ``save_pretrained(path)`` writes, in all releases since 2.7 that have the backbone, and other engines read it: for
    this alone, its class is a subclass of the given model's. PEFT's own ``merge_and_unload`` refuses prompt learning.

    Before it is returned, the plain model is compared with the hooked one on texts: alone, in a batch, truncated, and
    with prompts. The given model stays as it is.

    Args:
        model: A ``SentenceTransformer`` with prompt tuning, P-tuning or multitask prompt tuning, with or without hooks;
            a ``CrossEncoder``, ``SparseEncoder`` (whose embeddings get an extra zero for each virtual token) or
            ``MultiVectorEncoder``, if the result is exact.
        task_id: The task of multitask prompt tuning; by default that of the hooks.
        virtual_tokens: The policy, as in ``register_prompt_mask_hooks``; by default that of the hooks, or ``"auto"``.

    Returns:
        A model of the same class, in eval mode, with all of it trainable. Token embeddings
        (``output_value="token_embeddings"``) include rows for the virtual tokens: ``[virtual + seq, width]``.

    Raises:
        TypeError: If ``model`` is not a module.
        UnsupportedModelError: If no plain model equals it, with what to use instead: for prefix tuning, cartridge, or a
            policy or pooling that needs code; or if the two are not equal, with how far apart they are.
        ValueError: If multitask prompt tuning has no ``task_id``, or an option is wrong.

    Warns:
        UserWarning: If the plain model pads on the right because its backbone's own left padding shifts a text.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, merge_and_unload
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> plain = merge_and_unload(model)
        >>> type(plain).__name__, bool(abs(plain.encode("a cat") - model.encode("a cat")).max() < 1e-6)
        ('SentenceTransformer', True)
    """
    plain: SentenceTransformer = merged(model, task_id=task_id, virtual_tokens=virtual_tokens).model
    return plain


@dataclass(frozen=True)
class Merged:
    """A plain model, its comparison with the hooked one, and why it pads on the other side, if it does."""

    model: Any
    comparison: Comparison
    pads: str | None = None


def merged(model: Any, *, task_id: int | None = None, virtual_tokens: str | None = None) -> Merged:
    """Do what ``merge_and_unload`` does, and return the comparison as well."""
    root, transformer = the_transformer(model)
    chosen = given_options(task_id, cast(VirtualTokens, virtual_tokens))  # a wrong one is refused as such
    chosen["share_prompt"] = False
    with prompt_mask_hooks(model, **chosen) as handle, probes.at_rest(root):
        policy = handle.options.virtual_tokens
        refuse_without_task(transformer, handle.options.task_id)
        refuse_modules(model, policy)
        prompt = read_prompt(transformer, lambda: _run_once(model))
        plain = _plain(model, transformer, prompt, policy)
        found = _compared(model, transformer, plain, policy)
    if found.pads is not None:
        warnings.warn(found.pads, stacklevel=level_of_caller())
    return found


def _run_once(model: Any) -> None:
    """Run one forward of two texts."""
    texts = ["a cat", "a small dog"]
    encoder_of(model, {})([texts, texts] if releases.is_cross_encoder(model) else texts)


def _plain(model: Any, transformer: Any, prompt: Prompt, policy: str) -> Any:
    """Build the plain model."""
    former, backbone = transformer.tokenizer, bare_backbone(transformer)
    sparse = any(modules.kind_of(module) == "SpladePooling" for _, module in _steps(model))
    first_id = first_free_id(former)
    if sparse:  # a word that occurs in no text is still a component
        first_id = max(first_id, backbone.get_input_embeddings().weight.size(0))
    virtual, rows = len(prompt.rows), prompt.rows
    front = Front(tuple(range(first_id, first_id + virtual)), segments=prompt.segments)
    if reads_first(model, transformer, policy):
        front, rows = _behind_first(backbone, former, front, rows)
    put_rows(backbone, rows, first_id)
    if sparse:
        silence_logits(backbone, first_id)
    tokenizer, front = with_front(former, front)
    limit = transformer.max_seq_length
    outer = releases.backbone_of(transformer)
    replaced = [(outer, backbone), (releases.plain_backbone(transformer), backbone), (former, tokenizer)]
    plain = copied_without_hooks(model, [*replaced, *_cards(model)])
    ((_, inner),) = cross.inputs_of(cross.root_of(plain))
    inner.max_seq_length = longer(limit, virtual)
    if isinstance(plain, nn.Module):
        adapt_modules(plain, tokenizer, front, policy)
    modules.forget_prompt_lengths(cross.root_of(plain).eval())
    if hasattr(plain, "model_card_data"):
        plain.model_card_data.register_model(plain)
    return portable(plain)


def _steps(model: Any) -> Iterator[tuple[str, nn.Module]]:
    return iter(model.named_children()) if isinstance(model, nn.Module) else iter(())


def _cards(model: Any) -> list[tuple[Any, Any]]:
    """Return the model card's data and a shallow copy of it: a deep one would copy the trainer and its model."""
    card = getattr(model, "model_card_data", None)
    return [] if card is None else [(card, copy.copy(card))]


def _behind_first(backbone: Any, tokenizer: Any, front: Front, rows: torch.Tensor) -> tuple[Front, torch.Tensor]:
    """Return the front and the rows for a model whose texts keep their first token in the first place."""
    first = first_special_id(tokenizer)
    if first is None:
        raise UnsupportedModelError(
            f"the first token of a text is read (cls), but this tokenizer puts no special token there: use another "
            f'pooling (mean, lasttoken), merge with virtual_tokens="pool" if it was trained like that, or {TO_USE}'
        )
    device = backbone.get_input_embeddings().weight.device
    probe = torch.full((1, max(len(rows) + 1, 4)), first, dtype=torch.int64, device=device)
    new = front.ids[-1] + 1
    return (
        Front(front.ids, first=new, stands_for=first, segments=front.segments),
        rows_behind_first(backbone, rows, first, probe),
    )


def _compared(model: Any, transformer: Any, plain: Any, policy: str) -> Merged:
    """Compare the two models, and again with padding on the right if that may be what makes the difference.

    Raises:
        UnsupportedModelError: If the plain model gives a different result.
    """
    truth = Truth(model, transformer)
    ((_, inner),) = cross.inputs_of(cross.root_of(plain))
    found, reason, pads = truth.compare(plain), pads_right(plain), None
    if inner.tokenizer.padding_side == "left" and not (found.equal and reason is None):
        reason = (
            reason or f"its backbone's own left padding shifts a text, which moves its result by {found.largest:.0e}"
        )
        inner.tokenizer.padding_side = "right"
        found, pads = truth.compare(plain), f"the plain model pads on the right: {reason}"
    if found.equal:
        return Merged(plain, found, pads)
    advice = f"train with another pooling (mean, lasttoken), or {TO_USE}"
    if reads_first(model, transformer, policy):
        advice = f'merge with virtual_tokens="pool" if it was trained like that, {advice}'
        if next(cross.root_of(model).parameters()).dtype in (torch.float16, torch.bfloat16):
            advice = f"merge model.float(), whose positions go into words unrounded, and cast the result; or {advice}"
    raise UnsupportedModelError(f"no plain model equals this one ({policy!r}): its {found}: {advice}")
