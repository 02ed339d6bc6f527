"""``SelectTask``: multitask prompt tuning in a Sentence Transformers model."""

from __future__ import annotations

import torch

from .._public import public
from ..hooks.call import Call, Hook


@public
class SelectTask(Hook):
    """Give multitask prompt tuning its task. Goes on the adapter's prompt encoder.

    ``PeftModelForFeatureExtraction.forward`` never hands ``task_ids`` to ``get_prompt``, which raises ``task_ids
    cannot be None``. This hook puts in a tensor ``int64[batch]`` that names the task for every row.
    Multitask prompt tuning: https://arxiv.org/abs/2303.02861

    Args:
        task_id: Which task, from 0. None means that a block will choose: ``prompt_mask_hooks(model, task_id=1)``.

    Raises:
        ValueError: If ``task_id`` is negative or not a whole number, or, in the forward, if no task was chosen or the
            adapter has no such task.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, SelectTask
        >>> class Encoder(torch.nn.Module):
        ...     def forward(self, indices, task_ids=None):
        ...         return task_ids
        >>> encoder = Encoder()
        >>> with HookRegistry(encoder).attached(SelectTask(1), to=""):
        ...     encoder(torch.zeros(3, 10, dtype=torch.int64))
        tensor([1, 1, 1])
    """

    def __init__(self, task_id: int | None) -> None:
        if task_id is not None and (isinstance(task_id, bool) or not isinstance(task_id, int) or task_id < 0):
            raise ValueError(f"task_id={task_id!r} is not a task: give a whole number from 0")
        self.task_id = task_id

    def before(self, call: Call) -> None:
        if self.task_id is None:
            raise ValueError(
                f"{call.where}: multitask prompt tuning needs a task: register_prompt_mask_hooks(model, task_id=0), or "
                f"for a block `with prompt_mask_hooks(model, task_id=0)`"
            )
        tasks = getattr(call.module, "num_tasks", None)
        if tasks is not None and self.task_id >= tasks:
            raise ValueError(f"{call.where}: task_id={self.task_id}, but the adapter has the tasks 0 to {tasks - 1}")
        indices = call.args[0] if call.args else call.kwargs["indices"]
        task_ids = torch.full((indices.size(0),), self.task_id, dtype=torch.int64, device=indices.device)
        call.args, call.kwargs = (indices,), {"task_ids": task_ids}
