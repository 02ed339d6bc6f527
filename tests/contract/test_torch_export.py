"""``torch.export`` and AOTInductor: a hooked model as one program of PyTorch's, for batches and lengths of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import prompt_mask_hooks
from peft_hooks.testing import TEXTS

OTHERS = (TEXTS, TEXTS[:1], ("rain",), TEXTS[1:3], TEXTS * 3)
"""Batches of other sizes and lengths than the program is made with, and a text of one token."""


class Embed(nn.Module):
    """What someone writes who exports a model: tensors in, embeddings out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        embeddings: Tensor = self.model.forward(features)["sentence_embedding"]
        return embeddings


def tensors(model: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    given = model.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return given["input_ids"], given["attention_mask"]


def program_of(model: Any) -> Any:
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    return torch.export.export(Embed(model).eval(), tensors(model, TEXTS[:3]), dynamic_shapes=(any_size, any_size))


def far(run: Any, model: Any) -> float:
    differences = (run(*tensors(model, texts)) - Embed(model)(*tensors(model, texts)) for texts in OTHERS)
    return max(float(difference.abs().max()) for difference in differences)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "method", "side", "allowed"),
    [
        ("roberta", "prompt_tuning", "right", 0.0),
        ("bert", "prefix_tuning", "left", 0.0),
        ("llama", "prefix_tuning", "left", 0.0),
        ("llama", "prompt_tuning", "right", 1e-6),  # whose virtual tokens run once for all rows where it is no program
    ],
)
def test_a_program_is_the_hooked_model(architecture: str, method: str, side: str, allowed: float, adapted: Any) -> None:
    model = adapted(architecture, method, padding_side=side, pooling="mean")
    with prompt_mask_hooks(model), torch.no_grad():
        assert far(program_of(model).module(), model) <= allowed


@pytest.mark.slow
def test_a_compiled_package_is_the_hooked_model(tmp_path: Path, adapted: Any) -> None:
    model = adapted("bert", "prefix_tuning")
    with prompt_mask_hooks(model), torch.no_grad():
        program = program_of(model)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        assert far(torch._inductor.aoti_load_package(package), model) < 3e-6
