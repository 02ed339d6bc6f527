"""Finds the complete checkpoints of a training run: a process may be killed while it writes one."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LoadError
from ..prompts.refusals import level_of_caller
from .folder import check_weights

TRAINED = "trainable_state.safetensors"
"""Every parameter that is trained."""

PROGRESS = "trainer_state.json"
"""What every release of the trainer writes last, so a checkpoint without it is incomplete."""

STEPS = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
"""What the trainer silently starts afresh if it is missing."""


def begin(checkpoint: Path) -> None:
    """Mark a checkpoint as incomplete before it is written again, as a resumed run does."""
    (checkpoint / PROGRESS).unlink(missing_ok=True)


def newest_whole(folder: Path, needed: Sequence[str]) -> Path | None:
    """Return the newest complete checkpoint in ``folder``, with a warning if a newer one is incomplete; None if empty.

    Raises:
        ValueError: If there are checkpoints, but none is complete.
    """
    cut: list[str] = []
    for checkpoint in _newest_first(folder):
        reason = why_cut_off(checkpoint, needed)
        if reason is None and cut:
            warnings.warn(
                f"{'; '.join(cut)}: training was interrupted while writing it, so it resumes from {checkpoint}, the "
                f"newest complete checkpoint",
                stacklevel=level_of_caller(),
            )
        if reason is None:
            return checkpoint
        cut.append(f"{checkpoint}: {reason}")
    if cut:
        raise ValueError(
            f"no checkpoint in {folder} is complete: training was interrupted while writing them: start again without "
            f"resume_from_checkpoint\n  " + "\n  ".join(cut)
        )
    return None


def why_cut_off(checkpoint: Path, needed: Sequence[str]) -> str | None:
    """Return what is missing or damaged in a checkpoint, as text; None if it is complete.

    Args:
        checkpoint: The folder.
        needed: Its files, as name patterns.
    """
    for pattern in needed:
        files = sorted(checkpoint.glob(pattern))
        if not files:
            return f"it has no {pattern}"
        damaged = next((file for file in files if not _is_whole(file)), None)
        if damaged is not None:
            return f"{damaged.name} is incomplete"
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    numbered = []
    for checkpoint in folder.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
        if number and checkpoint.is_dir():
            numbered.append((int(number[1]), checkpoint))
    for _, checkpoint in sorted(numbered, reverse=True):
        yield checkpoint


def _is_whole(file: Path) -> bool:
    """Tell, by its kind, whether a file has its end; no pickle is read."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            check_weights(file)
        else:
            return zipfile.is_zipfile(file)  # the directory of a zip file is at its end
    except (LoadError, OSError, ValueError):
        return False
    return True
