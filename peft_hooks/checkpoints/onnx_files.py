"""Writes the files of an export to a temporary folder until they are compared, then moves them to their places.

Only files that an export wrote are ever replaced: the graph records which files belong to it, and their digests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import SaveError
from .manifest import digest

KEY = "peft_hooks.files"
"""The key of the graph's metadata that lists the files written next to it."""


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder in ``folder`` to write to, within a block; nothing of it remains.

    Raises:
        SaveError: If no folder can be made there.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".peft_hooks.exporting-", dir=folder))
    except OSError as error:
        raise SaveError(f"{folder}: nothing can be written there: {type(error).__name__}: {error}") from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: the files are there
                parent.rmdir()


def refuse_others(folder: Path, names: list[str], graph: str, written: dict[str, str]) -> None:
    """Raise SaveError if a file is in the way that no export wrote, or that was changed since.

    Args:
        folder: Where the files will be.
        names: Their names, relative to it.
        graph: The name of the graph among them.
        written: The digests, by name, that the existing graph records for the files next to it.

    Raises:
        SaveError: If there is such a file.
    """
    for name in names:
        file = folder / name
        if not file.exists() and not file.is_symlink():
            continue
        ours = name in (graph, f"{graph}.data") and bool(written)
        if not file.is_file() or not (ours or written.get(name) == digest(file)):
            raise SaveError(
                f"{file}: it was not written by peft_hooks.export_onnx, or was changed since, and would be lost: move "
                f"it, or give another path"
            )


def put_in_place(stage: Path, folder: Path, graph: str) -> list[Path]:
    """Move the files of the stage to their places, the graph last, so that it never exists without the others."""
    names = sorted(file.relative_to(stage).as_posix() for file in stage.rglob("*") if file.is_file())
    for name in [*(name for name in names if name != graph), graph]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, target)
    return [folder / name for name in names]
