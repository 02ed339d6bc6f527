"""The matrix: architectures x padding sides x methods x pooling modes, each cell compared with the float64 reference.

A cell is right if one batch, each text alone, and two passes over one batch all equal the reference to 1e-4.
``python -m tests.tools.matrix`` runs every cell with and without hooks and prints how many are right: the numbers in
``examples/guides/releases.rst``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from peft_hooks import UnsupportedModelError, prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model
from peft_hooks.testing.models import make_pooling

from .methods import CACHE_METHODS, METHODS, Unavailable, put_adapter
from .reference import NoReference, reference_embedding

ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "electra",
    "albert",
    "mpnet",
    "distilbert",
    "deberta-v2",
    "modernbert",
    "t5",
)
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma3_text", "gpt2", "opt", "phi3")
POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean")
BACKBONES = [(name, side) for name in ENCODERS + DECODERS for side in ("right", "left")]
TOTAL = len(BACKBONES) * len(METHODS) * len(POOLINGS)
TASK = 1
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Cell:
    """One combination and its outcome: ``right``, ``wrong``, ``raised``, ``refused`` or ``unavailable``."""

    architecture: str
    side: str
    method: str
    pooling: str
    outcome: str
    detail: str = ""


def pipeline(transformer: Any, pooling: str | tuple[str, ...], include_prompt: bool = True) -> Any:
    """Put a Pooling after an existing Transformer."""
    from sentence_transformers import SentenceTransformer

    width = tiny_width(transformer)
    return SentenceTransformer(modules=[transformer, make_pooling(width, pooling, include_prompt)], device="cpu").eval()


def tiny_width(transformer: Any) -> int:
    backbone = getattr(transformer, "model", None) or transformer.auto_model
    return int(backbone.config.hidden_size)


@cache
def adapted(architecture: str, side: str, method: str) -> Any:
    """Build a tiny model with an adapter of ``method``, mean pooling and no hooks."""
    model = tiny_model(architecture, padding_side=side)
    put_adapter(model, method)
    return model


@cache
def references(architecture: str, side: str, method: str) -> dict[str, list[Tensor]] | None:
    """Compute every text's embedding by hand for every pooling mode; None if no embedding can be right."""
    model = adapted(architecture, side, method)
    task = TASK if method == "multitask_prompt_tuning" else None
    try:
        rows = [reference_embedding(model, text, pooling=POOLINGS, task_id=task) for text in TEXTS]
    except NoReference:
        return None
    return {mode: [row.chunk(len(POOLINGS))[number] for row in rows] for number, mode in enumerate(POOLINGS)}


def distance(model: Any, expected: list[Tensor]) -> float:
    """Return the largest difference from ``expected`` in one batch, each text alone, and two passes over one batch."""
    texts = list(TEXTS)
    batched = model.encode(texts, batch_size=len(texts), convert_to_tensor=True)
    alone = torch.stack([model.encode(text, convert_to_tensor=True) for text in texts])
    features = model.tokenize(texts)
    with torch.no_grad():
        passes = [model(features)["sentence_embedding"] for _ in range(2)]
    truth = torch.stack(expected)
    return max(float((found.double() - truth).abs().max()) for found in (batched, alone, *passes))


def measure(architecture: str, side: str, method: str, pooling: str, hooks: bool, keep: bool = False) -> Cell:
    """Run one cell; ``keep`` keeps the prompt between forwards (``share_prompt="keep"``)."""
    cell = (architecture, side, method, pooling)
    try:
        model = pipeline(adapted(architecture, side, method)[0], pooling)
    except (Unavailable, ValueError) as error:
        return Cell(*cell, "unavailable", str(error))
    expected = references(architecture, side, method)
    options: dict[str, Any] = {"task_id": TASK} if method == "multitask_prompt_tuning" else {}
    if keep:
        options["share_prompt"] = "keep"
    try:
        with prompt_mask_hooks(model, **options) if hooks else contextlib.nullcontext():
            if expected is None:
                model.encode(list(TEXTS))
                return Cell(*cell, "wrong", "gives an embedding where none can be right")
            worst = distance(model, expected[pooling])
    except UnsupportedModelError as error:
        return Cell(*cell, "refused", str(error))
    except Exception as error:
        return Cell(*cell, "raised", f"{type(error).__name__}: {error}")
    return Cell(*cell, "right" if worst <= TOLERANCE else "wrong", f"{worst:.1e}")


def cells(hooks: bool, keep: bool = False) -> Iterator[Cell]:
    """Run the whole matrix."""
    for architecture, side in BACKBONES:
        for method in METHODS:
            for pooling in POOLINGS:
                yield measure(architecture, side, method, pooling, hooks, keep)


OUTCOMES = ("right", "wrong", "raised", "refused", "unavailable")


def broken_in_peft(architecture: str, method: str) -> bool:
    """Tell whether PEFT itself raises on Gemma 3.

    0.16 and 0.17 create a cache of length zero for a sliding window (PEFT PR #2735). 0.18 and 0.19 mistake keys and
    values for layers, which runs only if there are two layers.
    """
    import peft

    version = tuple(int(part) for part in peft.__version__.split(".")[:2])
    return architecture == "gemma3_text" and method in CACHE_METHODS and (0, 16) <= version < (0, 20)


def why_not(cell: Cell) -> str | None:
    """Return why a cell with hooks is not acceptable, or None if it is right, or refused by name where it has to be."""
    outcome, parts = "right", [""]
    if cell.outcome == "unavailable":
        outcome, parts = "unavailable", [" has no "]
    elif broken_in_peft(cell.architecture, cell.method):
        outcome, parts = "refused", ["the backbone 'gemma3_text' rejects a prefix ("]
    right = cell.outcome == outcome and all(part in cell.detail for part in parts)
    return None if right else f"{cell} should be {outcome}"


def count(verbose: bool, keep: bool) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Run the matrix with and without hooks, showing a progress bar.

    Returns:
        The number of cells with each outcome, and what is wrong with the hooks.
    """
    from rich.console import Console
    from rich.progress import track

    counts: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    for hooks in (False, True):
        label = "with hooks" if hooks else "without hooks"
        found = list(track(cells(hooks, keep), label, TOTAL, console=Console(stderr=True)))
        counts[label] = {outcome: sum(cell.outcome == outcome for cell in found) for outcome in OUTCOMES}
        wrong += [reason for reason in map(why_not, found) if reason is not None] if hooks else []
        for cell in found if verbose else ():
            if cell.outcome not in ("right", "unavailable"):
                print(f"{label}: {cell}")
    return counts, wrong


def stack_name() -> str:
    """Return the name of the installed stack, also for file names: two may share a release of Sentence Transformers."""
    import sentence_transformers
    import transformers

    return f"{sentence_transformers.__version__}+{transformers.__version__}"


def in_order(stacks: Iterable[str]) -> list[str]:
    """Sort stacks by their releases."""
    return sorted(stacks, key=lambda stack: [Version(number) for number in stack.split("+")])


def labels(stacks: Iterable[str]) -> dict[str, str]:
    """Return each stack's release of Sentence Transformers, plus that of transformers where stacks share the former."""
    known = list(stacks)
    releases = [stack.partition("+")[0] for stack in known]
    long = {stack: stack.replace("+", ", transformers ") for stack in known}
    return {s: long[s] if releases.count(release) > 1 else release for s, release in zip(known, releases)}


def show(stacks: dict[str, dict[str, dict[str, int]]]) -> None:
    """Print a table of the outcomes by stack, as text for the guide to releases."""
    head = ("Sentence Transformers", "", "right", "wrong", "raised", "refused", "of")
    rows = []
    shown = labels(stacks)
    for stack in in_order(stacks):
        for label, found in stacks[stack].items():
            cells_there = TOTAL - found["unavailable"]
            name = shown[stack] if label == "without hooks" else ""
            rows.append((name, label, *(str(found[outcome]) for outcome in OUTCOMES[:-1]), str(cells_there)))
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def main() -> None:
    """Run the command line.

    Without arguments it runs the matrix and prints; ``write DIR`` also saves the counts; ``table DIR`` prints them all.
    ``--keep`` keeps the prompt between forwards, ``-v`` prints what is not right.

    Exits with what is wrong if a cell with hooks is not acceptable.
    """
    warnings.simplefilter("ignore")
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if words[:1] == ["table"]:
        show({path.stem: json.loads(path.read_text()) for path in Path(words[1]).glob("*.json")})
        return
    counts, wrong = count("-v" in sys.argv, "--keep" in sys.argv)
    if words[:1] == ["write"]:
        path = Path(words[1]) / f"{stack_name()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(counts))
    show({stack_name(): counts})
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
