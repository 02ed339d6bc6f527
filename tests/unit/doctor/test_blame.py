"""``diagnose`` names the module that reads padding or mixes texts, whoever wrote it, and leaves right ones alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import UnsupportedModelError, diagnose, prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.testing import TEXTS
from peft_hooks.testing.models import make_tokenizer, pipeline_modules

from ...tools.checks import needs, unchanged
from ...tools.methods import backbone_of
from ...tools.wording import Golden, assert_says

WIDTH = 32
Features = dict[str, Any]

# What is said of each kind of fault.
PADDING, OTHERS, LENGTH = "padding positions", "values of the other texts", "alone | in a padded batch"


class Part(nn.Module):
    """A module of a pipeline that nobody here knows: what it does is given."""

    def __init__(self, run: Callable[[nn.Module, Features], Features], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.run, self.inner = run, inner or nn.Identity()

    def forward(self, features: Features) -> Features:
        return {**features, **self.run(self.inner, features)}


def pooled(embedding: torch.Tensor) -> Features:
    return {"sentence_embedding": embedding}


def tokens(rows: torch.Tensor) -> Features:
    return {"token_embeddings": rows}


def kept(features: Features) -> torch.Tensor:
    return features["attention_mask"].bool()


def packed(inner: nn.Module, features: Features) -> torch.Tensor:
    """Run an RNN over the text alone, right-padded."""
    lengths = kept(features).sum(dim=1).cpu()
    pack = nn.utils.rnn.pack_padded_sequence(features["token_embeddings"], lengths, True, enforce_sorted=False)
    total = features["token_embeddings"].size(1)
    rows: torch.Tensor = nn.utils.rnn.pad_packed_sequence(inner(pack)[0], True, total_length=total)[0]
    return rows


def attention(batch_first: bool = True) -> nn.Module:
    return nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first)


def attend(inner: nn.Module, features: Features, masked: bool) -> Features:
    rows = features["token_embeddings"]
    mask = ~kept(features) if masked else None
    return tokens(inner(rows, rows, rows, key_padding_mask=mask)[0])


def lstm() -> nn.Module:
    return nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)


def norm() -> nn.Module:
    return nn.BatchNorm1d(WIDTH, track_running_stats=False)


# What a module does; whether a Pooling follows it; the code, and what is said of it.
WRONG: dict[str, tuple[Callable[[], Part], bool, str, str]] = {
    "mean of all": (lambda: Part(lambda _, f: pooled(f["token_embeddings"].mean(1))), False, "PH002", PADDING),
    "max of all": (lambda: Part(lambda _, f: pooled(f["token_embeddings"].amax(1))), False, "PH002", PADDING),
    "last of all": (
        lambda: Part(
            lambda inner, f: pooled(inner(f["token_embeddings"])[1][-1]), nn.GRU(WIDTH, WIDTH, batch_first=True)
        ),
        False,
        "PH002",
        PADDING,
    ),
    "lstm": (lambda: Part(lambda inner, f: tokens(inner(f["token_embeddings"])[0]), lstm()), True, "PH011", PADDING),
    "attention": (lambda: Part(lambda inner, f: attend(inner, f, False), attention()), True, "PH011", PADDING),
    "attention, texts first": (
        lambda: Part(lambda inner, f: attend(inner, f, False), attention(False)),
        True,
        "PH011",
        OTHERS,
    ),
    "batch norm": (
        lambda: Part(lambda inner, f: tokens(inner(f["token_embeddings"].transpose(1, 2)).transpose(1, 2)), norm()),
        True,
        "PH011",
        OTHERS,
    ),
    "length": (
        lambda: Part(
            lambda _, f: pooled((f["token_embeddings"] * kept(f)[..., None]).sum(1) / f["token_embeddings"].size(1))
        ),
        False,
        "PH011",
        LENGTH,
    ),
}
RIGHT: dict[str, tuple[Callable[[], Part], bool]] = {
    "mean": (
        lambda: Part(
            lambda _, f: pooled((f["token_embeddings"] * kept(f)[..., None]).sum(1) / kept(f).sum(1, keepdim=True))
        ),
        False,
    ),
    "max": (
        lambda: Part(lambda _, f: pooled(f["token_embeddings"].masked_fill(~kept(f)[..., None], -1e9).amax(1))),
        False,
    ),
    "lstm": (lambda: Part(lambda inner, f: tokens(packed(inner, f)), lstm()), True),
    "attention": (lambda: Part(lambda inner, f: attend(inner, f, True), attention()), True),
    "batch norm": (
        lambda: Part(
            lambda inner, f: tokens(inner(f["token_embeddings"].transpose(1, 2)).transpose(1, 2)),
            nn.BatchNorm1d(WIDTH),
        ),
        True,
    ),
}


def with_part(part: Part, then_pooling: bool, model: Any) -> Any:
    """Put a module behind the Transformer, before its Pooling or in place of it."""
    from sentence_transformers import SentenceTransformer

    behind = [part, model[1]] if then_pooling else [part]
    return SentenceTransformer(modules=[model[0], *behind], device="cpu").eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", WRONG)
def test_the_module_that_does_it_is_named_with_what_it_does(
    name: str, side: str, dtype: torch.dtype, plain: Any, golden: Golden
) -> None:
    make, then_pooling, code, reason = WRONG[name]
    torch.manual_seed(0)
    model = with_part(make(), then_pooling, plain("llama", padding_side=side)).to(dtype)
    with unchanged(model):
        (found,) = diagnose(model, TEXTS).findings
    assert (found.code, found.place) == (code, "Part '1'")
    if side == "left":  # on the right a recurrent layer's last state is that of padding, and it begins elsewhere
        golden("findings", found.sentence, title=name)
    assert_says(found.sentence, reason)
    assert_says(found.measured, "moves by ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RIGHT)
def test_a_module_that_reads_its_own_text_alone_is_healthy(name: str, dtype: torch.dtype, plain: Any) -> None:
    make, then_pooling = RIGHT[name]
    torch.manual_seed(0)
    model = with_part(make(), then_pooling, plain("llama")).to(dtype)
    diagnosis = diagnose(model, TEXTS)
    assert diagnosis.ok, str(diagnosis)


class Encoder(nn.Module):
    """Several layers, one of which attends to padding."""

    def __init__(self, *masked: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True) for _ in masked)
        self.masked = masked

    def forward(self, features: Features) -> Features:
        rows = features["token_embeddings"]
        for layer, masked in zip(self.layers, self.masked):
            rows = layer(rows * 1.0, src_key_padding_mask=~kept(features) if masked else None)
        return {**features, "token_embeddings": rows}


def test_the_layer_inside_in_which_it_begins_is_named(plain: Any) -> None:
    torch.manual_seed(0)
    model = with_part(Encoder(True, False, True), True, plain())  # type: ignore[arg-type]
    (found,) = diagnose(model, TEXTS).findings
    assert found.place == "Encoder '1'"
    assert PADDING in found.sentence
    assert ", starting in its " in found.sentence
    assert "'1.layers.1" in found.sentence


def test_a_module_that_does_it_by_itself_blames_no_other(plain: Any) -> None:
    model = with_part(WRONG["mean of all"][0](), False, plain())
    (found,) = diagnose(model, TEXTS).findings
    assert "starting" not in found.sentence


def test_only_the_modules_that_do_it_are_named(plain: Any) -> None:
    """Two of four, each by what it does itself: what comes in is the same in every trial."""
    model = with_part(WRONG["lstm"][0](), True, plain())
    model.append(Part(lambda _, f: pooled(f["sentence_embedding"] * 2)))
    model.append(Part(lambda _, f: pooled(f["sentence_embedding"] - f["sentence_embedding"].mean(0))))
    found = diagnose(model, TEXTS).findings
    assert [(one.code, one.place) for one in found] == [("PH011", "Part '1'"), ("PH011", "Part '4'")]


def test_a_pooling_of_ones_own_that_reads_padding_is_named_behind_a_prompt_as_well(adapted: Any) -> None:
    """With the hooks on, which give it a mask of the right length."""
    model = with_part(WRONG["mean of all"][0](), False, adapted("llama"))
    with prompt_mask_hooks(model):
        (found,) = diagnose(model, TEXTS).findings
    assert (found.code, found.place) == ("PH002", "Part '1'")


def test_a_backbone_that_takes_no_notice_of_the_mask_is_named(plain: Any) -> None:
    """The token embeddings themselves move."""
    model = plain()

    def without_mask(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": None}

    backbone_of(model).encoder.register_forward_pre_hook(without_mask, with_kwargs=True)
    (found,) = diagnose(model, TEXTS).findings
    assert (found.code, found.place) == ("PH011", "Transformer '0'")
    assert PADDING in found.sentence
    assert ".encoder.layer.0.attention" in found.sentence


class Odd(nn.Module):
    """Counts its calls, so that it is never the same twice: nothing is blamed for what cannot be told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, features: Features) -> Features:
        self.calls += 1
        if self.calls > 40:
            raise RuntimeError("worn out")
        return {**features, "sentence_embedding": features["sentence_embedding"] * self.calls}


def test_a_module_that_cannot_be_called_again_breaks_nothing(plain: Any) -> None:
    model = plain()
    model.append(Odd())
    assert not diagnose(model, TEXTS[:3]).ok


# --- models that have no Transformer ---------------------------------------------------------------------------------


def static() -> Any:
    needs(hasattr(pipeline_modules(), "StaticEmbedding"), "has no StaticEmbedding")
    from sentence_transformers import SentenceTransformer

    tokenizer = make_tokenizer("bert")._tokenizer
    return SentenceTransformer(modules=[pipeline_modules().StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def test_a_static_embedding_is_examined() -> None:
    diagnosis = diagnose(static(), TEXTS)
    assert diagnosis.ok
    assert not diagnosis.tried
    assert "texts    not truncated, not padded" in str(diagnosis)


def test_a_static_embedding_with_a_fault_is_found_out() -> None:
    model = static()
    model.append(Part(lambda _, f: pooled(f["sentence_embedding"] - f["sentence_embedding"].mean(0))))
    (found,) = diagnose(model, TEXTS).findings
    assert (found.code, found.place) == ("PH011", "Part '1'")


def test_a_bag_of_words_is_examined() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=[pipeline_modules().BoW(vocab=["cat", "dog", "rain"])], device="cpu")
    assert diagnose(model, TEXTS).ok


def test_hooks_on_a_static_embedding_are_refused_with_what_is_true() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no Transformer module .*StaticEmbedding") as error:
        register_prompt_mask_hooks(static())
    assert "SentenceTransformer itself" not in str(error.value)


class Coder(nn.Module):
    """Another library's model, which encodes no texts."""

    def encode(self, image: Any) -> Any:
        return image


def test_a_model_of_another_library_that_encodes_is_told_what_is_expected() -> None:
    for call in (diagnose, register_prompt_mask_hooks):
        with pytest.raises(UnsupportedModelError, match=r"Sentence Transformers model.* a Coder.* no Transformer"):
            call(Coder())  # type: ignore[operator]


class OwnInput(nn.Module):
    """An input module of one's own: tokenizes words by their length, and gives each a vector."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, WIDTH)
        self.mixes = mixes

    def tokenize(self, texts: list[str], **options: Any) -> Features:
        ids = [torch.tensor([len(word) % 19 + 1 for word in text.split()]) for text in texts]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return {"input_ids": padded, "attention_mask": (padded > 0).long()}

    preprocess = tokenize

    def forward(self, features: Features, **options: Any) -> Features:
        rows = self.table(features["input_ids"])
        return {**features, "token_embeddings": rows + rows.mean(dim=(0, 1)) if self.mixes else rows}


@pytest.mark.parametrize("mixes", [False, True])
def test_an_input_module_of_ones_own_is_examined_too(mixes: bool, plain: Any) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=[OwnInput(mixes), plain()[1]], device="cpu").eval()
    found = diagnose(model, TEXTS).findings
    assert [(one.code, one.place) for one in found] == ([("PH011", "OwnInput '0'")] if mixes else [])
