"""Unit: where keys and values are projected is found by forwards of a few tokens, whatever the modules are called."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks.prompts.prefix_places import find_places
from peft_hooks.prompts.prefix_watched import UnknownPlacesError
from peft_hooks.testing import tiny_model

from ...tools.methods import backbone_of

KEYS, VALUES = (("keys", 0, 32),), (("values", 0, 32),)


def pieces_of(architecture: str, layers: int = 2, **config: Any) -> list[tuple[str, Any, Any]]:
    """Return what was found in the backbone of a tiny model."""
    backbone = backbone_of(tiny_model(architecture, **config))
    return [(one.path, one.layers, one.pieces) for one in find_places(backbone, layers).projections]


def test_two_modules_for_each_layer() -> None:
    found = pieces_of("mpnet")
    assert [path.rpartition(".")[2] for path, _, _ in found] == ["k", "v"] * 2
    assert [layers for _, layers, _ in found] == [(0,), (0,), (1,), (1,)]
    assert [pieces for _, _, pieces in found] == [KEYS, VALUES] * 2


def test_one_layer_that_is_called_for_all() -> None:
    found = pieces_of("albert", 3, num_hidden_layers=3)
    assert [(layers, pieces) for _, layers, pieces in found] == [((0, 1, 2), KEYS), ((0, 1, 2), VALUES)]


def test_one_module_for_queries_keys_and_values() -> None:
    for architecture in ("gpt2",):
        for _, _, pieces in pieces_of(architecture):
            assert pieces == (("own", 0, 32), *KEYS, *VALUES)


def test_keys_and_values_head_by_head() -> None:
    """DeBERTa's first version: query, key and value of a head, then those of the next."""
    (_, _, pieces), _ = pieces_of("deberta", relative_attention=True, pos_att_type=["p2c", "c2p"])
    assert [source for source, _, _ in pieces] == ["own", "keys", "values"] * 4
    assert [piece for piece in pieces if piece[0] == "keys"] == [("keys", 8 * head, 8 * head + 8) for head in range(4)]


def test_heads_that_share_keys_and_values() -> None:
    for _, _, pieces in pieces_of("llama"):
        assert pieces in ((("keys", 0, 16),), (("values", 0, 16),))


@pytest.mark.parametrize(("architecture", "layers"), [("fnet", 2), ("mpnet", 3), ("mobilebert", 2)])
def test_what_has_no_keys_and_values_of_so_many_layers_is_unknown(architecture: str, layers: int) -> None:
    with pytest.raises((UnknownPlacesError, TypeError)):  # transformers 4.40: FNet takes no mask
        find_places(backbone_of(tiny_model(architecture)), layers)


class Flat(nn.Linear):
    """Gives the rows of all texts as one."""

    def forward(self, given: Tensor) -> Tensor:
        return super().forward(given).flatten(0, 1)


def test_rows_that_another_module_projects_are_not_taken_for_keys() -> None:
    backbone = backbone_of(tiny_model("distilbert"))
    for layer in backbone.transformer.layer:
        layer.attention.k_lin.__class__ = Flat
    with pytest.raises(UnknownPlacesError, match="no row for each token"):
        find_places(backbone, 2)


def test_nothing_is_left_behind() -> None:
    """No hook, no gradient, no mode, no random number."""
    backbone = backbone_of(tiny_model("distilbert")).train()
    state = torch.get_rng_state()
    with contextlib.suppress(UnknownPlacesError):
        find_places(backbone, 5)
    find_places(backbone, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in backbone.modules())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())
