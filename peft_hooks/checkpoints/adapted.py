"""Finds which Transformers of a saved model have adapters, which adapter is active, and on which base model."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..errors import LoadError
from ..prompts.refusals import level_of_caller
from . import manifest as _saved
from .base_model import Base, ReadOptions, find_base
from .folder import adapter_folders, refuse_links, transformer_folders
from .restore import read_config
from .staging import relative

Adapted = dict[Path, tuple[dict[str, Path], str]]
"""The Transformers' folders that have adapters: the adapters' folders by name, and the name of the active one."""


def adapted_folders(path: Path, saved: _saved.Saved, reading: ReadOptions) -> Adapted:
    """Find the Transformers that were saved as adapters."""
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
        raise LoadError(f"{folder}: it has no adapter {name!r}, only {known}")
    if not name and len(adapters) > 1 and "default" not in adapters:
        raise LoadError(f"{folder}: nothing says which of the adapters {known} was active: choose with adapter_name=")
    if not name and len(adapters) > 1:
        warnings.warn(
            f"{folder}: nothing says which of the adapters {known} was active, so 'default' is used: choose another "
            f"with adapter_name=, and save with peft_hooks.save(model, path), which records it",
            stacklevel=level_of_caller(),
        )
    return name or ("default" if "default" in adapters else next(iter(adapters)))


def base_of(folder: Path, path: Path, adapted: Adapted, saved: _saved.Saved, reading: ReadOptions) -> Base:
    """Find the base model of the Transformer that was saved in a folder, after checking its adapters."""
    adapters, active = adapted[folder]
    for adapter in adapters.values():  # report a broken adapter before looking for a base model
        read_config(adapter, reading.trainable)
    return find_base(adapters[active], saved.of(relative(folder, path)).base_model, reading)
