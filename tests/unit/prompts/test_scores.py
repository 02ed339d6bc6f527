"""The hooks of a classifier's head, alone on hand-made tensors."""

from __future__ import annotations

import contextlib
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from peft_hooks import HookRegistry
from peft_hooks.prompts.classifier import PutTextLast, ReadText
from peft_hooks.prompts.text import NoteText


class Layers(nn.Module):
    """Puts two rows in front, as PEFT does, and returns them in the given form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, rows: Tensor) -> Any:
        """Return the rows with two of minus one before them."""
        wide = torch.cat([rows.new_full((len(rows), 2, rows.size(2)), -1.0), rows], dim=1)
        return (wide, "more") if self.form == "tuple" else BaseModelOutput(last_hidden_state=wide)


class Classifier(nn.Module):
    """Scores position 0."""

    def __init__(self, form: str = "tuple", error: BaseException | None = None) -> None:
        super().__init__()
        self.layers, self.error = Layers(form), error

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the first row that the layers give."""
        if self.error is not None:
            raise self.error
        output = self.layers(input_ids.unsqueeze(-1).float())
        first: Tensor = output[0][:, 0, 0]
        return first


def hooked(model: Classifier) -> HookRegistry:
    """Attach both hooks."""
    registry = HookRegistry(model)
    registry.attach(NoteText(), to="")
    registry.attach(ReadText(), to="layers")
    return registry


IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])


@pytest.mark.parametrize("form", ["tuple", "output"])
def test_the_head_reads_the_texts_first_row(form: str) -> None:
    """Rows before the text are cut off, in a tuple and in an output of transformers."""
    model = Classifier(form)
    registry = hooked(model)
    assert model(input_ids=IDS).tolist() == [5, 8]
    registry.clear()
    assert model(input_ids=IDS).tolist() == [-1, -1]


@pytest.mark.parametrize("error", [KeyError("gone"), KeyboardInterrupt()])
def test_outside_of_a_forward_nothing_is_cut(error: BaseException) -> None:
    """The length holds while the classifier runs, also when it raised or was interrupted, and in its own thread.

    PyTorch runs no forward hook after a KeyboardInterrupt.
    """
    model = Classifier(error=error)
    hooked(model)
    with pytest.raises(type(error)):
        model(input_ids=IDS)
    rows = torch.ones(1, 3, 1)
    assert model.layers(rows)[0].size(1) == 5
    model.error = None
    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda ids=IDS[:, : n + 1]: found.append(model(ids).tolist())) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[-1, -1]] * 3  # ids given by position are no features: not known, so not cut


def test_a_classifier_that_asks_another_on_its_way_goes_on_with_its_own_length() -> None:
    """Whether the other scores or raises."""
    outer, inner = Classifier(), Classifier()
    hooked(outer)
    hooked(inner)
    asked: list[list[float]] = []

    def ask(*_: Any) -> None:
        with contextlib.suppress(KeyError):
            asked.append(inner(input_ids=IDS[:, :1]).tolist())

    outer.layers.register_forward_pre_hook(ask)
    assert outer(input_ids=IDS).tolist() == [5, 8]
    inner.error = KeyError("gone")
    assert outer(input_ids=IDS).tolist() == [5, 8]
    assert asked == [[5, 8]]


def test_no_row_more_than_the_text_is_left_alone() -> None:
    """A prefix in the cache, LoRA and a switched-off adapter add no rows: the very output comes back."""
    model = nn.Sequential(nn.Identity())
    registry = HookRegistry(model)
    registry.attach(ReadText(), to="0")
    rows = (torch.ones(1, 3, 1),)
    assert model(rows) is rows


def test_hooks_pickle() -> None:
    """They hold nothing."""
    for hook in (NoteText(), ReadText(), PutTextLast()):
        assert vars(pickle.loads(pickle.dumps(hook))) == vars(hook)


class Rows(nn.Module):
    """Returns the rows that it was given, as layers without a head do."""

    def forward(self, **kwargs: Any) -> Any:
        """Return the rows first."""
        return kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else kwargs["input_ids"].unsqueeze(-1), "more"


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 0, 0], [3, 4, 0, 1, 2]),
        ([1, 1, 1, 1, 1], [0, 1, 2, 3, 4]),
        ([1, 0, 0, 0, 0], [1, 2, 3, 4, 0]),
        ([0, 0, 0, 0, 0], [0, 1, 2, 3, 4]),
    ],
)
def test_a_text_ends_at_the_last_row(mask: list[int], expected: list[int], dtype: torch.dtype) -> None:
    """In its order; the rows that came are left as they were."""
    model = Rows()
    rows, given = torch.arange(5.0).view(1, 5, 1), torch.tensor([mask]).to(dtype)
    with HookRegistry(model).attached(PutTextLast(), to=""):
        found = model(inputs_embeds=rows, attention_mask=given)
    assert found[0].flatten().tolist() == expected
    assert found[1] == "more"
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"input_ids": IDS, "attention_mask": torch.ones(2, 3)},
        {"inputs_embeds": torch.ones(2, 3, 1)},
        {"inputs_embeds": torch.ones(2, 3, 1), "attention_mask": torch.ones(2, 5)},
    ],
)
def test_what_is_no_prompt_is_left_alone(kwargs: dict[str, Any]) -> None:
    """Ids, by which a head finds the padding, embeddings with no mask, a mask that counts a cache."""
    model = Rows()
    truth = model(**kwargs)
    with HookRegistry(model).attached(PutTextLast(), to=""):
        assert torch.equal(model(**kwargs)[0], truth[0])
