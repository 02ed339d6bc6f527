"""Build tiny cross-encoders on any release, and compute their scores by hand: one pair, no padding, float64."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import sentence_transformers
import torch
from torch import Tensor

from peft_hooks.testing.models import config_arguments, fill_weights, make_tokenizer

from .attention_by_hand import rows_behind
from .methods import METHODS, NO_CACHE, VARIANTS, Unavailable, fill_adapter
from .reference import _cache, float64_by_default, key_values, prompt_rows

RELEASE = tuple(int(part) for part in sentence_transformers.__version__.split(".")[:2])

PAIRS = (
    ("a cat", "the dog sleeps on the warm sofa"),
    ("rain falls", "a small red boat sails over the cold sea while the old captain sings a song"),
    ("how do birds find the way home in winter ?", "the moon"),
    ("a book", "rain"),
)
"""Pairs of texts with clearly different lengths."""

LABELS = 3


def tiny_cross_encoder(architecture: str = "bert", padding_side: str = "right", **config: Any) -> Any:
    """Build a tiny random CrossEncoder with ``LABELS`` scores per pair, in eval mode."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig, AutoModelForSequenceClassification

    arguments = config_arguments(architecture, {"num_labels": LABELS, **config})
    try:
        made = AutoConfig.for_model(architecture, **arguments)
    except ValueError as error:
        raise Unavailable(f"the installed transformers has no {architecture}") from error
    backbone = AutoModelForSequenceClassification.from_config(made)
    fill_weights(backbone, 0)
    with tempfile.TemporaryDirectory() as path:
        backbone.save_pretrained(path)
        make_tokenizer(architecture).save_pretrained(path)
        model = CrossEncoder(path, device="cpu")
    model.tokenizer.padding_side = padding_side
    backbone_of(model).eval()
    return model


def tiny_reranker(architecture: str = "llama") -> Any:
    """Build a tiny CrossEncoder that scores by a decoder's logits of two words (5.4 and later)."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(architecture, **config_arguments(architecture, {}))
    backbone = AutoModelForCausalLM.from_config(made)
    fill_weights(backbone, 0)
    with tempfile.TemporaryDirectory() as path:
        backbone.save_pretrained(path)
        make_tokenizer(architecture).save_pretrained(path)
        transformer = Transformer(path, transformer_task="text-generation")
    return CrossEncoder(modules=[transformer, LogitScore(*YES_NO)], device="cpu").eval()


YES_NO = (7, 9)


def backbone_of(model: Any) -> Any:
    """Return the model that the CrossEncoder runs."""
    return model[0].model if RELEASE >= (5, 4) else model.model


def put_backbone(model: Any, backbone: Any) -> None:
    """Set the model that the CrossEncoder runs."""
    if RELEASE >= (5, 4):
        model[0].model = backbone
    else:
        model.model = backbone


class Pipe:
    """What ``methods`` needs of a SentenceTransformer: a first module with its backbone."""

    def __init__(self, backbone: Any) -> None:
        self.auto_model, self._modules = backbone, {}

    def __getitem__(self, index: int) -> Any:
        return self


def put_adapter(model: Any, method: str, task_type: str = "SEQ_CLS", **kw: Any) -> Any:
    """Add an adapter with parameters that clearly matter; return the PeftModel."""
    from peft import get_peft_model

    backbone = backbone_of(model)
    config = {**METHODS, **VARIANTS}[method](Pipe(backbone), **kw)
    config.task_type = task_type
    try:
        peft_model = get_peft_model(backbone, config).eval()
    except TypeError as error:
        if "low_cpu_mem_usage" not in str(error):
            raise
        raise Unavailable("PEFT 0.13 cannot make any SEQ_CLS adapter (low_cpu_mem_usage)") from error
    with torch.no_grad():
        scale = float(backbone.get_input_embeddings()(torch.arange(4, backbone.config.vocab_size)).std())
        fill_adapter(peft_model, "default", 0, 1.0 if "prefix" in method or method == "cartridge" else scale)
    put_backbone(model, peft_model)
    return peft_model


def scores(model: Any, pairs: Sequence[tuple[str, str]] = PAIRS) -> Tensor:
    """Score the pairs in one batch, without an activation."""
    name = "activation_fn" if RELEASE >= (4, 0) else "activation_fct"
    found = model.predict(
        [list(pair) for pair in pairs], batch_size=len(pairs), convert_to_tensor=True, **{name: torch.nn.Identity()}
    )
    return torch.as_tensor(found)


def reference_scores(
    model: Any, pair: tuple[str, str], *, virtual_tokens: str = "auto", task_id: int | None = None
) -> Tensor:
    """Compute the scores of one pair by hand, ``[LABELS]``, float64; neither PEFT's nor the head's forward runs."""
    config, weights, hidden, virtual = _rows(model, model.tokenizer(*pair), task_id)
    return _head(config, weights, hidden, 0 if virtual_tokens == "pool" else virtual)


def reference_logit_score(model: Any, pair: tuple[str, str]) -> Tensor:
    """Compute the score of one pair by hand: the logit of one word minus that of the other, after the last token."""
    features = model.preprocess([pair])
    encoded = {key: features[key][0].tolist() for key in ("input_ids",)}
    _, weights, hidden, _ = _rows(model, encoded, None)
    logits = weights["lm_head.weight"] @ hidden[-1]
    return logits[YES_NO[0]] - logits[YES_NO[1]]


def _rows(model: Any, encoded: Any, task_id: int | None) -> tuple[Any, dict[str, Tensor], Tensor, int]:
    """Return the classifier's config and weights, one pair's rows, and how many of them are virtual."""
    wrapped = backbone_of(model)
    peft_type = None
    if hasattr(wrapped, "active_peft_config"):
        peft_type = str(getattr(wrapped.active_peft_config.peft_type, "value", wrapped.active_peft_config.peft_type))
    base = wrapped if peft_type is None else wrapped.base_model
    weights = {}
    for name, value in base.state_dict().items():
        if ".original_module." not in name:
            weights[name.replace("modules_to_save.default.", "")] = value.detach().double()
    plain = type(base)(base.config).double().eval()
    plain.load_state_dict(weights, strict=True)
    body = getattr(plain, plain.base_model_prefix)
    ids = torch.tensor([encoded["input_ids"]])
    types = torch.tensor([encoded["token_type_ids"]]) if "token_type_ids" in encoded else None
    inputs: dict[str, Any] = {}
    virtual = cached = 0
    with torch.no_grad(), float64_by_default():
        words = plain.get_input_embeddings()(ids)
        if peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
            pairs = key_values(wrapped)
            if base.config.model_type in NO_CACHE:
                flat = [tuple(part[0].transpose(0, 1).flatten(1) for part in pair) for pair in pairs]
                return base.config, weights, rows_behind(body, ids[0], flat), 0
            cached = pairs[0][0].shape[2]
            inputs["past_key_values"] = _cache(body, pairs)
            inputs["input_ids"] = ids
        elif peft_type is not None:
            rows = prompt_rows(wrapped, task_id).unsqueeze(0)
            virtual = rows.shape[1]
            inputs["inputs_embeds"] = torch.cat([rows, words], dim=1)
        else:
            inputs["input_ids"] = ids
        if types is not None:
            inputs["token_type_ids"] = torch.cat([types.new_zeros(1, virtual), types], dim=1)
        length = cached + virtual + ids.shape[1]
        hidden = body(attention_mask=torch.ones(1, length, dtype=torch.int64), return_dict=True, **inputs)[0][0]
    assert hidden.dtype == torch.float64 and len(hidden) == virtual + ids.shape[1]
    return base.config, weights, hidden, virtual


def _linear(row: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    found = weights[f"{name}.weight"] @ row
    return found + weights[f"{name}.bias"] if f"{name}.bias" in weights else found


def _head(config: Any, weights: dict[str, Tensor], hidden: Tensor, first: int) -> Tensor:
    """Compute the heads of transformers' sequence classifiers, written out."""
    kind, row = config.model_type, hidden[first]
    gelu = torch.nn.functional.gelu
    if kind in ("bert", "ernie"):
        return _linear(_linear(row, weights, f"{kind}.pooler.dense").tanh(), weights, "classifier")
    if kind == "albert":
        return _linear(_linear(row, weights, "albert.pooler").tanh(), weights, "classifier")
    if kind == "distilbert":
        return _linear(_linear(row, weights, "pre_classifier").clamp(min=0), weights, "classifier")
    if kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return _linear(_linear(row, weights, "classifier.dense").tanh(), weights, "classifier.out_proj")
    if kind == "electra":
        return _linear(gelu(_linear(row, weights, "classifier.dense")), weights, "classifier.out_proj")
    if kind in ("deberta", "deberta-v2"):
        return _linear(gelu(_linear(row, weights, "pooler.dense")), weights, "classifier")
    if kind == "modernbert":
        row = hidden.mean(dim=0) if config.classifier_pooling == "mean" else row
        row = gelu(_linear(row, weights, "head.dense"))
        row = (row - row.mean()) / (row.var(unbiased=False) + config.norm_eps).sqrt() * weights["head.norm.weight"]
        return _linear(row, weights, "classifier")
    return _linear(hidden[-1], weights, "score")
