"""The file ``peft_hooks.json``: ``save`` writes it next to the model, and ``load`` reads it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import LoadError
from ..prompts.plan import Options
from .changed import CHECKSUM, checksum_of
from .folder import read_json

FILE, FORMAT = "peft_hooks.json", 1


@dataclass(frozen=True)
class SavedTransformer:
    """What no file of Sentence Transformers or PEFT says about one Transformer.

    Attributes:
        folder: Its folder, relative to the model's.
        base_model: The name or path of the base model.
        active: The adapter that was active.
        padding_side: The tokenizer's padding side, which no release of transformers saves.
        fingerprint: A number made from the base model's weights, to tell when a different one is loaded.
        settings: The settings of the backbone's config that differ from the base model's.
        sample: What the base model returns for a few tokens, to tell when its weights or layers are different.
    """

    folder: str
    base_model: str | None
    active: str
    padding_side: str | None
    fingerprint: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """The whole file.

    Attributes:
        options: The options of ``register_prompt_mask_hooks``; None if the model had no hooks when it was saved.
        transformers: One entry for each Transformer that has adapters.
        truncate_dim: The model's, which Sentence Transformers does not save.
        types: The dtypes of each module's parameters and of each buffer: ``{"0": "bfloat16"}``.
        embeddings: What the whole model returns for a few texts; ``{}`` if it returned nothing.
    """

    options: dict[str, Any] | None = None
    transformers: tuple[SavedTransformer, ...] = ()
    truncate_dim: int | None = None
    types: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, Any] = field(default_factory=dict)

    def of(self, folder: str) -> SavedTransformer:
        """Return what is recorded for the Transformer that was saved in ``folder``."""
        known = {transformer.folder: transformer for transformer in self.transformers}
        return known.get(folder, SavedTransformer(folder, None, "", None))


def write_incomplete(path: Path) -> None:
    """Mark a folder as incomplete while saving; after a crash the mark stays, and the folder is never loaded."""
    (path / FILE).write_text(json.dumps({"format": FORMAT, "complete": False}), encoding="utf-8")


def write(path: Path, saved: Saved) -> None:
    """Write the file, with a list of all others; only from here on does the folder count as complete."""
    files = {
        file.relative_to(path).as_posix(): digest(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file != path / FILE
    }
    content = {"format": FORMAT, "complete": True, **asdict(saved), "files": files}
    content[CHECKSUM] = checksum_of(content)
    written = path / f"{FILE}.next"
    written.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    written.replace(path / FILE)


def digest(file: Path) -> str:
    """Return the SHA-256 digest of a file's content."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def is_whole(path: Path) -> bool:
    """Tell whether ``save`` completed a folder."""
    try:
        return read_json(path / FILE).get("complete") is True
    except LoadError:
        return False


def read(path: Path) -> Saved:
    """Read the file; without one, as after ``model.save_pretrained(path)``, nothing is known.

    Raises:
        LoadError: If it is damaged, of a later format, or says that saving was interrupted.
    """
    file = path / FILE
    if not file.is_file():
        return Saved()
    found = read_json(file)
    if found.get("format") != FORMAT:
        raise LoadError(
            f"{file}: its format is {found.get('format')!r}, but this peft_hooks reads {FORMAT}: upgrade it"
        )
    if found.get("complete") is not True:
        raise LoadError(f"{file}: saving was interrupted, so the folder is incomplete: save the model again")
    try:
        transformers = tuple(SavedTransformer(**_known(SavedTransformer, one)) for one in found["transformers"])
        saved = Saved(**{**_known(Saved, found), "transformers": transformers})
        Options(**(saved.options or {}))
        _check_kinds(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(f"{file}: damaged: {type(error).__name__}: {error}") from error
    return saved


_SIDES = ("left", "right", None)


def _check_kinds(saved: Saved) -> None:
    """Raise ValueError if a field has an impossible value."""
    nothing = type(None)
    kinds: dict[str, tuple[type, ...]] = {
        "folder": (str,),
        "base_model": (str, nothing),
        "active": (str,),
        "fingerprint": (int, float, nothing),
        "settings": (dict,),
        "sample": (dict,),
    }
    for one in saved.transformers:
        for name, kind in kinds.items():
            if not isinstance(getattr(one, name), kind):
                raise ValueError(f"its {name} is {getattr(one, name)!r}")
        if one.padding_side not in _SIDES:
            raise ValueError(f"its padding_side is {one.padding_side!r}")
    dim = saved.truncate_dim
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool) or dim < 1):
        raise ValueError(f"its truncate_dim is {dim!r}")
    for name in ("types", "embeddings"):
        if not isinstance(getattr(saved, name), dict):
            raise ValueError(f"its {name} is {getattr(saved, name)!r}")


def _known(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the file has; those with a factory are newer than the format, so they may be missing."""
    names = [each.name for each in fields(kind) if each.default_factory is MISSING or each.name in found]
    return {name: found[name] for name in names}
