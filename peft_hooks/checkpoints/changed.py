"""Finds what changed in a saved folder since ``save`` wrote it, by the digests in ``peft_hooks.json``.

Configs may be edited by hand; the embeddings of the loaded model tell whether that matters. Weights and a tokenizer's
own files may not: perhaps one text in a thousand shows the change. Nor may what ``save`` measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import LoadError
from .folder import read_json

# What `save` measured and recorded in `peft_hooks.json`, not to be edited. The rest may be changed like any option.
_MEASURED = ("types", "embeddings", "files")
_MEASURED_OF_EACH = ("fingerprint", "settings", "sample")

_BY_HAND = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "special_tokens_map.json",
    ".jinja",
    ".md",
)
"""Endings of file names that may be changed by hand; those of the last two do not affect embeddings."""

CHECKSUM = "checksum"


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the digest of what was measured when the model was saved."""
    each = [{key: one.get(key) for key in _MEASURED_OF_EACH} for one in content.get("transformers", ())]
    measured = {"transformers": each, **{key: content.get(key) for key in _MEASURED}}
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()


def refuse_changed_notes(notes: Path) -> None:
    """Raise LoadError if the recorded measurements are not what ``save`` wrote. Early saves have no checksum."""
    content = read_json(notes) if notes.is_file() else {}
    if CHECKSUM in content and content[CHECKSUM] != checksum_of(content):
        raise LoadError(
            f"{notes}: what peft_hooks.save measured was changed since: its {', '.join(_MEASURED_OF_EACH)}, "
            f"{', '.join(_MEASURED)} must not be edited: restore them, or save the model again"
        )


def refuse_changed_weights(path: Path, notes: Path) -> None:
    """Raise LoadError if the weights or a tokenizer's own files are not those that were saved."""
    changed = next((name for name in changed_files(path, notes) if not name.endswith(_BY_HAND)), None)
    if changed is not None:
        what = "was changed" if (path / changed).is_file() else "is gone"
        raise LoadError(
            f"{path / changed}: it {what} since peft_hooks.save wrote it, so the model would differ from the one that "
            f"was saved: restore it, or change the loaded model and save that"
        )


def changed_files(path: Path, notes: Path) -> Iterator[str]:
    """Yield the paths, relative to ``path``, of changed or missing files that affect embeddings."""
    listed = read_json(notes).get("files") if notes.is_file() else None
    for name, digest in (listed if isinstance(listed, dict) else {}).items():
        if not name.endswith((".jinja", ".md")) and digest not in _digests_of(path / name):
            yield name


def _digests_of(file: Path) -> Iterator[str]:
    """Yield the digest of a file, and for a text file also the digest with the line endings that git may change."""
    if not file.is_file():
        return
    content = file.read_bytes()
    yield hashlib.sha256(content).hexdigest()
    if file.suffix != ".safetensors":
        yield hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
