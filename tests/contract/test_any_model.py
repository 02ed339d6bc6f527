"""Any model of PyTorch: the hooks of examples/any_model.py, on models that Sentence Transformers never sees."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import (
    Call,
    DimensionError,
    Hook,
    HookRegistry,
    PutPaddingLast,
    SelectTask,
    assert_dimensions,
    check_padding_invariance,
    trace_shapes,
)
from peft_hooks.testing import assert_no_hooks_left

from ..tools.checks import RELEASE, TASK, TEXTS, distance, unchanged
from ..tools.methods import CACHE_METHODS
from ..tools.reference import reference_token_embeddings, wrapped_backbone
from ..tools.wording import assert_says

EXAMPLES = Path(__file__).parents[2] / "examples"
DECODER = "qwen3" if RELEASE >= (4, 1) else "llama"
METHODS = ("prompt_tuning", "p_tuning", "multitask_prompt_tuning", "prefix_tuning")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import examples/any_model.py."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("any_model")


@pytest.fixture(scope="session")
def of_transformers(adapted: Any) -> Any:
    """Return a PeftModel of a plain AutoModel, its tokenizer, and what the reference knows them by."""

    def make(architecture: str, side: str, method: str) -> tuple[Any, Any, Any]:
        model = adapted(architecture, method, padding_side=side)
        return wrapped_backbone(model), model.tokenizer, model

    return make


def by_hand(known: Any, method: str) -> list[Tensor]:
    """Compute the rows of every text, the virtual tokens' first, one text at a time, without padding, in float64."""
    task = TASK if method == "multitask_prompt_tuning" else None
    return [reference_token_embeddings(known, text, task_id=task) for text in TEXTS]


# -- a PeftModel with a pooling by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ["bert", DECODER])
def test_a_pooling_by_hand_is_right_in_any_batch(
    example: Any, architecture: str, side: str, method: str, of_transformers: Any
) -> None:
    backbone, tokenizer, known = of_transformers(architecture, side, method)
    model = example.Embedder(backbone, tokenizer)
    registry = example.pooling_by_hand(model)
    if method == "multitask_prompt_tuning":
        registry.attach(SelectTask(TASK), to="backbone.prompt_encoder.default")
    truth = torch.stack([rows.mean(dim=0) for rows in by_hand(known, method)])
    assert distance(model.encode(TEXTS), truth) < 1e-4
    assert distance(torch.cat([model.encode([text]) for text in TEXTS]), truth) < 1e-4
    assert check_padding_invariance(model, TEXTS)
    registry.clear()
    assert_no_hooks_left(model, foreign=True)


def test_where_padding_stays_in_front_it_moves_a_text(example: Any, of_transformers: Any) -> None:
    """The twin of the above: a mask that is right is not enough."""
    backbone, tokenizer, _ = of_transformers(DECODER, "left", "prompt_tuning")
    model = example.Embedder(backbone, tokenizer)
    HookRegistry(model).attach(example.CountVirtualTokens(), to="pool")
    assert check_padding_invariance(model, TEXTS).largest_difference > 1e-2


def test_a_roberta_which_counts_positions_from_two_needs_nothing_more(example: Any, of_transformers: Any) -> None:
    backbone, tokenizer, known = of_transformers("xlm-roberta", "left", "prompt_tuning")
    model = example.Embedder(backbone, tokenizer)
    registry = HookRegistry(model)
    registry.attach(PutPaddingLast(), to="backbone")
    registry.attach(example.CountVirtualTokens(), to="pool")
    truth = torch.stack([rows.mean(dim=0) for rows in by_hand(known, "prompt_tuning")])
    assert distance(model.encode(TEXTS), truth) < 1e-4


def test_the_mask_that_is_too_short_is_explained(example: Any, of_transformers: Any) -> None:
    """PyTorch names two sizes; the note names the module, the tensors, and the virtual tokens between them."""
    backbone, tokenizer, _ = of_transformers("bert", "right", "prompt_tuning")
    model = example.Embedder(backbone, tokenizer)
    with unchanged(model), trace_shapes(model) as trace, pytest.raises(RuntimeError, match="must match the size"):
        model.encode(TEXTS)
    said = str(trace.failure)
    assert "MeanPool 'pool'" in said
    assert_says(said, "num_virtual_tokens | active PROMPT_TUNING | 'default'")
    virtual = backbone.active_peft_config.num_virtual_tokens
    with pytest.raises(DimensionError) as caught:
        with assert_dimensions(model, {"pool": {"rows": "float: batch seq hidden", "mask!": "batch seq"}}):
            model.encode(TEXTS)
    assert_says(
        caught.value,
        f"{virtual} = num_virtual_tokens | PROMPT_TUNING | 'default'",
        "torch.nn.functional.pad(mask, (virtual_tokens, 0), value=1)",
    )


# -- a pipeline of transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pipeline_gives_the_texts_own_rows(
    example: Any, side: str, method: str, batch_size: int, of_transformers: Any
) -> None:
    """One row for each token, equal to the reference's. The rows of padding, which come, too, are not looked at."""
    from transformers import pipeline

    backbone, tokenizer, known = of_transformers(DECODER, side, method)
    features = pipeline("feature-extraction", model=backbone, tokenizer=tokenizer)
    registry = HookRegistry(features.model)
    registry.attach(PutPaddingLast(), to="")
    registry.attach(example.TextOnly(), to="")
    truth = by_hand(known, method)
    virtual = 0 if method in CACHE_METHODS else backbone.active_peft_config.num_virtual_tokens
    for text, found, rows in zip(TEXTS, features(list(TEXTS), batch_size=batch_size), truth):
        tokens = len(tokenizer(text)["input_ids"])
        own = torch.tensor(found[0])[-tokens:] if side == "left" else torch.tensor(found[0])[:tokens]
        assert batch_size > 1 or len(found[0]) == tokens
        assert distance(own, rows[virtual:]) < 1e-4
    registry.clear()
    assert len(features(TEXTS[0])[0]) == virtual + len(tokenizer(TEXTS[0])["input_ids"])


# -- plain PyTorch -----------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Two inputs, one of them by name; nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, rows: Tensor, *, weight: Tensor) -> Tensor:
        return self.inner(rows) * weight.unsqueeze(-1)


class Halve(Hook):
    """Change an argument on its way in."""

    def before(self, call: Call) -> None:
        call.kwargs = {**call.kwargs, "weight": call.kwargs["weight"] / 2}


def gate() -> tuple[Gate, Tensor, Tensor, Tensor]:
    """Return a module, its inputs, and what comes out, by hand in float64."""
    generator = torch.Generator().manual_seed(0)
    module, rows, weight = Gate(), torch.randn(2, 5, 4, generator=generator), torch.rand(2, 5, generator=generator)
    truth = rows.double() @ module.inner.weight.detach().double().T + module.inner.bias.detach().double()
    return module, rows, weight, truth * weight.double().unsqueeze(-1)


def test_the_registry_changes_a_plain_module_and_leaves_it() -> None:
    module, rows, weight, truth = gate()
    with unchanged(module):
        with HookRegistry(module).attached(Halve(), to=Gate):
            assert distance(module(rows, weight=weight).detach(), truth / 2) < 1e-6
        assert distance(module(rows, weight=weight).detach(), truth) < 1e-6


def test_dimensions_of_a_plain_module_are_asserted() -> None:
    module, rows, weight, truth = gate()
    contract = {"": ({"rows": "f32: batch seq 4", "weight!": "float: batch seq"}, {"": "batch seq out"})}
    with assert_dimensions(module, contract):
        assert distance(module(rows, weight=weight).detach(), truth) < 1e-6
        with pytest.raises(DimensionError) as caught:
            module(rows, weight=weight[:, 1:])
    assert_says(caught.value, "Gate '' input | weight | [2, 4] | seq = 5 | rows [2, 5, 4] | 1 fewer")


def test_the_shapes_of_a_plain_module_are_traced() -> None:
    """What went through, and, of a forward that raises, where and on what."""
    module, rows, weight, truth = gate()
    with trace_shapes(module) as trace:
        assert distance(module(rows, weight=weight).detach(), truth) < 1e-6
    assert [(row.path, [leaf.shape for leaf in row.outputs]) for row in trace.rows] == [
        ("", [(2, 5, 3)]),
        ("inner", [(2, 5, 3)]),
    ]
    with trace_shapes(module) as trace, pytest.raises(RuntimeError):
        module(rows[:, :, 1:], weight=weight)
    assert trace.failure is not None
    assert trace.failure.path == "inner"
    assert "(4)" in str(trace.failure) or "takes 4" in str(trace.failure)
