"""What was changed in a saved folder since ``save`` wrote it, which ``peft_hooks.json`` tells by digests.

Configs may be changed by hand, and are judged by what the model then gives. Weights and what a tokenizer knows are not:
one text in a thousand may show it. Nor are the notes that ``save`` makes for itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import LoadError
from .folder import read_json

# Of `peft_hooks.json`: what is measured, and no one's to write. The rest may be changed as any option.
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
"""How the names end of files that may be changed by hand; those of the last two change no embedding."""

CHECKSUM = "checksum"


def checksum_of(content: Mapping[str, Any]) -> str:
    """Return the digest of what was measured when a model was saved."""
    each = [{key: one.get(key) for key in _MEASURED_OF_EACH} for one in content.get("transformers", ())]
    measured = {"transformers": each, **{key: content.get(key) for key in _MEASURED}}
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()


def refuse_changed_notes(notes: Path) -> None:
    """Raise LoadError if what was measured is not what ``save`` wrote down. Earlier saves have no checksum."""
    content = read_json(notes) if notes.is_file() else {}
    if CHECKSUM in content and content[CHECKSUM] != checksum_of(content):
        raise LoadError(
            f"{notes}: what peft_hooks.save measured was changed since: its {', '.join(_MEASURED_OF_EACH)}, "
            f"{', '.join(_MEASURED)} are no one's to write: put them back, or save the model again"
        )


def refuse_changed_weights(path: Path, notes: Path) -> None:
    """Raise LoadError if weights or a tokenizer's own files are not those that were saved."""
    changed = next((name for name in changed_files(path, notes) if not name.endswith(_BY_HAND)), None)
    if changed is not None:
        what = "was changed" if (path / changed).is_file() else "is gone"
        raise LoadError(
            f"{path / changed}: it {what} since peft_hooks.save wrote it, so the model would be another than the one "
            f"that was saved: put it back, or change the loaded model and save that"
        )


def changed_files(path: Path, notes: Path) -> Iterator[str]:
    """Yield the files that embeddings depend on and that are not as they were saved, by their paths from ``path``."""
    listed = read_json(notes).get("files") if notes.is_file() else None
    for name, digest in (listed if isinstance(listed, dict) else {}).items():
        if not name.endswith((".jinja", ".md")) and digest not in _digests_of(path / name):
            yield name


def _digests_of(file: Path) -> Iterator[str]:
    """Yield the digest of a file, and of a text that git wrote with the ends of lines of another system."""
    if not file.is_file():
        return
    content = file.read_bytes()
    yield hashlib.sha256(content).hexdigest()
    if file.suffix != ".safetensors":
        yield hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
