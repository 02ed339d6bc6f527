"""``diagnose``: run a model on real sentences, as it is and with the hooks, and report what is wrong with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from .._arguments import in_words, refuse_meta, texts_given
from .._public import public
from ..compat import sentence_transformers as releases
from ..compat.pipeline import read_pipeline
from ..errors import HookError, UnsupportedModelError
from ..hooks.selectors import compiled_part
from ..prompts.attach import prompt_mask_hooks
from ..prompts.handle import options_on
from ..prompts.plan import HookOptions
from .diagnosis import Diagnosis, summarize_model
from .examine import Examination, examine
from .findings import PAD_RIGHT, Finding
from .watch import padded, unchanged

TEXTS: tuple[str, ...] = (
    "Refunds?",
    "How do I get my money back?",
    "Our shop is open from nine to six.",
    "Return it within 30 days with the receipt, and we refund the full price.",
    "The train to Geneva leaves from platform four at a quarter past seven; change in Lausanne for the lake.",
    "To change your password, open the settings page, choose Security, type the old password once and the new one "
    "twice, and press Save; your other devices are signed out within a few minutes, and we send you a message.",
)
"""The texts that models are tried on: sentences of clearly different lengths, so that every batch has padding."""


@public
def diagnose(model: nn.Module, texts: Sequence[str] | None = None, *, tolerance: float | None = None) -> Diagnosis:
    """Find what silently goes wrong in a Sentence Transformers model, with or without an adapter.

    Encodes the texts alone and in batches, padded on the right and on the left, with the model as it is and, if it has
    a prompt adapter and no hooks, with the hooks. The model, its tokenizer, its hooks and the random states are left as
    they were; your own hooks on the model do run. Not thread-safe.

    Args:
        model: A ``SentenceTransformer``.
        texts: At least two texts of different lengths; by default six English sentences.
        tolerance: The largest difference of any component that counts as the same, as in ``check_padding_invariance``.

    Returns:
        The diagnosis: ``findings``, ``ok``, ``to_dict()``; ``print`` shows it.

    Raises:
        TypeError: If ``model`` is not a module or ``texts`` is one string.
        ValueError: If there are fewer than two texts.
        UnsupportedModelError: If the model does not give one vector for a text.
        HookError: If the model is compiled: PyTorch skips the hooks that would watch it.

    Example:
        >>> from peft_hooks import diagnose
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> diagnose(tiny_model("bert"), TEXTS[:2]).ok
        True
    """
    texts = _checked(model, TEXTS if texts is None else texts)
    with unchanged(model):
        native = examine(model, texts, tolerance)
        hooked, call, refusal = _with_hooks(model, texts, tolerance)
        findings = tuple(_with_fix(finding, hooked, call) for finding in native.findings)
        runs = native.runs + (() if hooked is None else tuple(replace(run, hooks=True) for run in hooked.runs))
        left = () if hooked is None else tuple(sorted({found.code for found in hooked.findings}))
        tolerance = native.tolerance or (hooked.tolerance if hooked is not None else 0.0)
        return Diagnosis(
            findings, runs, tolerance, len(texts), summarize_model(model), call, refusal, left, native.rows
        )


def _with_hooks(
    model: nn.Module, texts: Sequence[str], tolerance: float | None
) -> tuple[Examination | None, str, str | None]:
    """Examine the model with the hooks on, if it has a prompt adapter and no hooks.

    Returns:
        The examination, or None; the call that attaches the hooks; why they refuse the model, or None. If they refuse
        it only because it pads on the left, the call also sets padding on the right.
    """
    options = _options(model)
    call = f"peft_hooks.register_prompt_mask_hooks(model{''.join(f', {k}={v}' for k, v in options.items())})"
    prompts = any(releases.prompt_configs(transformer) for _, transformer in releases.transformers_of(model))
    if options_on(model) is not None or not prompts:
        return None, call, None
    refusal = None
    for side in ("", "right"):
        try:
            with padded(model, side) if side else nullcontext(), prompt_mask_hooks(model, **options):
                return examine(model, texts, tolerance), f"{PAD_RIGHT}\n{call}" if side else call, refusal
        except UnsupportedModelError as error:
            refusal = refusal or str(error)
    return None, call, refusal


_OTHER_TOOLS = "peft_hooks.check_padding_invariance(model, texts) and peft_hooks.trace_shapes(model)"


def _checked(model: Any, texts: Any) -> list[str]:
    """Check the arguments of ``diagnose`` and return the texts."""
    encode: Any = getattr(model, "encode", None)
    one_vector = encode is not None and "convert_to_tensor" in inspect.signature(encode).parameters
    # A StaticEmbedding or BoW encodes without a Transformer: it has no adapter, but could depend on its batch.
    refuse_meta(model if one_vector and isinstance(model, nn.Module) else read_pipeline(model).root)
    given: list[str] = texts_given(texts)
    if encode is None:
        raise UnsupportedModelError(
            f"{in_words(model)} gives no embeddings to compare: diagnose a SentenceTransformer, or use {_OTHER_TOOLS}"
        )
    if not one_vector:
        raise UnsupportedModelError(
            f"a {type(model).__name__} gives several vectors for a text, which are not compared here: diagnose a "
            f"SentenceTransformer, or use {_OTHER_TOOLS}"
        )
    for path, _ in model.named_modules():
        if compiled_part(model, path) is not None:
            raise HookError(
                f"{path or type(model).__name__!r} is compiled, so nothing can watch it: diagnose it before compiling"
            )
    return given


def _with_fix(finding: Finding, hooked: Examination | None, call: str) -> Finding:
    """Make the hooks the fix if the finding disappeared with them."""
    if hooked is None or hooked.stopped or any(found.code == finding.code for found in hooked.findings):
        return finding
    return replace(finding, fix=call, fixed=True)


def _options(model: nn.Module) -> HookOptions:
    """Return the options that the hooks need: a task for multitask prompt tuning."""
    tasks: Iterator[Any] = (
        encoder
        for _, transformer in releases.transformers_of(model)
        for encoder in releases.prompt_encoders(transformer, "MULTITASK_PROMPT_TUNING")
    )
    return {"task_id": 0} if next(tasks, None) is not None else {}
