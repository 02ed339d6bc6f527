"""Small forwards, run when hooks are attached, that measure what a backbone does instead of assuming it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import backbones
from ..compat import sentence_transformers as releases

# How far a row of a hidden state may be from the expected one, relative to its length. Wrong rows are off by tenths.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# With quantized activations a text moves with the scales of its batch, by less than this relative to a row's length.
_ROUNDING = 0.1

# Weights times positions that a probe may cost: a tenth of a second on two cores. The shortest probes may exceed it.
_BUDGET = 1_000_000_000

# No probe needs to be longer: this is beyond the windows of all but a few backbones.
_LONGEST = 1024

NO_VALUES = "nothing can be measured on a backbone whose weights have no values (meta device, fake tensors)"


def forward_fails(transformer: Any, adapter: str) -> str | None:
    """Return why the backbone cannot take two texts with the virtual tokens of ``adapter``, or None if it can.

    A backbone that cannot run without the adapter either proves nothing.
    """
    peft_model: Any = releases.backbone_of(transformer)
    if not can_measure(peft_model):
        return None
    virtual = int(peft_model.peft_config[adapter].num_virtual_tokens)
    features = padded_texts(transformer, min(8, longest_text(transformer, virtual)))
    if features is None:
        return None
    with probing(peft_model, adapter), _first_task(peft_model, adapter):
        try:
            output = peft_model(**features)
        except Exception as error:
            return _unless_it_fails_anyway(peft_model, features, error)
    rows, length = output[0], features["input_ids"].size(1)
    if rows.dim() == 3 and rows.size(1) != virtual + length:
        return f"returns {rows.size(1)} rows for {length} tokens and {virtual} virtual tokens"
    return None


def _unless_it_fails_anyway(peft_model: Any, features: dict[str, Tensor], error: Exception) -> str | None:
    try:
        peft_model.get_base_model()(**features)
    except Exception:
        return None
    return f"cannot run with virtual tokens, but runs without them ({in_a_line(error)})"


@contextlib.contextmanager
def _first_task(peft_model: Any, adapter: str) -> Iterator[None]:
    """Select a task for multitask prompt tuning, as ``SelectTask`` will."""
    if releases.method_of(peft_model.peft_config[adapter]) != "MULTITASK_PROMPT_TUNING":
        yield
        return

    def give_task(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0], torch.zeros(args[0].size(0), dtype=torch.int64, device=args[0].device)

    with peft_model.prompt_encoder[adapter].register_forward_pre_hook(give_task):
        yield


def padded_texts(transformer: Any, at_most: int) -> dict[str, Tensor] | None:
    """Return the backbone's inputs for a text of ``at_most`` tokens and one of half that length, padded on the right.

    None if virtual tokens leave no room for a text, which `fit_positions` reports.
    The tokenizer makes them, so that special tokens and segment ids are the same as in ``encode``.
    """
    tokenizer = getattr(transformer, "tokenizer", None)
    if tokenizer is None or at_most < 1:
        return None
    text = " ".join(["a cat is on the sofa"] * (at_most // 6 + 1))
    lengths = max(1, at_most // 2), at_most
    try:
        texts = [dict(tokenizer(text, truncation=True, max_length=length)) for length in lengths]
    except Exception:  # a custom tokenizer that takes something else
        return None
    longest = max(len(text["input_ids"]) for text in texts)
    device = next(releases.backbone_of(transformer).parameters()).device
    features: dict[str, Tensor] = {}
    for key in texts[0]:
        filler = getattr(tokenizer, "pad_token_id", None) or 0 if key == "input_ids" else 0
        rows = [list(text[key]) + [filler] * (longest - len(text[key])) for text in texts]
        features[key] = torch.tensor(rows, device=device)
    return features


def body_of(backbone: Any) -> Any:
    """Return the layers of a backbone, below the head of a classifier or a masked-language model."""
    return getattr(backbone, backbone.base_model_prefix, backbone)


def rows_of(backbone: Any, outer: nn.Module, features: dict[str, Tensor]) -> Tensor:
    """Return the rows from the layers of ``backbone`` in a forward of ``outer``, the ``PeftModel`` around it."""
    found: list[Any] = []
    with body_of(backbone).register_forward_hook(lambda module, args, output: found.append(output[0])):
        output = outer(**features)
    rows: Tensor = found[0] if found else output[0]
    return rows


def can_measure(module: nn.Module) -> bool:
    """Tell whether a forward of ``module`` computes values: not on the meta device or with fake tensors."""
    parameter = next(module.parameters(), None)
    return parameter is not None and type(parameter.data) is Tensor and parameter.device.type != "meta"


def affordable(backbone: nn.Module, rows: int) -> int:
    """Return how many positions a probe of ``rows`` rows may have; 0 if none are affordable."""
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    return min(_BUDGET // max(1, weights * rows), _LONGEST)


def longest_text(transformer: Any, virtual: int) -> int:
    """Return how long a probe's text may be behind ``virtual`` virtual tokens, capped even if the model has no limit.

    It is below 1 if there is no room for a text.
    """
    limits = (getattr(transformer, "max_seq_length", None), backbones.position_count(transformer))
    length, positions = (limit if isinstance(limit, int) else _LONGEST for limit in limits)
    return min(length, positions - virtual, _LONGEST)


def text_ids(backbone: Any, length: int) -> Tensor:
    """Return ``length`` token ids, ``int64[length]``, none of them special."""
    weight = backbone.get_input_embeddings().weight
    special = {value for name, value in vars(backbone.config).items() if name.endswith("_token_id")}
    known = [token for token in range(min(weight.size(0), length + len(special) + 8)) if token not in special]
    return torch.tensor([known[place % len(known)] for place in range(length)], device=weight.device)


def tolerance_of(dtype: torch.dtype) -> float:
    """Return how far apart rows of ``dtype`` may be, relative to their length."""
    return _TOLERANCES.get(dtype, 0.0)


def apart(one: Tensor, other: Tensor, mask: Tensor | None = None) -> float:
    """Return the largest distance between corresponding rows, relative to their length; NaN if any is NaN.

    Rows where ``mask`` is 0 do not count.
    """
    far = (one.double() - other.double()).norm(dim=-1) / other.double().norm(dim=-1).clamp(min=1e-30)
    return float((far if mask is None else far[mask.bool()]).max())


def moves(far: float, rounding: float, dtype: torch.dtype) -> bool:
    """Tell whether rows are further apart than rounding explains; with quantized activations rounding is measured.

    Args:
        far: How far apart they are.
        rounding: How far a text moves in a batch with another of its length, where only rounding should move it.
        dtype: The dtype of the rows.
    """
    return rounding > _ROUNDING or not far <= max(tolerance_of(dtype), 4 * rounding)


def in_a_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


@contextlib.contextmanager
def probing(peft_model: Any, adapter: str) -> Iterator[None]:
    """Run forwards with one adapter, without gradients and dropout, and restore the model at the end."""
    former = peft_model.active_adapter
    peft_model.active_adapter = adapter
    try:
        with at_rest(peft_model):
            yield
    finally:
        peft_model.active_adapter = former


@contextlib.contextmanager
def probing_active(transformer: Any) -> Iterator[None]:
    """Run forwards with the active adapter, as ``probing`` does."""
    config, outer = releases.active_config(transformer), releases.backbone_of(transformer)
    with at_rest(outer), contextlib.ExitStack() as stack:
        if config is not None and config.is_prompt_learning:
            stack.enter_context(_first_task(outer, outer.active_adapter))
        yield


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Run a block without gradients, dropout and autocast, and restore the model at the end."""
    training = [module for module in model.modules() if module.training]
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    if training:
        model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT and transformers will repeat their warnings in the user's forward
            yield
    finally:
        for module in training:
            module.training = True
