"""Which checkpoints of a training were written to their end: a process may be killed while it writes one."""

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
"""What every release of the trainer writes last, so that a checkpoint without it was cut off."""

STEPS = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
"""What the trainer silently starts over if it is not there."""


def begin(checkpoint: Path) -> None:
    """Mark a checkpoint that is written anew, as a resumed run does, as one that is not whole."""
    (checkpoint / PROGRESS).unlink(missing_ok=True)


def newest_whole(folder: Path, needed: Sequence[str]) -> Path | None:
    """Return the newest checkpoint in ``folder`` that is whole, with a warning if a newer one is not; None: no other.

    Raises:
        ValueError: If there are checkpoints, and none is whole.
    """
    cut: list[str] = []
    for checkpoint in _newest_first(folder):
        reason = why_cut_off(checkpoint, needed)
        if reason is None and cut:
            warnings.warn(
                f"{'; '.join(cut)}: the training was cut off while it wrote that, so it goes on from {checkpoint}, the "
                f"newest whole checkpoint",
                stacklevel=level_of_caller(),
            )
        if reason is None:
            return checkpoint
        cut.append(f"{checkpoint}: {reason}")
    if cut:
        raise ValueError(
            f"no checkpoint in {folder} is whole, since the training was cut off while it wrote them: begin anew, "
            f"without resume_from_checkpoint\n  " + "\n  ".join(cut)
        )
    return None


def why_cut_off(checkpoint: Path, needed: Sequence[str]) -> str | None:
    """Say what is missing or damaged in a checkpoint, or None if it is whole.

    Args:
        checkpoint: The folder.
        needed: Its files, as patterns of names.
    """
    for pattern in needed:
        files = sorted(checkpoint.glob(pattern))
        if not files:
            return f"there is no {pattern} in it"
        damaged = next((file for file in files if not _is_whole(file)), None)
        if damaged is not None:
            return f"{damaged.name} is not whole"
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
    """Tell whether a file has its end, by its kind; no pickle is read."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            check_weights(file)
        else:
            return zipfile.is_zipfile(file)  # its directory is at its end
    except (LoadError, OSError, ValueError):
        return False
    return True
