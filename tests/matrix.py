"""The matrix: architectures x padding sides x methods x pooling modes, each cell against the float64 reference.

``python -m tests.matrix`` runs every cell without hooks and with them and prints how many are right: README's numbers.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from peft_hooks import UnsupportedModelError, prompt_mask_hooks
from peft_hooks.testing import TEXTS, _pooling, tiny_model

from .methods import METHODS, Unavailable, put_adapter
from .reference import NoReference, reference_embedding

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "albert", "mpnet", "distilbert", "deberta-v2", "modernbert", "t5")
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma3_text", "gpt2", "opt", "phi3")
POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean")
BACKBONES = [(name, "right") for name in ENCODERS] + [(name, side) for name in DECODERS for side in ("right", "left")]
TASK = 1
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Cell:
    """One combination, and what came of it: ``right``, ``wrong``, ``raised``, ``refused`` or ``unavailable``."""

    architecture: str
    side: str
    method: str
    pooling: str
    outcome: str
    detail: str = ""


def pipeline(transformer: Any, pooling: str | tuple[str, ...], include_prompt: bool = True) -> Any:
    """Put a Pooling after a Transformer that is there already."""
    from sentence_transformers import SentenceTransformer

    width = tiny_width(transformer)
    return SentenceTransformer(modules=[transformer, _pooling(width, pooling, include_prompt)], device="cpu").eval()


def tiny_width(transformer: Any) -> int:
    backbone = getattr(transformer, "model", None) or transformer.auto_model
    return int(backbone.config.hidden_size)


@cache
def adapted(architecture: str, side: str, method: str) -> Any:
    """Build a tiny model with an adapter of ``method``; with mean pooling, and no hooks."""
    model = tiny_model(architecture, padding_side=side)
    put_adapter(model, method)
    return model


@cache
def references(architecture: str, side: str, method: str) -> dict[str, list[Tensor]] | None:
    """Compute every text's embedding by hand for every pooling mode, or None where no embedding can be right."""
    model = adapted(architecture, side, method)
    task = TASK if method == "multitask_prompt_tuning" else None
    try:
        rows = [reference_embedding(model, text, pooling=POOLINGS, task_id=task) for text in TEXTS]
    except NoReference:
        return None
    return {mode: [row.chunk(len(POOLINGS))[number] for row in rows] for number, mode in enumerate(POOLINGS)}


def distance(model: Any, expected: list[Tensor]) -> float:
    """Return the largest difference from ``expected`` over: one batch, each text alone, two passes over one batch."""
    texts = list(TEXTS)
    batched = model.encode(texts, batch_size=len(texts), convert_to_tensor=True)
    alone = torch.stack([model.encode(text, convert_to_tensor=True) for text in texts])
    features = model.tokenize(texts)
    with torch.no_grad():
        passes = [model(features)["sentence_embedding"] for _ in range(2)]
    truth = torch.stack(expected)
    return max(float((found.double() - truth).abs().max()) for found in (batched, alone, *passes))


def measure(architecture: str, side: str, method: str, pooling: str, hooks: bool) -> Cell:
    """Run one cell."""
    cell = (architecture, side, method, pooling)
    try:
        model = pipeline(adapted(architecture, side, method)[0], pooling)
    except (Unavailable, ValueError) as error:
        return Cell(*cell, "unavailable", str(error))
    expected = references(architecture, side, method)
    options = {"task_id": TASK} if method == "multitask_prompt_tuning" else {}
    try:
        with prompt_mask_hooks(model, **options) if hooks else contextlib.nullcontext():
            if expected is None:
                model.encode(list(TEXTS))
                return Cell(*cell, "wrong", "gives an embedding where none can be right")
            worst = distance(model, expected[pooling])
    except UnsupportedModelError as error:
        return Cell(*cell, "refused", str(error))
    except Exception as error:  # noqa: BLE001 - whatever the libraries raise is what a user sees
        return Cell(*cell, "raised", f"{type(error).__name__}: {error}")
    return Cell(*cell, "right" if worst <= TOLERANCE else "wrong", f"{worst:.1e}")


def cells(hooks: bool) -> Iterator[Cell]:
    """Run the whole matrix."""
    for architecture, side in BACKBONES:
        for method in METHODS:
            for pooling in POOLINGS:
                yield measure(architecture, side, method, pooling, hooks)


def main() -> None:
    """Print, without hooks and with them, how many cells are right."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    warnings.simplefilter("ignore")
    console = Console()
    total = len(BACKBONES) * len(METHODS) * len(POOLINGS)
    outcomes = ("right", "wrong", "raised", "refused", "unavailable")
    table = Table("", *outcomes, "of", title="embeddings against the float64 reference, to 1e-4")
    for hooks in (False, True):
        label = "with hooks" if hooks else "without hooks"
        found = list(track(cells(hooks), label, total, console=Console(stderr=True)))
        counts = Counter(cell.outcome for cell in found)
        table.add_row(label, *(str(counts[outcome]) for outcome in outcomes), str(total))
        if "-v" in sys.argv:
            for cell in found:
                if cell.outcome not in ("right", "unavailable"):
                    console.print(label, cell, highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
