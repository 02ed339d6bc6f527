"""``assert_dimensions``: contracts on a whole model for a block."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import DimensionError, DimensionWarning, HookError, SelectorError, assert_dimensions
from peft_hooks.testing import assert_no_hooks_left

from ...tools.wording import Golden, assert_says


class Encoder(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor, drop: int = 0) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[drop:] * mask.unsqueeze(-1)[drop:])


CONTRACTS: dict[Any, Any] = {
    "": ({"ids": "i64: batch seq", "mask": "bool: batch seq"}, {"": "batch seq 3"}),
    "layers.*": ({"": "batch seq hidden"}, {"": "batch seq hidden"}),
    "head": {"": "batch seq _"},
}


def text(batch: int = 2, seq: int = 5) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, seq, dtype=torch.int64), torch.ones(batch, seq, dtype=torch.bool)


def test_names_hold_in_all_modules_of_one_forward_and_not_in_the_next(golden: Golden) -> None:
    model = Encoder()
    with assert_dimensions(model, CONTRACTS) as registry:
        for batch, seq in ((2, 5), (3, 7), (1, 1)):
            assert model(*text(batch, seq)).shape == (batch, seq, 3)
        with pytest.raises(DimensionError) as caught:
            model(*text(4, 5), drop=1)
        assert model(*text(2, 6)).shape == (2, 6, 3)
        assert "check 1: layers.*" in registry
    golden("disagreements", caught.value)
    assert_says(caught.value, "Linear 'head' input | [3, 5, 4] | batch = 4 | ids [4, 5] | Encoder '' | 1 fewer")
    assert_no_hooks_left(model, foreign=True)


def test_a_selector_may_be_a_class_a_module_or_a_predicate(golden: Golden) -> None:
    model = Encoder()
    contracts: dict[Any, Any] = {
        nn.Embedding: ({"": "batch seq"}, {"": "batch seq 4"}),
        model.layers[0]: {"": "batch seq 4"},
        (lambda path, module: path == "head"): {"input": "batch seq 5"},
    }
    with assert_dimensions(model, contracts), pytest.raises(DimensionError) as caught:
        model(*text())
    golden("disagreements", caught.value)
    assert_says(caught.value, "Linear 'head' input | [2, 5, 4] | size = 5")


def test_to_warn_is_asked_for(golden: Golden) -> None:
    model = Encoder()
    with assert_dimensions(model, {"head": {"": "batch"}}, on_error="warn"), pytest.warns(DimensionWarning) as caught:
        assert model(*text()).shape == (2, 5, 3)
    golden("disagreements", str(caught[0].message))
    assert_says(str(caught[0].message), "Linear 'head' input | [2, 5, 4] | 1 dimension (batch)")


@pytest.mark.parametrize(
    ("contracts", "error"),
    [({"head": {"": "a-b"}}, ValueError), ({"tail": {"": "a"}}, SelectorError), (None, ValueError)],
)
def test_what_cannot_be_attached_leaves_nothing(contracts: Any, error: type[Exception]) -> None:
    model = Encoder()
    with (
        pytest.raises(error),
        assert_dimensions(model, {"layers.0": {"": "... 4"}, **contracts} if contracts else None),
    ):
        pytest.fail("the block ran")
    assert_no_hooks_left(model, foreign=True)


def test_a_model_of_no_known_modules_needs_contracts(golden: Golden) -> None:
    with pytest.raises(ValueError) as caught, assert_dimensions(Encoder()):
        pytest.fail("the block ran")
    golden("disagreements", caught.value)
    assert_says(caught.value, "Encoder | 'encoder' | 'input' | 'batch seq hidden'")


def test_a_compiled_model_is_refused() -> None:
    model = torch.compile(Encoder(), backend="eager")
    with pytest.raises(HookError, match="is compiled already"), assert_dimensions(model, {"head": {"": "a"}}):
        pytest.fail("the block ran")


def test_blocks_nest_with_names_of_their_own() -> None:
    model = Encoder()
    with assert_dimensions(model, {"head": {"": "n seq hidden"}}):
        with assert_dimensions(model, {"layers.*": {"": "batch n hidden"}}):
            assert model(*text()).shape == (2, 5, 3)
        assert model(*text()).shape == (2, 5, 3)
    assert_no_hooks_left(model, foreign=True)


# -- where a forward begins --------------------------------------------------------------------------------------------


def test_the_steps_of_a_pipeline_are_one_forward_also_when_no_one_calls_the_whole() -> None:
    """As Sentence Transformers before 5.7 does in ``encode``."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(x: Tensor, cut: int = 0) -> Tensor:
        return model[2](model[1](model[0](x))[cut:])

    with assert_dimensions(model, {"1": {"": "batch 4"}, "2": {"": "batch 4"}}):
        for batch in (3, 5, 2):
            assert len(forward(torch.zeros(batch, 4))) == batch
            assert len(model(torch.zeros(batch + 1, 4))) == batch + 1
        with pytest.raises(DimensionError, match=r"batch = 3 .*\[3, 4\] .*ReLU '1'.* 1 fewer"):
            forward(torch.zeros(3, 4), cut=1)
        assert len(model[2](torch.zeros(7, 4))) == 7  # it comes again: another forward


def test_modules_that_are_called_by_another_method_are_forwards_of_their_own() -> None:
    """Such as CLIP's ``get_text_features`` and ``get_image_features``."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(y)

    model = Two()
    with assert_dimensions(model, {"one": {"": "batch 4"}, "other": {"": "batch 4"}}):
        model.one(torch.zeros(2, 4))
        model.other(torch.zeros(3, 4))
        with pytest.raises(DimensionError, match=r"batch = 2 .*\[2, 4\] .*Linear 'one'.* 1 more"):
            model(torch.zeros(2, 4), torch.zeros(3, 4))


def test_nothing_is_warned_of_where_all_agree() -> None:
    model = Encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with assert_dimensions(model, CONTRACTS):
            model(*text())


def test_a_model_with_checks_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    model = Encoder()
    with assert_dimensions(model, CONTRACTS):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert compiled(*text()).shape == (2, 5, 3)
