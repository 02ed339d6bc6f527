"""Finds an adapter's base model: where the caller says, where the adapter's folder says, or in memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..compat import sentence_transformers as releases
from ..errors import LoadError
from .folder import ADAPTER, read_json
from .pickles import unpickle_own

Progress = Callable[[str], AbstractContextManager[None]]


def _silent(what: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class ReadOptions:
    """How to read a model.

    Attributes:
        base: The folder or name of the base model, or the base model itself; None: what the adapter's folder says.
        how: How the caller gives a base model, for messages: ``"base_model="``.
        adapter_name: The adapter to make active; None: the one that was active when the model was saved.
        trainable: Whether the adapters can be trained further.
        device: The device to put the model on.
        say: Reports what is being done, within a block.
    """

    base: Any = None
    how: str = "base_model="
    adapter_name: str | None = None
    trainable: bool = False
    device: str | None = None
    say: Progress = _silent


@dataclass(frozen=True)
class Base:
    """A base model: its name, and its folder or the model itself."""

    name: str
    model: Any

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield its folder within a block; a model in memory is written to a temporary one."""
        if isinstance(self.model, Path):
            yield self.model
            return
        with tempfile.TemporaryDirectory(prefix="peft-hooks-base-") as temporary:
            if releases.transformers_of(self.model):
                self.model.save(temporary, create_model_card=False)
                unpickle_own(Path(temporary))
            else:
                self.model.save_pretrained(temporary)
            yield Path(temporary)


def find_base(adapter: Path, recorded: str | None, reading: ReadOptions) -> Base:
    """Find the base model of the adapter in a folder.

    Args:
        adapter: The folder with the adapter's config, which names the base model as PEFT knew it.
        recorded: The name in ``peft_hooks.json``, which takes precedence over PEFT's.
        reading: Where else the base model may be.

    Raises:
        LoadError: If there is no base model; the message says what to give.
    """
    config = read_json(adapter / ADAPTER)
    named = recorded or config.get("base_model_name_or_path")
    if "peft_type" not in config:
        raise LoadError(f"{adapter / ADAPTER}: it has no peft_type, so it is not a PEFT adapter")
    if isinstance(reading.base, nn.Module):
        return Base(_name_of(reading.base) or str(named), reading.base)
    if reading.base is None and not named:
        raise LoadError(f"{adapter / ADAPTER} does not name its base model: give one with {reading.how}")
    if reading.base is not None:
        return Base(str(reading.base), resolve_directory(str(reading.base), reading.say))
    beside = adapter / str(named)
    try:
        return Base(str(named), beside if beside.is_dir() else resolve_directory(str(named), reading.say))
    except LoadError as error:
        raise LoadError(
            f"{error} (the base model that {adapter / ADAPTER} names): give another with {reading.how}"
        ) from error


def _name_of(model: Any) -> str:
    """Return the name of a loaded base model, after checking that it can be saved and has no adapter."""
    transformers = [transformer for _, transformer in releases.transformers_of(model)]
    backbone = releases.backbone_of(transformers[0]) if transformers else model
    if any(releases.has_adapter(t) for t in transformers) or hasattr(backbone, "active_peft_config"):
        raise LoadError("the model given as base_model has an adapter itself: give the base model without it")
    if not hasattr(backbone, "save_pretrained") or not hasattr(backbone, "config"):
        raise LoadError(
            f"base_model is a {type(model).__name__}: expected a folder, a name, a SentenceTransformer or a "
            f"transformers model"
        )
    return str(getattr(backbone.config, "_name_or_path", "") or "")


def resolve_directory(name: str, say: Progress) -> Path:
    """Return the directory of a model; download it from the Hub if ``name`` is not a directory.

    Raises:
        LoadError: If there is no such directory and nothing could be downloaded.
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        there = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, contains NUL, unknown home, circular links
        raise LoadError(f"{name!r}: not a model directory: {type(error).__name__}: {error}") from error
    if there or not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise LoadError(f"{name}: not a model directory, " + ("but a file" if there else "and no such path exists"))
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        with say(f"Looking for {name} on the Hugging Face Hub"):
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # offline, unknown, gated: each release has its own errors
        first = (str(error).strip().splitlines() or [""])[0]
        raise LoadError(
            f"{name}: no such directory, and it could not be downloaded from the Hugging Face Hub "
            f"({type(error).__name__}: {first})"
        ) from error
