"""Multitask prompt tuning with a task for each row: right in every row, whatever is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_hooks import prompt_mask_hooks, register_prompt_mask_hooks

from ..tools.checks import TEXTS, distance

TASKS = [0, 2, 1, 1, 0, 2]


def features_of(model: Any) -> dict[str, Any]:
    texts = list(TEXTS)
    return dict((model.preprocess if hasattr(model, "preprocess") else model.tokenize)(texts))


def embedded(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(features_of(model))["sentence_embedding"])


@pytest.mark.parametrize("share", ["auto", False])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_every_row_has_its_own_task(architecture: str, share: Any, adapted: Any) -> None:
    model = adapted(architecture, "multitask_prompt_tuning", padding_side="left")
    register_prompt_mask_hooks(model, share_prompt=share)
    single = []
    for task in range(3):
        with prompt_mask_hooks(model, task_id=task):
            single.append(embedded(model))
    assert distance(single[0], single[1]) > 1e-3
    truth = torch.stack([single[task][row] for row, task in enumerate(TASKS)])
    for given in (TASKS, tuple(TASKS), torch.tensor(TASKS)):
        with prompt_mask_hooks(model, task_id=given) as handle:
            assert distance(embedded(model), truth) < 1e-5
            assert handle.options.task_id == tuple(TASKS)


def test_a_task_that_is_none_of_the_adapters_is_refused_before_any_forward(adapted: Any) -> None:
    model = adapted("bert", "multitask_prompt_tuning")
    with pytest.raises(ValueError, match="but the adapter has the tasks 0 to 2"):
        register_prompt_mask_hooks(model, task_id=[0, 3])
