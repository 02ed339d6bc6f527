"""The table of merged models: backbones x methods x poolings x sides, each equal to the hooked one or refused by name.

``python -m tests.tools.merged`` merges every cell and prints the largest difference from the hooked model; ``-v`` adds
why a cell is refused. It fails if a cell is neither equal nor refused.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft_hooks import UnsupportedModelError, merge_and_unload, prompt_mask_hooks
from peft_hooks.testing import TEXTS

from .matrix import DECODERS, ENCODERS, TASK, adapted, pipeline, stack_name
from .methods import METHODS, Unavailable

POOLINGS = (
    ("mean", "auto"),
    ("mean", "ignore"),
    ("max", "auto"),
    ("lasttoken", "auto"),
    ("weightedmean", "auto"),
    ("cls", "auto"),
    ("cls", "pool"),
)
"""Pooling modes with a policy; the other combinations would repeat these cells."""

SIDES = ("right", "left")
TOLERANCE = 1e-5  # of components of about 1


@dataclass(frozen=True)
class Cell:
    """One combination: ``equal``, ``refused``, ``wrong``, ``raised`` or ``unavailable``."""

    backbone: str
    method: str
    pooling: str
    policy: str
    side: str
    outcome: str
    far: float = 0.0
    detail: str = ""
    turned: bool = False
    """Whether the merged model pads on the other side, because its backbone's own left padding shifts a text."""


def measure(backbone: str, method: str, pooling: str, policy: str, side: str) -> Cell:
    """Merge one model, and compare the result with the hooked one in a batch, alone and with a prompt."""
    cell = (backbone, method, pooling, policy, side)
    try:
        model = pipeline(adapted(backbone, side, method)[0], pooling)
    except (Unavailable, ValueError) as error:
        return Cell(*cell, "unavailable", detail=str(error))
    options: dict[str, Any] = {"virtual_tokens": policy}
    if method == "multitask_prompt_tuning":
        options["task_id"] = TASK
    try:
        merged = merge_and_unload(model, **options)
        with prompt_mask_hooks(model, **options):
            truth = _encoded(model)
        far = max(float(abs(one - other).max()) for one, other in zip(_encoded(merged), truth))
    except UnsupportedModelError as error:
        return Cell(*cell, "refused", detail=str(error))
    except Exception as error:
        return Cell(*cell, "raised", detail=f"{type(error).__name__}: {error}")
    turned = merged.tokenizer.padding_side != side
    return Cell(*cell, "equal" if far <= TOLERANCE else "wrong", far, turned=turned)


def _encoded(model: Any) -> list[Any]:
    texts = [*TEXTS, " ".join(TEXTS * 4)]
    together = model.encode(texts, batch_size=len(texts))
    return [together, *(model.encode(text) for text in texts), model.encode(texts, prompt="query : ")]


def cells(backbones: tuple[str, ...] = ENCODERS + DECODERS) -> Iterator[Cell]:
    """Merge every combination."""
    for backbone in backbones:
        for method in METHODS:
            for pooling, policy in POOLINGS:
                for side in SIDES:
                    yield measure(backbone, method, pooling, policy, side)


def shown(found: list[Cell]) -> str:
    """Return one entry of the table: a backbone's cells with one method, pooling and policy, on both sides."""
    entries = []
    for cell in sorted(found, key=lambda cell: SIDES.index(cell.side)):
        text = f"{cell.far:.0e}" if cell.outcome in ("equal", "wrong") else cell.outcome
        text += "*" if cell.turned else ""
        entries.append(text if cell.outcome != "wrong" else f"WRONG {text}")
    return entries[0] if len(set(entries)) == 1 else " ".join(entries)


def show(found: list[Cell]) -> None:
    """Print a table for each method: right-padded, and left-padded where that differs."""
    for method in dict.fromkeys(cell.method for cell in found):
        rows = [("", *(f"{pooling}, {policy}" for pooling, policy in POOLINGS))]
        for backbone in dict.fromkeys(cell.backbone for cell in found):
            of_row = [cell for cell in found if (cell.method, cell.backbone) == (method, backbone)]
            entries = (shown([cell for cell in of_row if (cell.pooling, cell.policy) == column]) for column in POOLINGS)
            rows.append((backbone, *entries))
        widths = [max(map(len, column)) for column in zip(*rows)]
        print(f"\n{method}")
        for row in rows:
            print("  ".join(entry.ljust(width) for entry, width in zip(row, widths)).rstrip())


def main() -> None:
    """Run all backbones, or those named; exit with what is wrong."""
    from rich.console import Console
    from rich.progress import track

    warnings.simplefilter("ignore")
    backbones = tuple(word for word in sys.argv[1:] if word != "-v") or ENCODERS + DECODERS
    total = len(backbones) * len(METHODS) * len(POOLINGS) * len(SIDES)
    found = list(track(cells(backbones), "merging", total, console=Console(stderr=True)))
    print(f"Merged models on {stack_name()}: largest difference from the hooked model, right-padded and left-padded;")
    print(
        "one for both if they are the same; * where the merged model pads on the right and the hooked one on the left"
    )
    show(found)
    counts = {
        outcome: sum(cell.outcome == outcome for cell in found) for outcome in ("equal", "refused", "unavailable")
    }
    print(f"\n{', '.join(f'{count} {outcome}' for outcome, count in counts.items())} of {total}")
    if "-v" in sys.argv:
        for cell in found:
            if cell.outcome == "refused":
                print(f"{cell.backbone} {cell.method} {cell.pooling} {cell.policy} {cell.side}: {cell.detail}")
    wrong = [cell for cell in found if cell.outcome in ("wrong", "raised")]
    if wrong:
        sys.exit("\n".join(map(str, wrong)))


if __name__ == "__main__":
    main()
