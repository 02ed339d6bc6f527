"""Loads what the command line is given: a Sentence Transformers model, a transformer, or a PEFT adapter.

No code out of a model's directory runs: weights are safetensors only, and modules are Sentence Transformers' own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from . import _releases as releases
from .errors import PeftHooksError

ADAPTER, MODULES, CONFIG = "adapter_config.json", "modules.json", "config.json"
Say = Callable[[str], AbstractContextManager[None]]


class LoadError(PeftHooksError):
    """A model could not be loaded."""


def load_model(name: str, base: str | None, say: Say) -> Any:
    """Load a model, with its adapter on.

    Args:
        name: A directory, or a name on the Hugging Face Hub: a Sentence Transformers model, one whose Transformer is
            saved as an adapter, a transformer, or a PEFT adapter.
        base: Where an adapter's base model is, if not where it says.
        say: Says what is being done, for the length of a block.

    Raises:
        LoadError: If that cannot be loaded, or not without running code or unpickling.
    """
    path = found(name, say)
    try:
        if (path / ADAPTER).is_file() and not (path / MODULES).is_file():
            return _with_adapter(_base_of(path, base, say), path, say)
        if not (path / MODULES).is_file() and not (path / CONFIG).is_file():
            raise LoadError(f"{name}: no model here: there is no {MODULES}, no {CONFIG} and no {ADAPTER} in it")
        inner = transformer_folder(path)
        if not (inner / ADAPTER).is_file():
            return _plain(path, say)
        weights = _base_of(inner, base, say)
        with _merged(path, inner, weights) as whole:
            return _with_adapter(whole, inner, say, f"{path} with the weights of {weights}")
    except (PeftHooksError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a library raises of a damaged model
        raise LoadError(f"{name}: could not be loaded: {type(error).__name__}: {error}") from error


def found(name: str, say: Say) -> Path:
    """Return the directory of a model, downloaded from the Hub if ``name`` is none here.

    Raises:
        LoadError: If there is no such directory, and nothing could be downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LoadError(f"{name}: no directory with a model" + (", but a file" if path.exists() else ": no such path"))
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        with say(f"Looking for {name} on the Hugging Face Hub"):
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # offline, unknown, gated: each has an error of its own in each release
        first = (str(error).strip().splitlines() or [""])[0]
        raise LoadError(
            f"{name}: no such directory, and it could not be had from the Hugging Face Hub "
            f"({type(error).__name__}: {first})"
        ) from error


def _base_of(adapter: Path, base: str | None, say: Say) -> Path:
    """Return where the base model of an adapter is."""
    config = read_json(adapter / ADAPTER)
    saved = config.get("base_model_name_or_path")
    if "peft_type" not in config:
        raise LoadError(f"{adapter / ADAPTER}: no peft_type in it, so it is not an adapter of PEFT")
    if base is None and not saved:
        raise LoadError(f"{adapter / ADAPTER} does not name its base model: give it with --base PATH")
    beside = adapter / str(saved)
    try:
        return beside if base is None and saved and beside.is_dir() else found(base or str(saved), say)
    except LoadError as error:
        hint = "" if base else f" (the base model that {adapter / ADAPTER} names): give another with --base PATH"
        raise LoadError(f"{error}{hint}") from error


def _plain(path: Path, say: Say, shown: str = "") -> Any:
    refuse_code(path)
    from sentence_transformers import SentenceTransformer

    assumed = "" if (path / MODULES).is_file() else " (a transformer alone: Sentence Transformers adds mean pooling)"
    with say(f"Loading {shown or path}{assumed}"):
        return SentenceTransformer(str(path), device="cpu")


def _with_adapter(base: Path, adapter: Path, say: Say, shown: str = "") -> Any:
    """Put an adapter on by hand: no release of Sentence Transformers loads prompt learning."""
    if not (adapter / "adapter_model.safetensors").is_file():
        raise LoadError(f"{adapter}: there is no adapter_model.safetensors in it, and nothing else is loaded")
    read_json(adapter / ADAPTER)
    model = _plain(base, say, shown)
    from peft import PeftModel

    with say(f"Putting the adapter in {adapter} on"):
        transformer = releases.transformers_of(model)[0][1]
        releases.put_backbone(transformer, PeftModel.from_pretrained(releases.backbone_of(transformer), str(adapter)))
    return model.eval()


@contextmanager
def _merged(path: Path, inner: Path, base: Path) -> Iterator[Path]:
    """Make a directory for the length of a block: the model at ``path``, with the base's weights in its Transformer.

    So its tokenizer, pooling, prompts and lengths load as every release loads them.
    """
    refuse_code(base)
    with tempfile.TemporaryDirectory(prefix="peft-hooks-") as temporary:
        whole = Path(temporary) / "model"
        shutil.copytree(path, whole)
        folder = whole / inner.relative_to(path)
        for file in folder.glob("adapter_*"):
            file.unlink()
        weights = transformer_folder(base)
        for file in (weights / CONFIG, *weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json")):
            (folder / file.name).unlink(missing_ok=True)
            _link(file.resolve(), folder / file.name)
        yield whole


def _link(file: Path, to: Path) -> None:
    try:
        to.symlink_to(file)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(file, to)


def transformer_folder(path: Path) -> Path:
    """Return where the Transformer of a model is saved: a folder that ``modules.json`` names, or the model's own."""
    if not (path / MODULES).is_file():
        return path
    for module in read_modules(path):
        if module["type"].rpartition(".")[2] == "Transformer":
            return path / module["path"] if module["path"] else path
    return path


def refuse_code(path: Path) -> None:
    """Raise LoadError if loading the model at ``path`` would run code of its own, or unpickle."""
    folders = [path]
    for module in read_modules(path) if (path / MODULES).is_file() else ():
        if not module["type"].startswith("sentence_transformers."):
            raise LoadError(
                f"{path}: its module {module['type']} is not of Sentence Transformers: no code of it is run"
            )
        folders.append(path / module["path"])
    for folder in folders:
        pickled = [file for ending in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(ending)]
        if pickled and not list(folder.glob("*.safetensors")):
            raise LoadError(
                f"{folder}: weights are in {pickled[0].name}, which can run code: only safetensors are read"
            )


def read_modules(path: Path) -> list[dict[str, str]]:
    """Return the modules of a Sentence Transformers model: each with its ``type`` and ``path``."""
    modules = read_json(path / MODULES, list)
    if not all(isinstance(module, dict) and {"type", "path"} <= set(module) for module in modules):
        raise LoadError(f"{path / MODULES}: every module must have a type and a path")
    return [{key: str(value) for key, value in module.items()} for module in modules]


def read_json(file: Path, kind: type = dict) -> Any:
    """Return what a JSON file holds.

    Raises:
        LoadError: If it is no JSON, or not of that kind.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file}: damaged, not JSON: {error}") from error
    if not isinstance(value, kind):
        raise LoadError(f"{file}: damaged: expected a {kind.__name__}, got a {type(value).__name__}")
    return value
