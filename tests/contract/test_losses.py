"""Every loss of Sentence Transformers with prompt tuning and hooks: its value and the prompt's gradient.

Both are compared with a reference in which every text is embedded by itself, without padding, in float64, by hand.
Where `FORMULAS` has the loss, its arithmetic is written out, too; elsewhere the loss's own runs on those embeddings.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import register_prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model

from ..tools import formulas
from ..tools.by_hand import ByHand, stand_in
from ..tools.checks import RELEASE, needs
from ..tools.methods import put_adapter
from ..tools.training import losses_of_the_release

PAIRS, TRIPLES, SINGLES = (TEXTS[:3], TEXTS[3:]), (TEXTS[:2], TEXTS[2:4], TEXTS[4:]), (TEXTS,)
WIDTH, LAYERS, DIMS = 32, 2, (32, 16)

# Measured on all eight stacks, relative to the largest component: the BERT is off by 2e-14, the decoder by 2e-15. The
# cached losses of 6.1, which round to float32, by 3e-8 and 2e-7; single layers of the decoder, whose norms do, by 2e-7.
TOLERANCE = {"right": 1e-7, "left": 1e-6}


def architecture(side: str) -> str:
    """Return a BERT for padding on the right, and for the left a decoder."""
    return "bert" if side == "right" else "qwen3" if RELEASE >= (4, 0) else "llama"


def numbers(*shape: int) -> Tensor:
    """Make labels that are numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


class Case(NamedTuple):
    """How a loss is called.

    Attributes:
        make: Makes the loss of a model; what it needs of modules, of the namespace of losses.
        columns: The texts.
        labels: What the texts come with.
    """

    make: Callable[[Any, Any], nn.Module]
    columns: tuple[tuple[str, ...], ...] = PAIRS
    labels: Tensor | None = None


def simple(
    name: str, columns: tuple[tuple[str, ...], ...] = PAIRS, labels: Tensor | None = None, **options: Any
) -> Case:
    """Say that a loss is called with the model and options alone."""
    return Case(lambda losses, model: getattr(losses, name)(model, **options), columns, labels)


@functools.cache
def guide(side: str) -> Any:
    """A model without an adapter that says which texts are near, for GISTEmbed; padding must not matter to it."""
    return tiny_model(architecture(side), seed=5, padding_side=side).double()


def guided(name: str, **options: Any) -> Case:
    """Say that a loss takes a guide."""
    return Case(lambda losses, model: getattr(losses, name)(model, guide(model.tokenizer.padding_side), **options))


def around(name: str, **options: Any) -> Case:
    """Say that a loss wraps another one: here MultipleNegativesRankingLoss."""
    return Case(
        lambda losses, model: getattr(losses, name)(model, losses.MultipleNegativesRankingLoss(model), **options)
    )


HALVES, THIRDS = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
SAME = torch.tensor([1, 0, 1])

CASES: dict[str, Case] = {
    "AdaptiveLayerLoss": around("AdaptiveLayerLoss", n_layers_per_step=-1),
    "AnglELoss": simple("AnglELoss", labels=HALVES),
    "BatchAllTripletLoss": simple("BatchAllTripletLoss", SINGLES, THIRDS),
    "BatchHardSoftMarginTripletLoss": simple("BatchHardSoftMarginTripletLoss", SINGLES, THIRDS),
    "BatchHardTripletLoss": simple("BatchHardTripletLoss", SINGLES, THIRDS),
    "BatchSemiHardTripletLoss": simple("BatchSemiHardTripletLoss", SINGLES, THIRDS),
    "CachedGISTEmbedLoss": guided("CachedGISTEmbedLoss", mini_batch_size=2),
    "CachedMultipleNegativesRankingLoss": simple("CachedMultipleNegativesRankingLoss", TRIPLES, mini_batch_size=1),
    "CachedMultipleNegativesSymmetricRankingLoss": simple(
        "CachedMultipleNegativesSymmetricRankingLoss", mini_batch_size=2
    ),
    "CoSENTLoss": simple("CoSENTLoss", labels=HALVES),
    "ContrastiveLoss": simple("ContrastiveLoss", labels=SAME),
    "ContrastiveTensionLoss": simple("ContrastiveTensionLoss", labels=SAME),
    "ContrastiveTensionLossInBatchNegatives": simple(
        "ContrastiveTensionLossInBatchNegatives", (TEXTS, TEXTS) if RELEASE < (5, 4) else SINGLES
    ),
    "CosineSimilarityLoss": simple("CosineSimilarityLoss", labels=HALVES),
    # Tied to its decoder, the encoder is not frozen any more on 5.0 to 5.3, and with an adapter not tied elsewhere.
    "DenoisingAutoEncoderLoss": Case(
        lambda losses, model: losses.DenoisingAutoEncoderLoss(model, model.folder.name, tie_encoder_decoder=False)
    ),
    "DistillKLDivLoss": simple("DistillKLDivLoss", TRIPLES, numbers(2, 2)),
    "EmbedDistillLoss": simple("EmbedDistillLoss", SINGLES, numbers(6, WIDTH)),
    "GISTEmbedLoss": guided("GISTEmbedLoss"),
    "GlobalOrthogonalRegularizationLoss": simple("GlobalOrthogonalRegularizationLoss"),
    "MSELoss": simple("MSELoss", SINGLES, numbers(6, WIDTH)),
    "MarginMSELoss": simple("MarginMSELoss", TRIPLES, numbers(2)),
    "Matryoshka2dLoss": around(
        "Matryoshka2dLoss", matryoshka_dims=list(DIMS), n_layers_per_step=-1, n_dims_per_step=-1
    ),
    "MatryoshkaLoss": around("MatryoshkaLoss", matryoshka_dims=list(DIMS)),
    "MegaBatchMarginLoss": simple("MegaBatchMarginLoss", mini_batch_size=2),
    "MultipleNegativesRankingLoss": simple("MultipleNegativesRankingLoss", TRIPLES),
    "MultipleNegativesSymmetricRankingLoss": simple("MultipleNegativesSymmetricRankingLoss"),
    "OnlineContrastiveLoss": simple("OnlineContrastiveLoss", (TEXTS[:4], TEXTS[2:]), torch.tensor([0, 1, 0, 1])),
    "SoftmaxLoss": simple("SoftmaxLoss", labels=THIRDS[1:4], sentence_embedding_dimension=WIDTH, num_labels=3),
    "TripletLoss": simple("TripletLoss", TRIPLES),
}

FORMULAS: dict[str, formulas.Formula] = {
    "CachedMultipleNegativesRankingLoss": formulas.multiple_negatives,
    "CachedMultipleNegativesSymmetricRankingLoss": formulas.symmetric_negatives,
    "CoSENTLoss": formulas.cosent,
    "ContrastiveLoss": formulas.contrastive,
    "CosineSimilarityLoss": formulas.cosine_similarity,
    "MSELoss": formulas.mean_squared_error,
    "MarginMSELoss": formulas.margin_mean_squared_error,
    "MatryoshkaLoss": formulas.matryoshka(formulas.multiple_negatives, DIMS),
    "MultipleNegativesRankingLoss": formulas.multiple_negatives,
    "MultipleNegativesSymmetricRankingLoss": formulas.symmetric_negatives,
    "OnlineContrastiveLoss": formulas.online_contrastive,
    # 5.0 to 5.3 take a similarity for the distance, so that their loss pulls the negative and pushes the positive.
    "TripletLoss": formulas.triplet_with(-1 if (5, 0) <= RELEASE < (5, 4) else 1, 1e-6 if RELEASE < (5, 0) else 0.0),
}
if RELEASE < (5, 0):  # the way back was scored within a mini-batch alone
    del FORMULAS["CachedMultipleNegativesSymmetricRankingLoss"]
BY_LAYER = {
    "AdaptiveLayerLoss": formulas.multiple_negatives,
    "Matryoshka2dLoss": formulas.matryoshka(formulas.multiple_negatives, DIMS),
}


def test_every_loss_of_the_release_is_in_the_table() -> None:
    """A release that brings a new one fails here."""
    classes = {name for name, kind in vars(losses_of_the_release()).items() if inspect.isclass(kind)}
    modules = {name for name in classes if issubclass(getattr(losses_of_the_release(), name), nn.Module)}
    assert modules <= set(CASES), f"how are they called? {sorted(modules - set(CASES))}"


# --- the models -----------------------------------------------------------------------------------------------------


@functools.cache
def model_of(side: str) -> Any:
    """Build a model in float64 with hooks and no dropout; DenoisingAutoEncoderLoss reads its folder."""
    import tempfile

    folder = tempfile.TemporaryDirectory()
    # Not eval() alone: MegaBatchMarginLoss calls train().
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if side == "right" else {}
    model = tiny_model(architecture(side), padding_side=side, path=folder.name, **calm)
    put_adapter(model, "prompt_tuning", num_virtual_tokens=5)
    register_prompt_mask_hooks(model.double())
    model.folder = folder
    return model


def tokenized(model: Any, columns: tuple[tuple[str, ...], ...]) -> list[Any]:
    """Tokenize each column by itself."""
    return [model.tokenize(list(column)) for column in columns]


def prompts_of(loss: nn.Module) -> dict[str, nn.Parameter]:
    """Return the prompts in a loss and its models, by where they are; one that is shared counts once."""
    found = {}
    for path, module in loss.named_modules():
        if isinstance(module, ByHand):
            found[path.partition(".")[0]] = module.prompt
        elif path.endswith(".prompt_encoder.default"):
            found[path.partition(".")[0]] = module.embedding.weight
    return found


class Pass(NamedTuple):
    """What one pass over a batch gave."""

    value: float
    gradients: dict[str, Tensor]


def run(loss: nn.Module, features: list[Any], labels: Tensor | None) -> Pass:
    """Compute a loss's value, and the gradients of the prompts in it."""
    loss.zero_grad(set_to_none=True)
    with torch.enable_grad():
        value = loss(features, labels)
        value = sum(value.values()) if isinstance(value, Mapping) else value
        value.backward()
    return Pass(value.item(), {where: prompt.grad.clone() for where, prompt in prompts_of(loss).items()})


def by_formula(name: str, model: Any, loss: Any, features: list[Any], labels: Tensor | None) -> Pass | None:
    """Compute the same from embeddings by hand and the loss's arithmetic by hand, or None if it is not written out."""
    truth = ByHand(model)
    columns = [truth.batch(one) for one in features]
    if name in BY_LAYER:
        value = over_layers(BY_LAYER[name], truth, features)
    elif name in ("GISTEmbedLoss", "CachedGISTEmbedLoss"):
        with torch.no_grad():
            guides = [alone(guide(model.tokenizer.padding_side), one) for one in features]
        value = formulas.gist(guides)(columns, labels)
    elif name == "SoftmaxLoss":
        weight, bias = loss.classifier.weight.detach(), loss.classifier.bias.detach()
        value = formulas.softmax_of(weight, bias)(columns, labels)
    elif name in FORMULAS:
        value = FORMULAS[name](columns, labels)
    else:
        return None
    value.backward()
    assert truth.prompt.grad is not None
    return Pass(value.item(), {"model": truth.prompt.grad})


def over_layers(inner: formulas.Formula, truth: ByHand, features: list[Any]) -> Tensor:
    """Add up the last layer's loss, and each prior one's with its divergence; releases differ in which and how much."""
    last = [truth.batch(one) for one in features]
    target = [column.detach() for column in last] if RELEASE >= (5, 7) else last
    value, first = inner(last, None), 0 if RELEASE >= (5, 4) else 1
    chosen = range(first, LAYERS)
    for place, layer in enumerate(chosen):
        prior = [truth.batch(one, layer) for one in features]
        weight = 1 if RELEASE >= (5, 7) else 1 / (1 + place)
        value = value + inner(prior, None) * weight / len(chosen) + formulas.divergence(prior, target)
    return value


def alone(model: Any, features: Any) -> Tensor:
    """Embed each row of a batch in a forward of its own, without padding, by a model that has no adapter."""
    rows = []
    for row, mask in enumerate(features["attention_mask"].bool()):
        text = {key: features[key][row : row + 1, mask] for key in ("input_ids", "attention_mask")}
        rows.append(model(text)["sentence_embedding"])
    return torch.cat(rows)


def by_own_arithmetic(name: str, model: Any, loss: Any, features: list[Any], labels: Tensor | None) -> Pass:
    """Compute the same with the release's own arithmetic on embeddings by hand."""
    if name == "DenoisingAutoEncoderLoss":  # its decoder is made of the encoder's folder
        twin = copy.copy(loss)
        twin._modules = {**loss._modules, "encoder": stand_in(model)}
    else:
        twin = CASES[name].make(losses_of_the_release(), stand_in(model)).double()
    return run(twin, features, labels)


def apart(found: Tensor, truth: Tensor) -> float:
    """Return the largest difference, relative to the largest component; NaN counts as infinite."""
    difference = (found - truth).abs().nan_to_num(nan=math.inf).max() / truth.abs().max()
    return float(difference.nan_to_num(nan=math.inf))


# --- the contract ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["right", "left"])
def side(request: Any) -> str:
    """Where texts are padded: a BERT on the right, a decoder on the left."""
    return str(request.param)


def written_by_others(name: str) -> set[str]:
    """Name what a release itself writes into the batch: before 6.0 GISTEmbed's guide, which has no hooks, does."""
    return {"token_embeddings", "sentence_embedding"} if name == "GISTEmbedLoss" and RELEASE < (6, 0) else set()


def expected_of(name: str, model: Any, loss: Any, features: list[Any], labels: Tensor | None) -> Pass:
    return by_formula(name, model, loss, features, labels) or by_own_arithmetic(name, model, loss, features, labels)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_loss_is_right_and_leaves_its_batch_as_it_was(name: str, side: str) -> None:
    """Twice over one batch: the same value and gradients, those of the reference; nothing frozen has any."""
    needs(name in vars(losses_of_the_release()), f"has no {name}")
    needs(
        name != "MegaBatchMarginLoss" or not (5, 4) <= RELEASE < (5, 7), "cuts the modality 'text' to 'te', any model"
    )
    needs(name != "DenoisingAutoEncoderLoss" or side == "right", "needs a backbone that can attend to another")
    model, case = model_of(side).eval(), CASES[name]
    torch.manual_seed(0)
    loss: Any = case.make(losses_of_the_release(), model).double()
    features = tokenized(model, case.columns)
    before = [{key: (value, copy.copy(value)) for key, value in one.items()} for one in features]

    first = run(loss, features, case.labels)
    frozen = {path for path, parameter in loss.named_parameters() if not parameter.requires_grad}
    moved = {path for path, parameter in loss.named_parameters() if parameter.grad is not None}
    second = run(loss, features, case.labels)

    assert math.isfinite(first.value) and first.value != 0
    assert second.value == first.value
    assert frozen and not frozen & moved
    for one, items in zip(features, before, strict=True):
        assert set(one) - set(items) <= written_by_others(name)
        for key, (value, clone) in items.items():
            assert one[key] is value
            assert torch.equal(value, clone) if isinstance(value, Tensor) else value == clone

    truth = expected_of(name, model, loss, features, case.labels)
    assert abs(first.value - truth.value) <= TOLERANCE[side] * max(1.0, abs(truth.value))
    assert list(first.gradients) == list(truth.gradients)
    for where, gradient in truth.gradients.items():
        assert apart(first.gradients[where], gradient) <= TOLERANCE[side]
        assert torch.equal(first.gradients[where], second.gradients[where])
