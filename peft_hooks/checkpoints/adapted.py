"""Which Transformers of a saved model are adapters, which of these is active, and on which base model."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..errors import LoadError
from ..prompts.refusals import level_of_caller
from . import manifest as _saved
from .base_model import Base, Reading, find_base
from .folder import adapter_folders, refuse_links, transformer_folders
from .restore import read_config
from .staging import relative

Adapted = dict[Path, tuple[dict[str, Path], str]]
"""The Transformers' folders that have adapters: the adapters' folders by name, and which one is active."""


def adapted_folders(path: Path, saved: _saved.Saved, reading: Reading) -> Adapted:
    """Find the Transformers that are saved as adapters."""
    folders, adapted = transformer_folders(path), {}
    for folder in folders:
        adapters = adapter_folders(folder, folders)
        for at in adapters.values():
            refuse_links(path, at)
        if adapters:
            active = reading.adapter_name or saved.of(relative(folder, path)).active
            adapted[folder] = (adapters, _active(folder, adapters, active))
    return adapted


def _active(folder: Path, adapters: dict[str, Path], name: str) -> str:
    known = ", ".join(map(repr, adapters))
    if name and name not in adapters:
        raise LoadError(f"{folder}: there is no adapter {name!r} in it, only {known}")
    if not name and len(adapters) > 1 and "default" not in adapters:
        raise LoadError(f"{folder}: nothing says which of the adapters {known} was active: give it with adapter_name=")
    if not name and len(adapters) > 1:
        warnings.warn(
            f"{folder}: nothing says which of the adapters {known} was active, so it is 'default': give another with "
            f"adapter_name=, and save with peft_hooks.save(model, path), which writes it down",
            stacklevel=level_of_caller(),
        )
    return name or ("default" if "default" in adapters else next(iter(adapters)))


def base_of(folder: Path, path: Path, adapted: Adapted, saved: _saved.Saved, reading: Reading) -> Base:
    """Find the base model of the Transformer that is saved in a folder, after a look at its adapters."""
    adapters, active = adapted[folder]
    for adapter in adapters.values():  # what is wrong with an adapter is told before a base model is looked for
        read_config(adapter, reading.trainable)
    return find_base(adapters[active], saved.of(relative(folder, path)).base_model, reading)
