"""The temporary folder that a saved model is loaded from: its own modules and settings with the base's weights."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import LoadError
from .base_model import Base
from .changed import refuse_changed_notes
from .checked import check_part
from .folder import (
    ADAPTER,
    CONFIG,
    check_values,
    check_weights,
    files_to_read,
    parts_of,
    read_json,
    refuse_code,
    transformer_folders,
)
from .manifest import FILE, Saved
from .pickles import pickle_where_needed
from .settings import change_settings


def check_folder(path: Path, links: bool = False) -> None:
    """Raise LoadError if the model at ``path`` would run code, or has damaged weights or links that leave it.

    A base model may have ``links``: its owner put it there, and only safetensors and JSON are read from it.
    """
    refuse_code(path, links)
    for part in parts_of(path):
        for file in part.folder.glob("*.safetensors"):
            check_weights(file)
            if not links:  # a base model's are large, and not part of the saved model
                check_values(file)
        if not links:
            check_part(part)


def relative(folder: Path, path: Path) -> str:
    """Return a module's folder relative to the model's, as in ``peft_hooks.json``: ``""`` for the model's own."""
    return "" if folder == path else folder.relative_to(path).as_posix()


@contextlib.contextmanager
def merged(path: Path, bases: dict[Path, Base], saved: Saved) -> Iterator[Path]:
    """Yield a folder within a block: the model at ``path``, with the base's weights in its Transformers."""
    with tempfile.TemporaryDirectory(prefix="peft-hooks-") as temporary, contextlib.ExitStack() as open_bases:
        whole = Path(temporary) / "model"
        for folder in dict.fromkeys([path, *(part.folder for part in parts_of(path))]):
            files = files_to_read(folder) if folder.is_dir() else []
            if folder in bases:  # weights and config left by an earlier model are not the base's
                files = [file for file in files if file.suffix != ".safetensors" and file.name not in (CONFIG, ADAPTER)]
                files += _weights_of(open_bases.enter_context(bases[folder].on_disk()))
            to = whole / relative(folder, path)
            to.mkdir(parents=True, exist_ok=True)
            for file in files:
                _link(file.resolve(), to / file.name)
            if folder in bases:
                change_settings(to, saved.of(relative(folder, path)).settings, path / FILE)
            else:
                pickle_where_needed(to)
        refuse_changed_notes(path / FILE)
        yield whole


def _weights_of(base: Path) -> list[Path]:
    """Return the files of a base model's config and weights."""
    check_folder(base, links=True)
    folder = transformer_folders(base)[0]
    read_json(folder / CONFIG)
    weights = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith("adapter_")]
    if not weights:
        raise LoadError(f"{folder}: the base model has no weights here, no *.safetensors")
    return [folder / CONFIG, *weights, *folder.glob("*.safetensors.index.json")]


def _link(file: Path, to: Path) -> None:
    try:
        to.symlink_to(file)
    except OSError:  # Windows without permission to make links
        shutil.copyfile(file, to)
