"""``PutPaddingLast`` on hand-made calls: what is rolled, what is not, and what comes back in its place."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import Call, HookRegistry, PutPaddingLast

DTYPES = [torch.int64, torch.int32, torch.float32, torch.bool, torch.uint8]

# A text of two tokens and one of four, padded on the left with 0.
IDS = torch.tensor([[0, 0, 7, 8], [1, 2, 3, 4]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def rolled(features: Any) -> Any:
    """Return the features that a Transformer would get."""
    call = Call(nn.Identity(), "0", (features,), {})
    PutPaddingLast().before(call)
    assert call.given_first is features
    return call.first


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_begins_at_the_first_column_and_the_mask_keeps_its_dtype(dtype: torch.dtype) -> None:
    given = {"input_ids": IDS, "attention_mask": MASK.to(dtype)}
    found = rolled(given)
    assert found["input_ids"].tolist() == [[7, 8, 0, 0], [1, 2, 3, 4]]
    assert found["attention_mask"].dtype is dtype
    assert found["attention_mask"].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert given["input_ids"] is IDS
    assert IDS.tolist() == [[0, 0, 7, 8], [1, 2, 3, 4]]


def test_right_padded_texts_come_out_as_they_were() -> None:
    ids, mask = torch.tensor([[7, 8, 0], [1, 2, 3]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = rolled({"input_ids": ids, "attention_mask": mask})
    assert torch.equal(found["input_ids"], ids)
    assert torch.equal(found["attention_mask"], mask)


def test_what_follows_the_text_keeps_its_place_behind_it() -> None:
    """A query expansion: two tokens that are read and that nothing attends to."""
    found = rolled({"input_ids": torch.tensor([[0, 7, 8, 5, 5]]), "attention_mask": torch.tensor([[0, 1, 1, 0, 0]])})
    assert found["input_ids"].tolist() == [[7, 8, 5, 5, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0, 0]]


def test_whatever_goes_by_token_is_rolled_and_nothing_else() -> None:
    """Boxes of a layout model among them; not images that have as many rows by chance, nor one number for each text."""
    boxes, image = torch.arange(16).view(2, 4, 2), torch.rand(2, 4, 4, 4)
    given = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": IDS + 1, "bbox": boxes, "pixel_values": image}
    found = rolled({**given, "prompt_length": torch.tensor([1, 2]), "task": "query", "nothing": None})
    assert found["token_type_ids"].tolist() == [[8, 9, 1, 1], [2, 3, 4, 5]]
    assert found["bbox"][0].tolist() == boxes[0].roll(-2, 0).tolist()
    assert found["pixel_values"] is image
    assert found["prompt_length"].tolist() == [1, 2]
    assert (found["task"], found["nothing"]) == ("query", None)


def test_embeddings_of_tokens_are_rolled_in_place_of_ids() -> None:
    rows = torch.arange(8.0).view(2, 4, 1)
    found = rolled({"inputs_embeds": rows, "attention_mask": MASK})
    assert found["inputs_embeds"].flatten().tolist() == [2, 3, 0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"input_ids": IDS},
        {"attention_mask": MASK},
        {"input_ids": IDS, "attention_mask": torch.ones(2, 7)},  # keys and values came before
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 4, 4)},  # a mask of pairs of tokens
        {"input_ids": torch.zeros(1, 0, dtype=torch.int64), "attention_mask": torch.zeros(1, 0)},
        {"input_ids": [[0, 7]], "attention_mask": [[0, 1]]},
    ],
)
def test_features_that_do_not_tell_where_a_text_begins_pass_unchanged(features: dict[str, Any]) -> None:
    assert rolled(features) is features


def test_a_row_that_counts_nothing_stays() -> None:
    found = rolled({"input_ids": IDS, "attention_mask": torch.zeros(2, 4)})
    assert found["input_ids"].tolist() == IDS.tolist()


class Model(nn.Module):
    """Gives back what it was given behind ``virtual`` rows, as a PeftModel does, in every kind of output."""

    def __init__(self, virtual: int, as_tuple: bool = False) -> None:
        super().__init__()
        self.virtual, self.as_tuple = virtual, as_tuple
        self.seen: dict[str, Any] = {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> Any:
        """Return one row of a token's id for each token, and all else that transformers' models return."""
        self.seen = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        ids = nn.functional.pad(input_ids, (self.virtual, 0), value=-1)
        rows = ids.unsqueeze(-1).repeat(1, 1, 3).float()
        found = {
            "last_hidden_state": rows,
            "hidden_states": (rows, rows + 1),
            "attentions": (ids[:, None, :, None] * 100 + ids[:, None, None, :],),
            "past_key_values": object(),
            "pooler_output": rows[:, 0],
            "loss": torch.tensor(1.0),
        }
        return tuple(found.values()) if self.as_tuple else found


@pytest.mark.parametrize("virtual", [0, 3])
def test_a_plain_model_gives_every_row_where_the_caller_put_it(virtual: int) -> None:
    """Hidden states and attentions; a cache in another order than the caller's mask does not come out."""
    model = Model(virtual)
    truth = model(IDS)
    with HookRegistry(model).attached(PutPaddingLast(), to=""):
        found = model(input_ids=IDS, attention_mask=MASK)
    assert model.seen["input_ids"].tolist() == [[7, 8, 0, 0], [1, 2, 3, 4]]
    assert torch.equal(found["last_hidden_state"], truth["last_hidden_state"])
    assert all(map(torch.equal, found["hidden_states"], truth["hidden_states"]))
    assert torch.equal(found["attentions"][0], truth["attentions"][0])
    assert "past_key_values" not in found
    assert torch.equal(found["pooler_output"], torch.full((2, 3), -1.0) if virtual else IDS_FIRST)
    assert found["loss"] == 1


IDS_FIRST = torch.tensor([[7.0] * 3, [1.0] * 3])


def test_a_tuple_and_arguments_by_position_are_known_by_the_forwards_own_names() -> None:
    model = Model(2, as_tuple=True)
    truth = model(IDS)
    with HookRegistry(model).attached(PutPaddingLast(), to=""):
        found = model(IDS, MASK, labels=IDS)
    assert model.seen["labels"].tolist() == model.seen["input_ids"].tolist() == [[7, 8, 0, 0], [1, 2, 3, 4]]
    assert torch.equal(found[0], truth[0])
    assert torch.equal(found[2][0], truth[2][0])
    assert found[3] is None


def test_scores_of_tokens_are_put_back_where_nothing_else_comes_out() -> None:
    """A model that answers questions gives the scores of a start and an end, and no hidden states."""

    class Answers(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            return {"start_logits": input_ids * 1.0, "end_logits": input_ids * 2.0}

    model = Answers()
    with HookRegistry(model).attached(PutPaddingLast(), to=""):
        found = model(input_ids=IDS, attention_mask=MASK)
    assert torch.equal(found["start_logits"], IDS * 1.0)
    assert torch.equal(found["end_logits"], IDS * 2.0)


@pytest.mark.parametrize("keep", [1, torch.tensor([3])])
def test_logits_of_some_columns_are_refused(keep: Any) -> None:
    """The last column of a short text was padding, in silence."""

    class Language(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, logits_to_keep: Any = 0) -> Any:
            columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            return {"logits": input_ids.unsqueeze(-1)[:, columns]}

    model = Language()
    with HookRegistry(model).attached(PutPaddingLast(), to=""):
        with pytest.raises(TypeError, match=r"logits_to_keep is given"):
            model(input_ids=IDS, attention_mask=MASK, logits_to_keep=keep)
        assert torch.equal(model(IDS, MASK, logits_to_keep=0)["logits"], IDS.unsqueeze(-1))


def test_arguments_by_position_of_a_forward_that_hides_its_names_are_refused() -> None:
    class Hidden(nn.Module):
        def forward(self, *args: Any) -> Any:
            return args[0]

    model = Hidden()
    with HookRegistry(model).attached(PutPaddingLast(), to=""), pytest.raises(TypeError, match="give them by name"):
        model(IDS, MASK)


def test_scores_are_not_rows() -> None:
    """As many labels as tokens: with ``restore=False``, as on a classifier, what comes out is left alone."""

    class Classifier(nn.Module):
        def forward(self, **kwargs: Any) -> Any:
            return {"logits": torch.arange(8.0).view(2, 4), "hidden": torch.arange(8.0).view(2, 4, 1)}

    model = Classifier()
    truth = model()
    with HookRegistry(model).attached(PutPaddingLast(restore=False), to=""):
        found = model(input_ids=IDS, attention_mask=MASK)
    assert all(torch.equal(found[key], truth[key]) for key in truth)
    with HookRegistry(model).attached(PutPaddingLast(), to=""):
        assert torch.equal(model(input_ids=IDS, attention_mask=MASK)["logits"], truth["logits"])


def test_the_hook_is_plain_data() -> None:
    assert repr(PutPaddingLast()) == "PutPaddingLast(restore=True)"
    assert vars(pickle.loads(pickle.dumps(PutPaddingLast(restore=False)))) == {"restore": False}
