"""Puts a saved model in the place of an earlier one. Only files that ``save`` wrote are ever replaced or removed.

Everything is first written to a folder inside the target, the stage, so that no directory is ever renamed over: the
target may be a mount point or the working directory. Once the stage is complete, its files are moved to their places
one by one; a process killed during that leaves the stage, which ``load`` reads and the next ``save`` removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import LoadError, SaveError
from . import earlier
from . import manifest as _saved
from .folder import STAGE, read_json


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a folder to write to; at the end of the block its files are in ``target``, or none if it raises.

    Raises:
        SaveError: If there is anything in ``target`` that ``save`` did not write.
    """
    own_files(target)
    made, stage = not target.exists(), target / STAGE
    _make(target)
    with _alone_in(target):
        try:
            shutil.rmtree(stage, ignore_errors=True)  # left by a save that was killed
            _make(stage)
            yield stage
            former = own_files(target)  # again: another process may have written meanwhile
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):  # no longer empty
                    target.rmdir()
            raise
        _put_in_place(stage, target, former)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"{folder}: no folder can be made there: {type(error).__name__}: {error}") from error


def whole_folder(path: Path) -> Path:
    """Return the folder in which the model at ``path`` is complete: the stage, if a save was killed in its last step.

    Raises:
        LoadError: If something else was written at ``path`` since.
    """
    stage = path / STAGE
    if not _saved.is_whole(stage):
        return path
    try:
        own_files(path)
    except SaveError as error:
        raise LoadError(
            f"{path}: saving was interrupted, and the folder was changed since: load {stage}, which has everything "
            f"that was saved, or remove that folder ({error})"
        ) from error
    return stage


def own_files(target: Path) -> set[str]:
    """Return the files in ``target``, if any, by their relative paths: ``save`` wrote all of them.

    Raises:
        SaveError: If there is a file that it did not write, or that was changed since.
    """
    if target.exists() and not target.is_dir():
        raise SaveError(f"{target}: this is a file: give a folder")
    known, found = _written(target), set()
    for name in _files_in(target):
        if name not in known:
            raise SaveError(
                f"{target}: {name} in it was not written by peft_hooks.save, which replaces nothing else: give a new "
                f"or empty folder"
            )
        file = target / name
        if file.is_symlink() or not file.is_file() or not known[name] & {earlier.ANY, _saved.digest(file)}:
            raise SaveError(
                f"{target}: {name} in it was changed since peft_hooks.save wrote it and would be lost: move it, or "
                f"give another folder"
            )
        found.add(name)
    return found


def _files_in(folder: Path) -> Iterator[str]:
    """Yield everything that is not a directory, by its path relative to ``folder``; links are not followed."""
    for root, inner, files in os.walk(folder):
        at = Path(root)
        links = [name for name in inner if (at / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (at / name).relative_to(folder).as_posix()
        inner[:] = sorted(name for name in inner if at != folder or name != STAGE)


def _written(folder: Path) -> dict[str, set[str]]:
    """Return the files that ``save`` wrote in ``folder``, with the digests that they may have.

    If a save was killed while moving its files to their places, its stage lists them.
    """
    found: dict[str, set[str]] = {}
    for at in (folder, folder / STAGE):
        if not _saved.is_whole(at):
            continue
        listed = read_json(at / _saved.FILE).get("files")
        for name, digest in (listed if isinstance(listed, dict) else earlier.files(at)).items():
            found.setdefault(name, set()).add(str(digest))
        found[_saved.FILE] = {earlier.ANY}
    return found


def _put_in_place(stage: Path, target: Path, former: set[str]) -> None:
    """Replace the files of the former model; the stage holds the whole new one until all are in their places."""
    new = set(_files_in(stage))
    for name in sorted(new - {_saved.FILE}):
        _put(stage, name, target)
    for name in sorted(former - new):
        (target / name).unlink()
        with contextlib.suppress(OSError):  # not empty
            (target / name).parent.rmdir()
    _put(stage, _saved.FILE, target)
    (stage / _saved.FILE).unlink()
    shutil.rmtree(stage, ignore_errors=True)


def _put(stage: Path, name: str, target: Path) -> None:
    copied, to = stage / f"{STAGE}.next", target / name
    try:
        os.link(stage / name, copied)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(stage / name, copied)
    to.parent.mkdir(parents=True, exist_ok=True)
    copied.replace(to)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process saves to ``folder``: in a distributed run each may call ``save``."""
    opened = None
    try:
        import fcntl

        opened = os.open(folder, os.O_RDONLY)
        fcntl.flock(opened, fcntl.LOCK_EX)
    except (ImportError, OSError):  # Windows, and some network filesystems, cannot lock a directory
        pass
    try:
        yield
    finally:
        if opened is not None:
            os.close(opened)
