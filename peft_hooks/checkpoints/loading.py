"""``load``: gives a saved model back with its adapters and hooks. The command line reads models with it, too.

No release of Sentence Transformers loads prompt learning. So the model is put together from two: a temporary folder
with the saved modules, tokenizer and settings, and the base model's weights in its Transformer, which every release
loads as it loads any model; the adapters are put on it afterwards.

No code out of a model's folder runs: weights are safetensors only, and modules are Sentence Transformers' own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._arguments import need_path
from ..compat import sentence_transformers as releases
from ..compat.cross_encoders import TO_LOAD
from ..errors import LoadError, PeftHooksError
from ..prompts.attach import register_prompt_mask_hooks
from ..prompts.plan import options_of
from ..prompts.refusals import level_of_caller
from . import manifest as _saved
from .base_model import Base, Reading, Say, find_base, found
from .folder import ADAPTER, CONFIG, MODULES, STAGE, adapter_folders, read_json, refuse_links, transformer_folders
from .replacing import whole_folder
from .restore import put_adapters, read_config
from .sample import warn_if_another
from .settings import put_types
from .staging import check_folder, merged, relative

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Other names are no class of a model.
_CLASSES = ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "CrossEncoder")

Adapted = dict[Path, tuple[dict[str, Path], str]]
"""The Transformers' folders that have adapters: the adapters' folders by name, and which one is active."""


def load(
    path: str | Path,
    *,
    base_model: Any = None,
    adapter_name: str | None = None,
    is_trainable: bool = False,
    device: str | None = None,
    **options: Any,
) -> SentenceTransformer:
    """Load what ``save`` or ``model.save_pretrained(path)`` wrote: the model with its adapters, and the hooks on it.

    No code of the model's folder runs, and only safetensors are read. A folder of PEFT's with an adapter alone is
    loaded, too: with the tokenizer and pooling of its base model.

    Args:
        path: The folder, or a name on the Hugging Face Hub.
        base_model: Where the base model is, if not where the folder says: a folder, a name on the Hub, or a loaded
            ``SentenceTransformer`` or transformers model, which stays as it is.
        adapter_name: The adapter to make active, if not the one that was when the model was saved.
        is_trainable: Whether the adapters can be trained on; otherwise everything is frozen.
        device: Where to put the model; Sentence Transformers decides if left out.
        **options: ``virtual_tokens``, ``task_id``, ``check``, ``log``, ``share_prompt`` as in
            ``register_prompt_mask_hooks``, in place of those that the model was saved with.

    Returns:
        The model in eval mode. ``register_prompt_mask_hooks(model, **same_options)`` returns the handle of its hooks.

    Raises:
        LoadError: If the folder is damaged, incomplete, would run code or has no adapter, if the base model is not
            found, or if an adapter cannot be trained though ``is_trainable``: PEFT saves P-tuning and prefix tuning
            with a projection without their networks (https://github.com/huggingface/peft/issues/2256); ``save`` keeps
            them.
        UnsupportedModelError: If the embeddings cannot be right with this backbone and adapter.
        TypeError: If ``path`` is no path, or an option is unknown.

    Example:
        >>> import tempfile
        >>> import peft_hooks
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks.testing import tiny_model
        >>> temporary = tempfile.TemporaryDirectory()
        >>> base = tiny_model("bert", path=f"{temporary.name}/base")
        >>> handle = peft_hooks.add_prompt_adapter(base, PromptTuningConfig(num_virtual_tokens=4))
        >>> peft_hooks.save(base, f"{temporary.name}/tuned")
        >>> model = peft_hooks.load(f"{temporary.name}/tuned", virtual_tokens="ignore", device="cpu")
        >>> peft_hooks.register_prompt_mask_hooks(model, virtual_tokens="ignore").active
        True
        >>> temporary.cleanup()
    """
    reading = Reading(base_model, "base_model=", adapter_name, is_trainable, device)
    options_of(options)
    model, saved = read_model(need_path(path, "the folder or the name of a saved model"), reading)
    if not any(releases.has_adapter(transformer) for _, transformer in releases.transformers_of(model)):
        raise LoadError(f"{path}: there is no adapter in it: load it with SentenceTransformer(path)")
    register_prompt_mask_hooks(model, **{**(saved.options or {}), **options})
    return model


def load_model(name: str, base: str | None, say: Say) -> Any:
    """Load a model for the command line: any that there is, on the CPU, with its adapters on and no hooks.

    Raises:
        LoadError: If that cannot be loaded, or not without running code or unpickling.
    """
    return read_model(name, Reading(base, "--base PATH", device="cpu", say=say))[0]


def read_model(name: str, reading: Reading) -> tuple[Any, _saved.Saved]:
    """Load a model without hooks, with what ``peft_hooks.json`` says of it."""
    path = whole_folder(found(name, reading.say))
    saved = _saved.read(path)
    try:
        return _read(path, name, saved, reading), saved
    except (PeftHooksError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a library raises of a damaged model
        raise LoadError(f"{name}: could not be loaded: {type(error).__name__}: {error}") from error


def _read(path: Path, name: str, saved: _saved.Saved, reading: Reading) -> Any:
    whole = (path / MODULES).is_file()
    if not whole and (path / ADAPTER).is_file():
        return _read_adapter_alone(path, saved, reading)
    if not whole and not (path / CONFIG).is_file():
        if (path / STAGE).is_dir():
            raise LoadError(f"{name}: the saving of this folder was cut off, so it is incomplete: save the model again")
        raise LoadError(f"{name}: no model here: there is no {MODULES}, no {CONFIG} and no {ADAPTER} in it")
    check_folder(path)
    adapted = _adapted(path, saved, reading)
    if not adapted:
        return _plain(path, reading)
    bases = {folder: _base(folder, path, adapted, saved, reading) for folder in adapted}
    shown = f"{path} with the weights of {', '.join(sorted({base.name for base in bases.values()}))}"
    kind = _model_class(path)
    with merged(path, bases, saved) as whole_model:
        model = _plain(whole_model, reading, shown, kind, _number_of_labels(kind, saved))
    put_types(model, saved.types)
    folders, transformers = transformer_folders(path), releases.transformers_of(model)
    if len(folders) != len(transformers):
        raise LoadError(f"{path / MODULES}: it names {len(folders)} Transformers, and {len(transformers)} were loaded")
    for folder, (_, transformer) in zip(folders, transformers, strict=True):
        if folder in adapted:
            known = saved.of(relative(folder, path))
            warn_if_another(known, transformer, bases[folder].name, reading.how, path / _saved.FILE)
            _put_on(transformer, *adapted[folder], bases[folder], reading, known)
    if saved.truncate_dim is not None:
        model.truncate_dim = saved.truncate_dim
    return model.eval()


def _read_adapter_alone(path: Path, saved: _saved.Saved, reading: Reading) -> Any:
    """Load a folder of PEFT's with adapters and nothing else: the base model has the tokenizer and the pooling."""
    others = ("config_sentence_transformers.json", "sentence_bert_config.json", _saved.FILE)
    begun = next((file for file in others if (path / file).is_file()), None)
    if begun is not None:
        raise LoadError(f"{path / MODULES}: it is missing though there is a {begun}, so the model is incomplete")
    folders, active = _adapted(path, saved, reading)[path]
    if read_json(folders[active] / ADAPTER).get("task_type") == "SEQ_CLS":
        raise LoadError(
            f"{path}: an adapter of a classifier, and nothing else is there of its CrossEncoder: use {TO_LOAD}"
        )
    base = _base(path, path, {path: (folders, active)}, saved, reading)
    with base.on_disk() as folder:
        check_folder(folder, links=True)
        model = _plain(folder, reading, base.name)
    _put_on(releases.transformers_of(model)[0][1], folders, active, base, reading, saved.of(""))
    return model.eval()


def _adapted(path: Path, saved: _saved.Saved, reading: Reading) -> Adapted:
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


def _base(folder: Path, path: Path, adapted: Adapted, saved: _saved.Saved, reading: Reading) -> Base:
    adapters, active = adapted[folder]
    for adapter in adapters.values():  # what is wrong with an adapter is told before a base model is looked for
        read_config(adapter, reading.trainable)
    return find_base(adapters[active], saved.of(relative(folder, path)).base_model, reading)


def _plain(path: Path, reading: Reading, shown: str = "", kind: Any = None, options: Mapping[str, Any] = {}) -> Any:
    """Load a model as Sentence Transformers loads any."""
    assumed = "" if (path / MODULES).is_file() else " (a transformer alone: Sentence Transformers adds mean pooling)"
    with reading.say(f"Loading {shown or path}{assumed}"):
        return (kind or _model_class(path))(str(path), device=reading.device, **options)


def _number_of_labels(kind: Any, saved: _saved.Saved) -> dict[str, int]:
    """Return what a CrossEncoder has to be told where its base model has no head: it would give it one label."""
    labels = saved.transformers[0].settings.get("num_labels") if saved.transformers else None
    return {"num_labels": labels} if kind.__name__ == "CrossEncoder" and isinstance(labels, int) else {}


def _model_class(path: Path) -> Any:
    """Return the class of model that was saved: its name is in Sentence Transformers' config since 5.0."""
    import sentence_transformers

    config = path / "config_sentence_transformers.json"
    name = read_json(config).get("model_type", _CLASSES[0]) if config.is_file() else _CLASSES[0]
    if name not in _CLASSES or not hasattr(sentence_transformers, name):
        raise LoadError(f"{config}: its model_type is {name!r}, which this release of Sentence Transformers has not")
    return getattr(sentence_transformers, name)


def _put_on(
    transformer: Any,
    adapters: dict[str, Path],
    active: str,
    base: Base,
    reading: Reading,
    saved: _saved.SavedTransformer,
) -> None:
    backbone = releases.backbone_of(transformer)
    backbone.config._name_or_path = backbone.name_or_path = base.name  # not the temporary folder
    with reading.say(f"Putting the adapter in {adapters[active]} on"):
        put_adapters(transformer, adapters, active, trainable=reading.trainable, base_model=base.name)
    if saved.padding_side is not None:
        transformer.tokenizer.padding_side = saved.padding_side
