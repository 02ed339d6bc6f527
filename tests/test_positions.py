"""``AlignPositions`` and ``RefuseLeftPadding`` on hand-made calls."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import AlignPositions, Call, UnsupportedModelError
from peft_hooks.prompts.positions import RefuseLeftPadding, left_padding_message

# Two virtual tokens, then the texts of three and one tokens, padded on the left.
MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]


def aligned(hook: AlignPositions | None = None, **kwargs: Any) -> dict[str, Any]:
    call = Call(nn.Identity(), "0.model.base_model", (), kwargs)
    (hook or AlignPositions()).before(call)
    assert call.given_kwargs is kwargs
    assert call.kwargs is kwargs or kwargs.get("position_ids") is None
    return call.kwargs


def test_positions_are_counted_over_what_is_not_padding() -> None:
    kwargs = aligned(inputs_embeds=torch.zeros(2, 5, 3), attention_mask=torch.tensor(MASK))
    assert kwargs["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 1, 1, 2]]


def test_a_text_has_the_same_positions_alone_and_in_a_batch() -> None:
    batch = aligned(inputs_embeds=torch.zeros(2, 5, 3), attention_mask=torch.tensor(MASK))["position_ids"]
    alone = aligned(inputs_embeds=torch.zeros(1, 3, 3), attention_mask=torch.ones(1, 3))["position_ids"]
    assert [batch[1].tolist()[i] for i in (0, 1, 4)] == alone[0].tolist()


def test_positions_start_after_a_prefix_in_the_cache() -> None:
    kwargs = aligned(input_ids=torch.zeros(2, 3, dtype=torch.int64), attention_mask=torch.tensor(MASK))
    assert kwargs["position_ids"].tolist() == [[2, 3, 4], [1, 1, 2]]


def test_positions_start_at_the_offset() -> None:
    kwargs = aligned(AlignPositions(offset=2), inputs_embeds=torch.zeros(2, 5, 3), attention_mask=torch.tensor(MASK))
    assert kwargs["position_ids"].tolist() == [[2, 3, 4, 5, 6], [2, 3, 3, 3, 4]]


def test_padding_after_the_text_counts_on_unless_nothing_reads_it() -> None:
    kwargs = {"inputs_embeds": torch.zeros(1, 4, 3), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    assert aligned(**kwargs)["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert aligned(AlignPositions(beyond=False), **kwargs)["position_ids"].tolist() == [[0, 1, 1, 1]]


def test_embeddings_tell_the_length_where_ids_are_none() -> None:
    kwargs = aligned(
        input_ids=None, inputs_embeds=torch.zeros(2, 5, 3), attention_mask=torch.tensor(MASK), position_ids=None
    )
    assert kwargs["position_ids"].shape == (2, 5)


def test_every_other_argument_is_handed_on() -> None:
    mask, embeds = torch.tensor(MASK), torch.zeros(2, 5, 3)
    kwargs = aligned(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True)
    assert kwargs["inputs_embeds"] is embeds
    assert kwargs["attention_mask"] is mask
    assert sorted(kwargs) == ["attention_mask", "inputs_embeds", "output_hidden_states", "position_ids"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"inputs_embeds": torch.zeros(2, 5, 3)},
        {"inputs_embeds": torch.zeros(2, 5, 3), "attention_mask": None},
        {"attention_mask": torch.tensor(MASK)},
        {"inputs_embeds": torch.zeros(2, 5, 3), "attention_mask": torch.ones(2, 1, 5, 5)},
        {
            "inputs_embeds": torch.zeros(2, 5, 3),
            "attention_mask": torch.tensor(MASK),
            "position_ids": torch.zeros(2, 5),
        },
    ],
    ids=["no mask", "mask is none", "no tokens", "4-d mask", "positions given"],
)
def test_the_call_is_left_alone_where_there_is_nothing_to_count_or_positions_are_given(kwargs: dict[str, Any]) -> None:
    call = Call(nn.Identity(), "", (), kwargs)
    AlignPositions().before(call)
    assert call.kwargs is kwargs


def test_positions_are_made_without_reading_a_value() -> None:
    kwargs = aligned(inputs_embeds=torch.zeros(2, 5, 3, device="meta"), attention_mask=torch.empty(2, 5, device="meta"))
    assert kwargs["position_ids"].device.type == "meta"


def test_the_hooks_are_written_with_their_options_and_travel_by_pickle() -> None:
    assert repr(AlignPositions(offset=2)) == "AlignPositions(offset=2, beyond=True)"
    assert vars(pickle.loads(pickle.dumps(AlignPositions(offset=2)))) == {"offset": 2, "beyond": True}
    assert repr(RefuseLeftPadding("it is so")) == "RefuseLeftPadding(reason='it is so')"


def transformer(padding_side: str | None) -> nn.Module:
    module = nn.Identity()
    if padding_side is not None:
        module.tokenizer = SimpleNamespace(padding_side=padding_side)  # type: ignore[assignment]
    return module


def test_left_padding_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        RefuseLeftPadding("T5 biases attention by distance").before(Call(transformer("left"), "0", ({},), {}))
    assert str(caught.value) == (
        "Identity '0': the tokenizer pads on the left, and T5 biases "
        "attention by distance, so that an embedding would depend on its batch: set "
        '`model.tokenizer.padding_side = "right"`'
    )
    assert str(caught.value) == left_padding_message("Identity '0'", "T5 biases attention by distance")


@pytest.mark.parametrize("padding_side", ["right", None])
def test_right_padding_and_a_module_without_a_tokenizer_pass(padding_side: str | None) -> None:
    RefuseLeftPadding("any").before(Call(transformer(padding_side), "0", ({},), {}))
