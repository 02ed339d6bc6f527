"""Reads what a model's folder contains, and refuses code, pickles, paths that leave it, and damaged files.

Nothing here loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from ..errors import LoadError

ADAPTER, MODULES, CONFIG, WEIGHTS = "adapter_config.json", "modules.json", "config.json", "adapter_model.safetensors"

STAGE = ".peft_hooks.saving"
"""Where ``save`` writes before it changes the model's own folder; a save that was killed leaves it there."""

# What tokenizers, configs, weights and model cards are saved as. Nothing else is read.
_READ = (".json", ".txt", ".model", ".safetensors", ".jinja", ".bpe", ".codes", ".spm", ".vocab", ".tiktoken", ".md")

# Configs of single modules in Sentence Transformers from which some release takes classes or options.
_ROUTERS, _ROUTER_CONFIGS = ("Router", "Asym"), ("router_config.json", "config.json")

# Modules that save no files: git and the Hub lose their empty folders.
_WITHOUT_FILES = ("Normalize", "Dropout")


class Part(NamedTuple):
    """One module of a saved model: its kind, which is the last part of its type, and its folder."""

    kind: str
    folder: Path


def read_json(file: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file.

    Raises:
        LoadError: If it is not JSON, or not of that kind.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{file}: missing, so the model is incomplete") from error
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file}: damaged: not JSON: {error}") from error
    if not isinstance(value, kind):
        raise LoadError(f"{file}: damaged: expected a {kind.__name__}, got a {type(value).__name__}")
    return value


def read_modules(path: Path) -> list[dict[str, str]]:
    """Return the modules of a Sentence Transformers model, each with its ``type`` and ``path``."""
    modules = read_json(path / MODULES, list)
    if not all(isinstance(module, dict) and {"type", "path"} <= set(module) for module in modules):
        raise LoadError(f"{path / MODULES}: every module must have a type and a path")
    return [{key: str(value) for key, value in module.items()} for module in modules]


def parts_of(path: Path) -> list[Part]:
    """Return the modules of the model at ``path`` with their folders, a Router's own after it, and check their paths.

    Raises:
        LoadError: If a module is not one of Sentence Transformers, or its folder is outside ``path``.
    """
    if not (path / MODULES).is_file():
        return [Part("Transformer", path)]
    found: list[Part] = []
    for module in read_modules(path):
        found.extend(_parts(path, path / MODULES, module["type"], module["path"]))
    return found


def _parts(at: Path, named_by: Path, kind: str, where: str) -> Iterator[Part]:
    if not kind.startswith("sentence_transformers."):
        raise LoadError(f"{named_by}: the module {kind} is not part of Sentence Transformers: its code is not run")
    if (
        PurePosixPath(where).is_absolute()
        or PureWindowsPath(where).drive
        or ".." in where.replace("\\", "/").split("/")
    ):
        raise LoadError(f"{named_by}: the path {where!r} leaves the model's folder")
    part = Part(kind.rpartition(".")[2], at / where if where else at)
    yield part
    config = next((file for name in _ROUTER_CONFIGS if (file := part.folder / name).is_file()), None)
    if part.kind in _ROUTERS and config is not None:
        types = read_json(config).get("types")
        for name, inner in (types if isinstance(types, dict) else {}).items():
            yield from _parts(part.folder, config, str(inner), str(name))


def transformer_folders(path: Path) -> list[Path]:
    """Return the folders of a model's Transformers, in the order of its modules.

    A SparseEncoder's is called ``MLMTransformer`` on the Hub and before 5.4.
    """
    return [part.folder for part in parts_of(path) if part.kind.endswith("Transformer")]


def adapter_folders(folder: Path, others: list[Path]) -> dict[str, Path]:
    """Return the PEFT adapters in a Transformer's folder, by name.

    PEFT saves the adapter ``"default"`` in the folder itself, and every other in a folder with its name.
    """
    found = {"default": folder} if (folder / ADAPTER).is_file() else {}
    for inner in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (inner / ADAPTER).is_file() and inner not in others and inner.name != STAGE:
            found[inner.name] = inner
    return found


def files_to_read(folder: Path) -> list[Path]:
    """Return the files of a folder that loading may read."""
    return [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in _READ]


def refuse_code(path: Path, links: bool = False) -> None:
    """Raise LoadError if loading the model at ``path`` would run code from it, unpickle, or leave its folder.

    With ``links``, its files may be links to anywhere.
    """
    for part in parts_of(path):
        if not links:
            refuse_links(path, part.folder)
        if part.kind not in _WITHOUT_FILES and not any(part.folder.glob("*.json")):
            raise LoadError(f"{part.folder}: the module {part.kind} has no config, so the model is incomplete")
        pickled = [file for ending in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in part.folder.glob(ending)]
        if pickled and not list(part.folder.glob("*.safetensors")):
            raise LoadError(
                f"{part.folder}: its weights are in {pickled[0].name}, which can run code: only safetensors are read"
            )
        for file in part.folder.glob("*config.json"):
            config = read_json(file, object)
            if isinstance(config, dict):
                _refuse_named_code(file, config)


def refuse_links(root: Path, folder: Path) -> None:
    """Refuse links out of the model's folder; the Hub's cache keeps its files in ``blobs``, next to ``snapshots``."""
    cached = root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir()
    home = (root.parent.parent if cached else root).resolve()
    for file in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if not file.resolve().is_relative_to(home):
            raise LoadError(f"{file}: a link that leaves the model's folder, to {file.resolve()}")


def _refuse_named_code(file: Path, config: dict[str, Any]) -> None:
    """Refuse what any release would import or trust because a module's config names it."""
    activation, tokenizer = config.get("activation_function"), config.get("tokenizer_class")
    if isinstance(activation, str) and "." in activation and not activation.startswith("torch.nn.modules."):
        raise LoadError(f"{file}: its activation function {activation} is not part of torch.nn: its code is not run")
    if isinstance(tokenizer, str) and "." in tokenizer and not tokenizer.startswith("sentence_transformers."):
        raise LoadError(f"{file}: its tokenizer {tokenizer} is not part of Sentence Transformers: its code is not run")
    options = [config, *(value for value in config.values() if isinstance(value, dict))]
    if any(option.get("trust_remote_code") for option in options):
        raise LoadError(f"{file}: it asks for trust_remote_code: a model's code is never run")


def check_weights(file: Path) -> None:
    """Raise LoadError unless ``file`` is a complete safetensors file; only its header is read."""
    from safetensors import safe_open

    if not file.is_file():
        raise LoadError(f"{file.parent}: it has no {file.name}, and nothing else is loaded")
    try:
        with safe_open(str(file), "pt") as opened:
            opened.keys()
    except Exception as error:  # SafetensorError or OSError, depending on the release
        raise LoadError(f"{file}: could not be loaded: {type(error).__name__}: {error}") from error


def check_values(file: Path) -> None:
    """Raise LoadError if a weight in a complete safetensors file is NaN or infinite."""
    from safetensors.torch import load_file

    for name, tensor in load_file(file).items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise LoadError(
                f"{file}: {name} has values that are NaN or infinite: it was saved like that, or the file was changed"
            )
