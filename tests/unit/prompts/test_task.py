"""``SelectTask`` on a hand-made prompt encoder."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import HookRegistry, SelectTask

from ...tools.wording import Golden, assert_says


class Encoder(nn.Module):
    """Stands in for PEFT's ``MultitaskPromptEmbedding``: gives back what it got."""

    def __init__(self, num_tasks: int | None = 3) -> None:
        super().__init__()
        if num_tasks is not None:
            self.num_tasks = num_tasks

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return indices, task_ids


INDICES = torch.arange(4).expand(2, 4)


@pytest.mark.parametrize("how", ["by position", "by name", "with none"])
def test_the_task_is_put_in_for_every_row_however_the_encoder_is_called(how: str) -> None:
    model = Encoder()
    HookRegistry(model).attach(SelectTask(2), to="")
    indices, task_ids = {
        "by position": lambda: model(INDICES),
        "by name": lambda: model(indices=INDICES),
        "with none": lambda: model(INDICES, None),
    }[how]()
    assert indices is INDICES
    assert task_ids.dtype is torch.int64
    assert task_ids.tolist() == [2, 2]


@pytest.mark.parametrize("task_id", [None, 2, [1, 1]])
@pytest.mark.parametrize("by_name", [True, False])
def test_ids_that_the_caller_gives_win(task_id: Any, by_name: bool) -> None:
    """They were overwritten, so that all rows had one task."""
    model, given = Encoder(), torch.tensor([0, 1])
    HookRegistry(model).attach(SelectTask(task_id), to="")
    assert (model(INDICES, task_ids=given) if by_name else model(INDICES, given))[1] is given
    with pytest.raises(ValueError, match=r"task_ids has 7.* tasks 0 to 2"):
        model(INDICES, torch.tensor([0, 7]))


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_a_task_for_each_row(kind: Any) -> None:
    model, hook = Encoder(), SelectTask(kind([2, 0]))
    HookRegistry(model).attach(hook, to="")
    assert model(INDICES)[1].tolist() == [2, 0]
    assert hook.task_id == (2, 0)
    with pytest.raises(ValueError, match=r"task_id has 2 tasks.* 3 rows"):
        model(torch.arange(4).expand(3, 4))


def test_the_task_is_on_the_device_of_the_indices() -> None:
    model = Encoder()
    HookRegistry(model).attach(SelectTask(0), to="")
    assert model(INDICES.to("meta"))[1].device.type == "meta"


def test_a_task_that_the_adapter_does_not_have_is_refused_in_the_forward(golden: Golden) -> None:
    model = nn.Sequential(Encoder(num_tasks=3))
    HookRegistry(model).attach(SelectTask(3), to="0")
    with pytest.raises(ValueError, match="task_id=3") as caught:
        model(INDICES)
    golden("refusals", caught.value)
    assert_says(caught.value, "Encoder '0' | task_id=3 | tasks 0 to 2")


def test_an_encoder_that_does_not_tell_its_tasks_is_trusted() -> None:
    model = Encoder(num_tasks=None)
    HookRegistry(model).attach(SelectTask(99), to="")
    assert model(INDICES)[1].tolist() == [99, 99]


@pytest.mark.parametrize("wrong", [-1, 1.0, "0", True, [], [0, -1], [[0]]])
def test_what_is_no_task_is_refused_at_once(wrong: Any, golden: Golden) -> None:
    with pytest.raises(ValueError, match="is not a task") as caught:
        SelectTask(wrong)
    golden("refusals", caught.value)
    assert_says(caught.value, f"task_id={wrong!r} | a whole number from 0")


def test_a_forward_without_a_chosen_task_is_refused_with_the_way_out(golden: Golden) -> None:
    model = Encoder()
    HookRegistry(model).attach(SelectTask(None), to="")
    with pytest.raises(ValueError, match="needs a task") as caught:
        model(INDICES)
    golden("refusals", caught.value)
    assert_says(
        caught.value,
        "Encoder '' | a task | register_prompt_mask_hooks(model, task_id=0)",
        "`with prompt_mask_hooks(model, task_id=0)`",
    )


def test_the_innermost_block_chooses_the_task() -> None:
    model = Encoder()
    registry = HookRegistry(model)
    registry.attach(SelectTask(0), to="", name="task")
    with registry.disabled("task"), registry.attached(SelectTask(1), to=""):
        assert model(INDICES)[1].tolist() == [1, 1]
    assert model(INDICES)[1].tolist() == [0, 0]


def test_the_hook_is_written_with_its_task_and_travels_by_pickle() -> None:
    assert repr(SelectTask(1)) == "SelectTask(task_id=1)"
    assert pickle.loads(pickle.dumps(SelectTask(1))).task_id == 1
