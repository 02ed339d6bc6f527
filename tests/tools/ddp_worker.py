"""One of the two processes that ``test_processes`` starts: one step under DDP on its part of a batch.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.tools.ddp_worker FILE ARCHITECTURE SIDE``
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from peft_hooks import register_prompt_mask_hooks
from peft_hooks.testing import TEXTS

from .tiny import adapted


class Distance(nn.Module):
    """A loss that is a mean over texts, so that the mean over processes is that of the joined batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Any], target: Tensor) -> Tensor:
        """Return the mean squared distance of the embeddings from a target."""
        embeddings: Tensor = self.model(dict(features))["sentence_embedding"]
        return (embeddings - target).pow(2).sum(dim=1).mean()


def trained(architecture: str, side: str) -> Any:
    """Return the hooked model that every process trains."""
    model = adapted(architecture, padding_side=side)
    register_prompt_mask_hooks(model)
    return model.eval()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients by the parameters' names in the pipeline."""
    named = {name.partition("model.")[2] or name: p.grad for name, p in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in named.items() if gradient is not None}


def step(loss: nn.Module, model: Any, texts: list[str]) -> None:
    """Run one backward pass."""
    target = torch.linspace(-1, 1, model.get_sentence_embedding_dimension())
    loss(model.tokenize(texts), target).backward()


def main(file: str, architecture: str, side: str) -> None:
    """Train one step on this process's texts, and write the gradients."""
    model = trained(architecture, side)  # before the group: in one, only the first process of transformers saves
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    loss = DistributedDataParallel(Distance(model))
    step(loss, model, list(TEXTS[rank::world]))
    if rank == 0:
        torch.save({name.removeprefix("module."): value for name, value in gradients(loss).items()}, file)
    del loss  # DDP's reducer holds the group: destroying that first may never return
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
