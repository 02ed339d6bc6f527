"""Contract: modules between the Transformer and Pooling, and after Pooling, get what they need of virtual tokens."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.errors import DimensionError, UnsupportedModelError
from peft_hooks.testing.models import VOCABULARY, pipeline_modules

from ..tools.checks import RELEASE, TEXTS, distance, encoded, needs
from ..tools.reference import reference_rows_of_padded, reference_token_embeddings, wrapped_backbone

WEIGHTS = {"cat": 3.0, "the": 0.2, "dog": 2.5, "boat": 1.5, "moon": 4.0, "[CLS]": 0.1}
UNKNOWN = 0.7
POLICIES = ("auto", "pool", "ignore", "strip")


def piped(model: Any, *between: nn.Module, after: tuple[nn.Module, ...] = ()) -> Any:
    """Put modules between the Transformer and a mean Pooling, and after it."""
    from sentence_transformers import SentenceTransformer

    width = next((m.embeddings_dimension for m in reversed(between) if hasattr(m, "embeddings_dimension")), 32)
    pooling = pipeline_modules().Pooling(width, "mean")
    return SentenceTransformer(modules=[model[0], *between, pooling, *after], device="cpu").eval()


def made(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Make a module of Sentence Transformers with seeded weights, wherever the release has its class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old home of classes that have a new one since 5.4
        import sentence_transformers.models as home

        torch.manual_seed(0)
        module: nn.Module = getattr(home, name)(*args, **kwargs)
    return module


def rows_of(model: Any, text: str, policy: str) -> tuple[Tensor, int]:
    """Compute a text's rows by hand, virtual tokens first, and how many of these the policy counts."""
    rows = reference_token_embeddings(model, text)
    virtual = len(rows) - len(model.tokenizer(text)["input_ids"])
    return (rows, virtual) if policy in ("auto", "pool") else (rows[virtual:], 0)


def assert_embeddings(model: Any, truth: Tensor) -> None:
    """Assert that the embeddings are those, in one batch and each alone."""
    assert distance(encoded(model), truth) <= 1e-4
    assert distance(torch.cat([encoded(model, [text]) for text in TEXTS]), truth) <= 1e-4


def word_weights() -> nn.Module:
    """Make a WordWeights module over the tiny vocabulary."""
    return made("WordWeights", VOCABULARY, WEIGHTS, UNKNOWN)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("policy", POLICIES)
def test_word_weights_give_virtual_tokens_the_weight_of_unknown_words(policy: str, side: str, adapted: Any) -> None:
    """A weighted mean counts virtual tokens as unknown words, or not at all."""
    model = piped(adapted("bert", padding_side=side), word_weights())
    truth = []
    for text in TEXTS:
        rows, virtual = rows_of(model, text, policy)
        ids = model.tokenizer(text)["input_ids"]
        weights = [UNKNOWN] * virtual + [WEIGHTS.get(VOCABULARY[index], UNKNOWN) for index in ids]
        weight = torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
        truth.append((rows * weight).sum(dim=0) / weight.sum())
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_embeddings(model, torch.stack(truth))


def test_word_weights_crash_without_hooks(adapted: Any) -> None:
    """What this is about: virtual tokens have no ids to look weights up by."""
    model = piped(adapted("bert"), word_weights())
    with pytest.raises(RuntimeError):
        encoded(model)


@pytest.mark.parametrize("output", ["token_embeddings", None])
def test_word_weights_leave_one_row_per_token_of_the_text(output: str | None, adapted: Any) -> None:
    """What follows sees the text's rows, ids and mask of one length."""
    model = piped(adapted("bert"), word_weights())
    with prompt_mask_hooks(model):
        found = model.encode([TEXTS[1]], output_value=output, convert_to_numpy=False)[0]
    rows = found if output else found["token_embeddings"]
    assert len(rows) == len(model.tokenizer(TEXTS[1])["input_ids"])


class Following(nn.Module):
    """Reads the row after the text, which the mask does not count: a module that the library does not know."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, ids, mask = (features[key] for key in ("token_embeddings", "input_ids", "attention_mask"))
        features["following"] = rows[torch.arange(len(ids)), mask.sum(dim=1).long().clamp(max=mask.shape[1] - 1)]
        return features


def test_padding_that_a_module_reads_has_the_positions_that_follow_the_text(adapted: Any) -> None:
    """As it has without an adapter: only where nothing reads padding may its positions be anything."""
    model = piped(adapted("bert"), Following())
    shortest, *_, longest = sorted(TEXTS, key=len)
    features = (model.preprocess if hasattr(model, "preprocess") else model.tokenize)([shortest, longest])
    length = int(features["attention_mask"][0].sum())
    assert length < features["attention_mask"].shape[1]
    ids, mask = features["input_ids"][:1, : length + 1], features["attention_mask"][:1, : length + 1]
    with torch.no_grad(), prompt_mask_hooks(model):
        found = model(features)["following"][0]
    truth = reference_rows_of_padded(wrapped_backbone(model), ids, mask)[-1]
    assert distance(found, truth) <= 1e-4


def convolved(rows: Tensor, cnn: Any) -> Tensor:
    """Convolve rows by hand, with zeros before the first and after the last."""
    columns = []
    for conv in cnn.convs:
        weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
        reach = weight.shape[2] // 2
        wide = torch.cat([rows.new_zeros(reach, rows.shape[1]), rows, rows.new_zeros(reach, rows.shape[1])])
        taps = [wide[tap : tap + len(rows)] @ weight[:, :, tap].T for tap in range(weight.shape[2])]
        columns.append(torch.stack(taps).sum(dim=0) + bias)
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
def test_a_cnn_reads_no_padding(method: str, policy: str, side: str, adapted: Any) -> None:
    """Beside the text's first and last token a kernel finds virtual tokens or zeros, never another text's padding."""
    cnn = made("CNN", 32, out_channels=8, kernel_sizes=[1, 3, 5])
    model = piped(adapted("bert", method, padding_side=side), cnn)
    truth = torch.stack([convolved(rows_of(model, text, policy)[0], cnn).mean(dim=0) for text in TEXTS])
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_embeddings(model, truth)


def layers_of(model: Any, text: str) -> Tensor:
    """Compute the hidden states of every layer of one text by hand: the reference's backbone, told to return them."""
    backbone = model[0].model if "model" in model[0]._modules else model[0].auto_model
    config = backbone.base_model.config if hasattr(backbone, "active_peft_config") else backbone.config
    total, layers = config.num_hidden_layers, []
    for depth in range(1, total + 1):  # a backbone of fewer layers ends with what is a hidden state of the whole
        config.num_hidden_layers = depth
        layers.append(_of_depth(model, text, depth, total))
    config.num_hidden_layers = total
    return torch.stack(layers)


def _of_depth(model: Any, text: str, depth: int, total: int) -> Tensor:
    backbone = model[0].model if "model" in model[0]._modules else model[0].auto_model
    layers = backbone.base_model.encoder.layer
    kept = list(layers)
    try:
        del layers[depth:]
        return reference_token_embeddings(model, text)
    finally:
        layers.extend(kept[depth:])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_weighted_layers_get_every_layer(method: str, policy: str, side: str, adapted: Any) -> None:
    """Hidden states come out although PEFT switches them off, and virtual tokens in them follow the policy."""
    weights = torch.tensor([0.3, 1.7])
    pool = made("WeightedLayerPooling", 32, num_hidden_layers=2, layer_start=1, layer_weights=nn.Parameter(weights))
    model = piped(adapted("bert", method, padding_side=side, output_hidden_states=True), pool)
    truth = []
    for text in TEXTS:
        _, virtual = rows_of(model, text, "auto")
        stacked = (layers_of(model, text) * weights.double().view(-1, 1, 1)).sum(dim=0) / weights.sum()
        truth.append(stacked[0 if policy in ("auto", "pool") else virtual :].mean(dim=0))
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_embeddings(model, torch.stack(truth))


def test_weighted_layers_without_layers_are_told_so(adapted: Any) -> None:
    """A backbone that is not asked for hidden states: 5.4 and later pool the last layer silently, the check raises."""
    model = piped(adapted("bert"), made("WeightedLayerPooling", 32, num_hidden_layers=2, layer_start=1))
    with prompt_mask_hooks(model), pytest.raises((DimensionError, KeyError), match="all_layer_embeddings"):
        encoded(model)


def test_an_lstm_after_a_transformer_is_refused(adapted: Any) -> None:
    """No release gives an LSTM the lengths that it needs after a Transformer: refused with the way out."""
    model = piped(adapted("bert"), made("LSTM", 32, 8))
    with pytest.raises(UnsupportedModelError) as caught:
        register_prompt_mask_hooks(model)
    for part in ("LSTM '1'", "sentence_lengths", "remove the LSTM"):
        assert part in str(caught.value)


class Lengths(nn.Module):
    """Gives an LSTM the lengths of the texts, as a user's own module."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Count the text's tokens."""
        length = features["input_ids"].size(1)
        features["sentence_lengths"] = features["attention_mask"][:, -length:].sum(dim=1).long()
        return features


@pytest.mark.parametrize("policy", ["auto", "pool", "strip"])
def test_an_lstm_reads_virtual_tokens_and_the_whole_text(policy: str, adapted: Any) -> None:
    """With lengths from a module of the user's, the LSTM runs over virtual tokens and text, not cut at the end."""
    from sentence_transformers import SentenceTransformer

    lstm = made("LSTM", 32, 8)
    model = piped(adapted("bert"), lstm)
    model = SentenceTransformer(modules=[model[0], Lengths(), lstm, model[2]], device="cpu").eval()
    exact = nn.LSTM(32, 8, bidirectional=True, batch_first=True).double()
    exact.load_state_dict(lstm.encoder.state_dict())
    truth = torch.stack([exact(rows_of(model, text, policy)[0].unsqueeze(0))[0][0].mean(dim=0) for text in TEXTS])
    with prompt_mask_hooks(model, virtual_tokens=policy), torch.no_grad():
        assert_embeddings(model, truth.detach())


@pytest.mark.parametrize("policy", POLICIES)
def test_dense_normalize_and_layer_norm_come_after_pooling(policy: str, adapted: Any) -> None:
    """What follows Pooling maps the pooled embedding, whatever virtual tokens there were."""
    dense, norm = made("Dense", 32, 12), made("LayerNorm", 12)
    model = piped(adapted("bert"), after=(dense, norm, made("Normalize")))
    weight, bias = dense.linear.weight.detach().double(), dense.linear.bias.detach().double()
    truth = []
    for text in TEXTS:
        row = (weight @ rows_of(model, text, policy)[0].mean(dim=0) + bias).tanh()
        row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
        truth.append(row / row.norm())
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_embeddings(model, torch.stack(truth))


@pytest.mark.parametrize("policy", POLICIES)
def test_dense_maps_tokens_before_pooling(policy: str, adapted: Any) -> None:
    """A Dense on token embeddings maps every row, virtual tokens among them, before the mean."""
    needs(RELEASE >= (5, 4), "Dense maps sentence embeddings only before 5.4")
    dense = made("Dense", 32, 32, module_input_name="token_embeddings", module_output_name="token_embeddings")
    model = piped(adapted("bert"), dense)
    weight, bias = dense.linear.weight.detach().double(), dense.linear.bias.detach().double()
    rows = [rows_of(model, text, policy)[0] for text in TEXTS]
    truth = torch.stack([(row @ weight.T + bias).tanh().mean(dim=0) for row in rows])
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_embeddings(model, truth)
