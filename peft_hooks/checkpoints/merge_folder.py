"""A merged model as a folder, compared once more as it is loaded from there: what ``peft-hooks merge`` does."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..compat.cross_encoders import inputs_of, root_of
from ..errors import SaveError
from .merge_check import Comparison, Truth
from .merging import merged


class Written(NamedTuple):
    """What was written, and how far it is from the model with hooks.

    Attributes:
        kind: The class that loads it: ``"SentenceTransformer"``.
        merged: The plain model, compared with the hooked one.
        pads: Why it pads on another side than the given model, if it does.
        loaded: What was loaded from the folder, compared with the plain model.
    """

    kind: str
    merged: Comparison
    loaded: Comparison
    pads: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {"kind": self.kind, "pads": self.pads, "merged": asdict(self.merged), "loaded": asdict(self.loaded)}

    def __str__(self) -> str:
        said = [f"merged: its {self.merged}", f"loaded: its {self.loaded}".replace("the hooked model", "the plain one")]
        return "\n".join([*said, *([self.pads] if self.pads else [])])


def write_merged(model: Any, path: Path, *, task_id: int | None = None, virtual_tokens: str | None = None) -> Written:
    """Merge a model into a new folder; if that fails, or it loads as another one, there is none.

    Raises:
        SaveError: If something is at ``path``, or a model that is loaded from it gives something else.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SaveError(f"{path}: something is there: give a new or an empty folder")
    found = merged(model, task_id=task_id, virtual_tokens=virtual_tokens)
    kind = type(found.model).__name__
    with _staged(path) as folder:
        found.model.save_pretrained(str(folder))
        loaded = _compared(found.model, kind, folder)
        if not loaded.equal:
            raise SaveError(f"{path}: nothing is written, as it would be another model when it is loaded: {loaded}")
    return Written(kind, found.comparison, loaded, found.pads)


def _compared(model: Any, kind: str, folder: Path) -> Comparison:
    """Compare what is loaded from a folder with the model that was saved there."""
    import sentence_transformers

    ((_, transformer),) = inputs_of(root_of(model))
    again = getattr(sentence_transformers, kind)(str(folder), device="cpu")
    truth = Truth(model, transformer)
    former, now = root_of(model), root_of(again).eval()
    kinds = {name: parameter.dtype for name, parameter in former.named_parameters()}
    for name, parameter in now.named_parameters():  # transformers 4 reads weights as float32
        parameter.data = parameter.data.to(kinds.get(name, parameter.dtype))
    return truth.compare(again)


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """Give a folder that becomes the one at ``path`` at the end of the block, unless it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".peft-hooks-", dir=path.parent))
    try:
        yield stage
        stage.chmod(0o755)  # a temporary folder is nobody else's
        if path.is_dir():
            path.rmdir()
        stage.replace(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
