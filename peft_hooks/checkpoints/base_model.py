"""Finds an adapter's base model: where it was said to be, where its folder says, or in memory."""

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

Say = Callable[[str], AbstractContextManager[None]]


def _say_nothing(what: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Reading:
    """How a model is to be read.

    Attributes:
        base: Where the base model is, or the base model itself; None: where the folder says.
        how: How a caller gives a base model, for messages: ``"base_model="``.
        adapter_name: The adapter to make active; None: the one that was.
        trainable: Whether the adapters can be trained on.
        device: Where the model goes.
        say: Says what is being done, for the length of a block.
    """

    base: Any = None
    how: str = "base_model="
    adapter_name: str | None = None
    trainable: bool = False
    device: str | None = None
    say: Say = _say_nothing


@dataclass(frozen=True)
class Base:
    """A base model: its name, and its folder or the model itself."""

    name: str
    model: Any

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Give its folder for the length of a block; a model in memory is written to a temporary one."""
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


def find_base(adapter: Path, recorded: str | None, reading: Reading) -> Base:
    """Find the base model of the adapter in a folder.

    Args:
        adapter: The folder with the adapter's config, which names the base model as PEFT knew it.
        recorded: The name in ``peft_hooks.json``, which goes before PEFT's.
        reading: Says where else it is.

    Raises:
        LoadError: If there is none, with what to give.
    """
    config = read_json(adapter / ADAPTER)
    named = recorded or config.get("base_model_name_or_path")
    if "peft_type" not in config:
        raise LoadError(f"{adapter / ADAPTER}: no peft_type in it, so it is not an adapter of PEFT")
    if isinstance(reading.base, nn.Module):
        return Base(_name_of(reading.base) or str(named), reading.base)
    if reading.base is None and not named:
        raise LoadError(f"{adapter / ADAPTER} does not name its base model: give it with {reading.how}")
    if reading.base is not None:
        return Base(str(reading.base), found(str(reading.base), reading.say))
    beside = adapter / str(named)
    try:
        return Base(str(named), beside if beside.is_dir() else found(str(named), reading.say))
    except LoadError as error:
        raise LoadError(
            f"{error} (the base model that {adapter / ADAPTER} names): give another with {reading.how}"
        ) from error


def _name_of(model: Any) -> str:
    """Return the name of a loaded base model. It must be one that can be saved, and have no adapter."""
    transformers = [transformer for _, transformer in releases.transformers_of(model)]
    backbone = releases.backbone_of(transformers[0]) if transformers else model
    if any(releases.has_adapter(t) for t in transformers) or hasattr(backbone, "active_peft_config"):
        raise LoadError("the model that was given as base_model has an adapter itself: give the base model alone")
    if not hasattr(backbone, "save_pretrained") or not hasattr(backbone, "config"):
        raise LoadError(
            f"base_model is a {type(model).__name__}: expected a folder, a name, a SentenceTransformer or a "
            f"transformers model"
        )
    return str(getattr(backbone.config, "_name_or_path", "") or "")


def found(name: str, say: Say) -> Path:
    """Return the directory of a model, downloaded from the Hub if ``name`` is none here.

    Raises:
        LoadError: If there is no such directory, and nothing could be downloaded.
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        there = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, unknown home, links in a circle
        raise LoadError(f"{name!r}: no directory with a model: {type(error).__name__}: {error}") from error
    if there or not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise LoadError(f"{name}: no directory with a model" + (", but a file" if there else ": no such path"))
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        with say(f"Looking for {name} on the Hugging Face Hub"):
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # offline, unknown, gated: each has an error of its own in each release
        first = (str(error).strip().splitlines() or [""])[0]
        raise LoadError(
            f"{name}: no such directory, and it could not be had from the Hugging Face Hub "
            f"({type(error).__name__}: {first})"
        ) from error
