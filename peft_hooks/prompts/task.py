"""``SelectTask``: choose the task of multitask prompt tuning in a Sentence Transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._public import public
from ..hooks.call import Call, Hook

TaskId = int | Sequence[int] | Tensor | None
"""One task for all rows, one for each row of a batch, or None if not chosen yet."""

BY_ROW = "tasks by row"
"""The key in ``call.notes`` that says whether rows of a batch may have different tasks."""


def tasks_in(task_id: Any) -> tuple[int, ...]:
    """Return the given tasks in order.

    Raises:
        ValueError: If one is negative or not a whole number, or if there are none.
    """
    given = task_id.tolist() if isinstance(task_id, Tensor) else task_id
    tasks = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not tasks or any(isinstance(task, bool) or not isinstance(task, int) or task < 0 for task in tasks):
        raise ValueError(
            f"task_id={task_id!r} is not a task: give a whole number from 0, or a list of them, one for each row"
        )
    return tasks


def plain_task(task_id: Any) -> int | tuple[int, ...] | None:
    """Return the given tasks in a form that can be compared and written to JSON."""
    if task_id is None:
        return None
    tasks = tasks_in(task_id)
    return tasks if isinstance(task_id, (list, tuple)) or bool(getattr(task_id, "ndim", 0)) else tasks[0]


@public
class SelectTask(Hook):
    """Give multitask prompt tuning its task. Goes on the adapter's prompt encoder.

    ``PeftModelForFeatureExtraction.forward`` never passes ``task_ids`` to ``get_prompt``, which raises ``task_ids
    cannot be None``. This hook adds a tensor ``int64[batch]`` with the task of every row. Task ids from the caller, as
    PEFT's other models take them, stay as they are.
    Multitask prompt tuning: https://arxiv.org/abs/2303.02861

    Args:
        task_id: Which task, from 0; or a list or tensor with one for each row of the batch. None leaves the choice to a
            block: ``prompt_mask_hooks(model, task_id=1)``.

    Raises:
        ValueError: If ``task_id`` is negative or not a whole number; or, in the forward, if no task was chosen, the
            adapter has no such task, or there are not as many tasks as rows.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, SelectTask
        >>> class Encoder(torch.nn.Module):
        ...     def forward(self, indices, task_ids=None):
        ...         return task_ids
        >>> encoder, indices = Encoder(), torch.zeros(3, 10, dtype=torch.int64)
        >>> with HookRegistry(encoder).attached(SelectTask(1), to=""):
        ...     encoder(indices), encoder(indices, torch.tensor([0, 1, 2]))
        (tensor([1, 1, 1]), tensor([0, 1, 2]))
    """

    def __init__(self, task_id: TaskId) -> None:
        self.task_id = plain_task(task_id)

    def before(self, call: Call) -> None:
        given = tasks_given(call)
        indices = call.args[0] if call.args else call.kwargs["indices"]
        rows, tasks = indices.size(0), getattr(call.module, "num_tasks", None)
        if given is not None:
            call.notes[BY_ROW] = given.dim() == 0 or given.numel() > 1
            if given.device.type == "cpu":  # on other devices reading would synchronize
                _refuse_unknown(call, given.flatten().tolist(), tasks, "task_ids has")
            return
        if self.task_id is None:
            raise ValueError(
                f"{call.where}: multitask prompt tuning needs a task: register_prompt_mask_hooks(model, task_id=0), or "
                f"for a block `with prompt_mask_hooks(model, task_id=0)`"
            )
        chosen = self.task_id if isinstance(self.task_id, tuple) else (self.task_id,)
        _refuse_unknown(call, chosen, tasks, "task_id=")
        if isinstance(self.task_id, int):
            task_ids = torch.full((rows,), self.task_id, dtype=torch.int64, device=indices.device)
        elif len(chosen) != rows:
            raise ValueError(
                f"{call.where}: task_id has {len(chosen)} tasks, and the batch has {rows} rows: give one for each row, "
                f"or one for all"
            )
        else:
            task_ids = torch.tensor(chosen, dtype=torch.int64, device=indices.device)
            call.notes[BY_ROW] = True
        call.args, call.kwargs = (indices,), {"task_ids": task_ids}


def tasks_given(call: Call) -> Any:
    """Return the task ids that the caller passes to a prompt encoder, or None."""
    return call.given_args[1] if len(call.given_args) > 1 else call.given_kwargs.get("task_ids")


def _refuse_unknown(call: Call, chosen: Sequence[int], tasks: int | None, what: str) -> None:
    wrong = [task for task in chosen if tasks is not None and not 0 <= task < tasks]
    if wrong and tasks is not None:
        raise ValueError(
            f"{call.where}: {what}{'' if what.endswith('=') else ' '}{wrong[0]}, but the adapter has the tasks 0 to "
            f"{tasks - 1}"
        )
