"""``peft-hooks merge``: write a merged model to a folder, and compare it once more after loading it from there."""

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
        loaded: The model loaded from the folder, compared with the plain one.
        pads: Why it pads on the other side than the given model, if it does.
    """

    kind: str
    merged: Comparison
    loaded: Comparison
    pads: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-compatible data."""
        return {"kind": self.kind, "pads": self.pads, "merged": asdict(self.merged), "loaded": asdict(self.loaded)}

    def __str__(self) -> str:
        said = [f"merged: its {self.merged}", f"loaded: its {self.loaded}".replace("the hooked model", "the plain one")]
        return "\n".join([*said, *([self.pads] if self.pads else [])])


def write_merged(model: Any, path: Path, *, task_id: int | None = None, virtual_tokens: str | None = None) -> Written:
    """Merge a model into a new folder; write nothing if that fails, or if the folder would load as a different model.

    Raises:
        SaveError: If there is something at ``path``, or the model loaded from it gives a different result.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SaveError(f"{path}: something is already there: give a new or empty folder")
    found = merged(model, task_id=task_id, virtual_tokens=virtual_tokens)
    kind = type(found.model).__name__
    with _staged(path) as folder:
        found.model.save_pretrained(str(folder))
        loaded = _compared(found.model, kind, folder)
        if not loaded.equal:
            raise SaveError(f"{path}: nothing was written, because a different model would be loaded from it: {loaded}")
    return Written(kind, found.comparison, loaded, found.pads)


def _compared(model: Any, kind: str, folder: Path) -> Comparison:
    """Compare the model loaded from a folder with the one that was saved there."""
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
    """Yield a folder that becomes the one at ``path`` at the end of the block, unless it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".peft-hooks-", dir=path.parent))
    try:
        yield stage
        stage.chmod(0o755)  # a temporary folder is readable by its owner only
        if path.is_dir():
            path.rmdir()
        stage.replace(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
