"""What a model's folder holds, and what in it is refused: code, pickles, paths that leave it, damaged files.

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
"""Where ``save`` writes before anything in the model's own folder changes; a save that was killed leaves it there."""

# What a tokenizer, a config, weights or a model card are saved as. Nothing else is read, whatever is there.
_READ = (".json", ".txt", ".model", ".safetensors", ".jinja", ".bpe", ".codes", ".spm", ".vocab", ".tiktoken", ".md")

# Sentence Transformers' configs of single modules, where a release or another takes classes or options from.
_ROUTERS, _ROUTER_CONFIGS = ("Router", "Asym"), ("router_config.json", "config.json")

# Modules that have nothing to save; an empty folder is lost in git and on the Hub.
_WITHOUT_FILES = ("Normalize", "Dropout")


class Part(NamedTuple):
    """One module of a saved model: what it is by the last part of its type, and where it is saved."""

    kind: str
    folder: Path


def read_json(file: Path, kind: type = dict) -> Any:
    """Return what a JSON file holds.

    Raises:
        LoadError: If it is no JSON, or not of that kind.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{file}: it is missing, so the model is incomplete") from error
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file}: damaged, not JSON: {error}") from error
    if not isinstance(value, kind):
        raise LoadError(f"{file}: damaged: expected a {kind.__name__}, got a {type(value).__name__}")
    return value


def read_modules(path: Path) -> list[dict[str, str]]:
    """Return the modules of a Sentence Transformers model: each with its ``type`` and ``path``."""
    modules = read_json(path / MODULES, list)
    if not all(isinstance(module, dict) and {"type", "path"} <= set(module) for module in modules):
        raise LoadError(f"{path / MODULES}: every module must have a type and a path")
    return [{key: str(value) for key, value in module.items()} for module in modules]


def parts_of(path: Path) -> list[Part]:
    """Return the modules of the model at ``path`` with their folders, a Router's own after it; checks what they name.

    Raises:
        LoadError: If a module is not of Sentence Transformers, or its folder is outside of ``path``.
    """
    if not (path / MODULES).is_file():
        return [Part("Transformer", path)]
    found: list[Part] = []
    for module in read_modules(path):
        found.extend(_parts(path, path / MODULES, module["type"], module["path"]))
    return found


def _parts(at: Path, named_by: Path, kind: str, where: str) -> Iterator[Part]:
    if not kind.startswith("sentence_transformers."):
        raise LoadError(f"{named_by}: its module {kind} is not of Sentence Transformers: no code of it is run")
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
    """Return where the Transformers of a model are saved, in the order in which its modules have them.

    A SparseEncoder's is an ``MLMTransformer`` on the Hub and before 5.4.
    """
    return [part.folder for part in parts_of(path) if part.kind.endswith("Transformer")]


def adapter_folders(folder: Path, others: list[Path]) -> dict[str, Path]:
    """Return the PEFT adapters that are saved in a Transformer's folder, by name.

    PEFT saves the adapter ``"default"`` in the folder itself, every other in a folder of its name.
    """
    found = {"default": folder} if (folder / ADAPTER).is_file() else {}
    for inner in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (inner / ADAPTER).is_file() and inner not in others and inner.name != STAGE:
            found[inner.name] = inner
    return found


def files_to_read(folder: Path) -> list[Path]:
    """Return the files of one folder that loading may read."""
    return [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in _READ]


def refuse_code(path: Path, links: bool = False) -> None:
    """Raise LoadError if loading the model at ``path`` would run code of its own, unpickle, or leave its folder.

    With ``links``, its files may be links to anywhere.
    """
    for part in parts_of(path):
        if not links:
            refuse_links(path, part.folder)
        if part.kind not in _WITHOUT_FILES and not any(part.folder.glob("*.json")):
            raise LoadError(f"{part.folder}: there is no config of the module {part.kind}, so the model is incomplete")
        pickled = [file for ending in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in part.folder.glob(ending)]
        if pickled and not list(part.folder.glob("*.safetensors")):
            raise LoadError(
                f"{part.folder}: weights are in {pickled[0].name}, which can run code: only safetensors are read"
            )
        for file in part.folder.glob("*config.json"):
            config = read_json(file, object)
            if isinstance(config, dict):
                _refuse_named_code(file, config)


def refuse_links(root: Path, folder: Path) -> None:
    """Refuse links out of the model's folder; the Hub's cache has its files in ``blobs``, beside ``snapshots``."""
    cached = root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir()
    home = (root.parent.parent if cached else root).resolve()
    for file in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if not file.resolve().is_relative_to(home):
            raise LoadError(f"{file}: a link that leaves the model's folder, to {file.resolve()}")


def _refuse_named_code(file: Path, config: dict[str, Any]) -> None:
    """Refuse what some release would import, or trust, because a module's config says so."""
    activation, tokenizer = config.get("activation_function"), config.get("tokenizer_class")
    if isinstance(activation, str) and "." in activation and not activation.startswith("torch.nn.modules."):
        raise LoadError(f"{file}: its activation function {activation} is not of torch.nn: no code of it is run")
    if isinstance(tokenizer, str) and "." in tokenizer and not tokenizer.startswith("sentence_transformers."):
        raise LoadError(f"{file}: its tokenizer {tokenizer} is not of Sentence Transformers: no code of it is run")
    options = [config, *(value for value in config.values() if isinstance(value, dict))]
    if any(option.get("trust_remote_code") for option in options):
        raise LoadError(f"{file}: it asks for trust_remote_code: no code of a model is run")


def check_weights(file: Path) -> None:
    """Raise LoadError unless ``file`` is a whole safetensors file; only its header is read."""
    from safetensors import safe_open

    if not file.is_file():
        raise LoadError(f"{file.parent}: there is no {file.name} in it, and nothing else is loaded")
    try:
        with safe_open(str(file), "pt") as opened:
            opened.keys()
    except Exception as error:  # SafetensorError, OSError: each release has its own
        raise LoadError(f"{file}: could not be loaded: {type(error).__name__}: {error}") from error


def check_values(file: Path) -> None:
    """Raise LoadError if weights in a whole safetensors file are no numbers that a model can have: NaN, infinity."""
    from safetensors.torch import load_file

    for name, tensor in load_file(file).items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise LoadError(
                f"{file}: {name} has values that are NaN or infinite: it was so when it was saved, or the file was "
                f"changed"
            )
