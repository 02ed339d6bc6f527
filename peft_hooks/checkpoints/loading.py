"""``load``: restore a saved model with its adapters and hooks. The command line reads models with it as well.

No release of Sentence Transformers loads prompt learning. So the model is put together in a temporary folder: the saved
modules, tokenizer and settings, with the base model's weights in its Transformer. Every release loads that like any
other model; the adapters are put on afterwards.

No code from a model's folder runs: weights are safetensors only, and modules are Sentence Transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._arguments import need_path
from .._public import public
from ..compat import sentence_transformers as releases
from ..compat.cross_encoders import TO_LOAD
from ..errors import LoadError, PeftHooksError
from ..prompts.attach import register_prompt_mask_hooks
from ..prompts.plan import HookOptions, Options, options_of
from ..prompts.probes import in_a_line
from . import manifest as _saved
from .adapted import adapted_folders, base_of
from .base_model import Base, Progress, ReadOptions, resolve_directory
from .changed import refuse_changed_weights
from .checked import check_special_tokens
from .embeddings import compare_embeddings
from .folder import ADAPTER, CONFIG, MODULES, STAGE, read_json, transformer_folders
from .replacing import whole_folder
from .restore import put_adapters
from .sample import warn_if_another
from .settings import put_types
from .staging import check_folder, merged, relative

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from typing_extensions import Unpack

# Any other name is not a class of models.
_CLASSES = ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "CrossEncoder")


@public
def load(
    path: str | Path,
    *,
    base_model: Any = None,
    adapter_name: str | None = None,
    is_trainable: bool = False,
    device: str | None = None,
    **options: Unpack[HookOptions],
) -> SentenceTransformer:
    """Load what ``save`` or ``model.save_pretrained(path)`` wrote: the model with its adapters and hooks.

    Runs no code from the model's folder, and reads only safetensors. Also loads a PEFT folder with nothing but an
    adapter, with the tokenizer and pooling of its base model.

    Args:
        path: The folder, or a name on the Hugging Face Hub.
        base_model: The base model, if it is not where the folder says: a folder, a name on the Hub, or a loaded
            ``SentenceTransformer`` or transformers model, which stays as it is.
        adapter_name: The adapter to make active; by default the one that was active when the model was saved.
        is_trainable: Whether the adapters can be trained further; otherwise everything is frozen.
        device: The device to put the model on; by default Sentence Transformers chooses.
        **options: ``virtual_tokens``, ``task_id``, ``check``, ``log``, ``share_prompt`` as in
            ``register_prompt_mask_hooks``; they replace those that the model was saved with.

    Returns:
        The model in eval mode. ``register_prompt_mask_hooks(model, **same_options)`` returns the handle of its hooks.

    Raises:
        LoadError: If the folder is damaged, incomplete, would run code or has no adapter, if the base model is not
            found, or if ``is_trainable`` is set and an adapter cannot be trained: PEFT saves P-tuning, and prefix
            tuning with a projection, without their networks (https://github.com/huggingface/peft/issues/2256);
            ``save`` keeps them.
        UnsupportedModelError: If the embeddings cannot be right with this backbone and adapter.
        TypeError: If ``path`` is not a path, or an option is unknown.

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
    reading = ReadOptions(base_model, "base_model=", adapter_name, is_trainable, device)
    options_of(options)
    found = read_model(need_path(path, "the folder or the name of a saved model"), reading)
    model, saved = found.model, found.saved
    if not any(releases.has_adapter(transformer) for _, transformer in releases.transformers_of(model)):
        raise LoadError(f"{path}: it has no adapter: load it with SentenceTransformer(path)")
    chosen = {**(saved.options or {}), **options}
    try:
        register_prompt_mask_hooks(model, **chosen)
        if not found.another_base and _is_as_saved(saved, adapter_name, chosen):
            compare_embeddings(model, saved.embeddings, found.path)
    except PeftHooksError:
        raise
    except Exception as error:  # a module's config asks for something impossible, or an option is wrong
        if options.get("task_id") is not None and isinstance(error, ValueError):
            raise
        raise LoadError(f"{path}: it was loaded, but hooks cannot be attached: {in_a_line(error)}") from error
    return model


def _is_as_saved(saved: _saved.Saved, adapter_name: str | None, options: dict[str, Any]) -> bool:
    """Tell whether the model was requested as it was saved, so that its embeddings must be the same."""
    if adapter_name is not None and any(one.active != adapter_name for one in saved.transformers):
        return False
    former, now = Options(**(saved.options or {})), Options(**options)
    return (former.virtual_tokens, former.task_id) == (now.virtual_tokens, now.task_id)


def load_model(name: str, base: str | None, say: Progress) -> Any:
    """Load any model for the command line: on the CPU, with its adapters on and without hooks.

    Raises:
        LoadError: If it cannot be loaded, or only by running code or unpickling.
    """
    return read_model(name, ReadOptions(base, "--base PATH", device="cpu", say=say)).model


class Read(NamedTuple):
    """A model without hooks, its ``peft_hooks.json``, its folder, and whether its base model is a different one."""

    model: Any
    saved: _saved.Saved
    path: Path
    another_base: bool


def read_model(name: str, reading: ReadOptions) -> Read:
    """Load a model without hooks."""
    path = whole_folder(resolve_directory(name, reading.say))
    saved = _saved.read(path)
    try:
        model, another_base = _read(path, name, saved, reading)
        return Read(model, saved, path, another_base)
    except (PeftHooksError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a library raises for a damaged model
        raise LoadError(f"{name}: could not be loaded: {type(error).__name__}: {error}") from error


def _read(path: Path, name: str, saved: _saved.Saved, reading: ReadOptions) -> tuple[Any, bool]:
    whole = (path / MODULES).is_file()
    if not whole and (path / ADAPTER).is_file():
        return _read_adapter_alone(path, saved, reading), False
    if not whole and not (path / CONFIG).is_file():
        if (path / STAGE).is_dir():
            raise LoadError(f"{name}: saving was interrupted, so the folder is incomplete: save the model again")
        raise LoadError(f"{name}: not a model: it has no {MODULES}, no {CONFIG} and no {ADAPTER}")
    check_folder(path)
    adapted = adapted_folders(path, saved, reading)
    if not adapted:
        return _plain(path, reading), False
    bases = {folder: base_of(folder, path, adapted, saved, reading) for folder in adapted}
    shown = f"{path} with the weights of {', '.join(sorted({base.name for base in bases.values()}))}"
    kind = _model_class(path)
    with merged(path, bases, saved) as whole_model:
        model = _plain(whole_model, reading, shown, kind, _number_of_labels(kind, saved))
    put_types(model, saved.types)
    folders, transformers = transformer_folders(path), releases.transformers_of(model)
    if len(folders) != len(transformers):
        raise LoadError(f"{path / MODULES}: it names {len(folders)} Transformers, but {len(transformers)} were loaded")
    another = False
    for folder, (_, transformer) in zip(folders, transformers, strict=True):
        check_special_tokens(transformer, folder / "tokenizer_config.json")
        if folder in adapted:
            known, base = saved.of(relative(folder, path)), bases[folder]
            another |= warn_if_another(known, transformer, base.name, reading.how, path / _saved.FILE)
            _put_on(transformer, *adapted[folder], bases[folder], reading, known)
    if saved.truncate_dim is not None:
        model.truncate_dim = saved.truncate_dim
    refuse_changed_weights(path, path / _saved.FILE)
    return model.eval(), another


def _read_adapter_alone(path: Path, saved: _saved.Saved, reading: ReadOptions) -> Any:
    """Load a PEFT folder with nothing but adapters: the tokenizer and pooling are those of the base model."""
    others = ("config_sentence_transformers.json", "sentence_bert_config.json", _saved.FILE)
    begun = next((file for file in others if (path / file).is_file()), None)
    if begun is not None:
        raise LoadError(f"{path / MODULES}: missing although there is a {begun}, so the model is incomplete")
    folders, active = adapted_folders(path, saved, reading)[path]
    if read_json(folders[active] / ADAPTER).get("task_type") == "SEQ_CLS":
        raise LoadError(f"{path}: the adapter of a classifier, without the rest of its CrossEncoder: use {TO_LOAD}")
    base = base_of(path, path, {path: (folders, active)}, saved, reading)
    with base.on_disk() as folder:
        check_folder(folder, links=True)
        model = _plain(folder, reading, base.name)
    _put_on(releases.transformers_of(model)[0][1], folders, active, base, reading, saved.of(""))
    return model.eval()


def _plain(path: Path, reading: ReadOptions, shown: str = "", kind: Any = None, options: Mapping[str, Any] = {}) -> Any:
    """Load a model as Sentence Transformers loads any other."""
    assumed = "" if (path / MODULES).is_file() else " (a transformer alone: Sentence Transformers adds mean pooling)"
    with reading.say(f"Loading {shown or path}{assumed}"):
        return (kind or _model_class(path))(str(path), device=reading.device, **options)


def _number_of_labels(kind: Any, saved: _saved.Saved) -> dict[str, int]:
    """Return the number of labels for a CrossEncoder whose base model has no head, and would get one label."""
    labels = saved.transformers[0].settings.get("num_labels") if saved.transformers else None
    return {"num_labels": labels} if kind.__name__ == "CrossEncoder" and isinstance(labels, int) else {}


def _model_class(path: Path) -> Any:
    """Return the class of the saved model: since 5.0 its name is in Sentence Transformers' config."""
    import sentence_transformers

    config = path / "config_sentence_transformers.json"
    name = read_json(config).get("model_type", _CLASSES[0]) if config.is_file() else _CLASSES[0]
    if name not in _CLASSES or not hasattr(sentence_transformers, name):
        raise LoadError(
            f"{config}: its model_type is {name!r}, which this release of Sentence Transformers does not have"
        )
    return getattr(sentence_transformers, name)


def _put_on(
    transformer: Any,
    adapters: dict[str, Path],
    active: str,
    base: Base,
    reading: ReadOptions,
    saved: _saved.SavedTransformer,
) -> None:
    backbone = releases.backbone_of(transformer)
    backbone.config._name_or_path = backbone.name_or_path = base.name  # not the temporary folder
    with reading.say(f"Attaching the adapter in {adapters[active]}"):
        put_adapters(transformer, adapters, active, trainable=reading.trainable, base_model=base.name)
    if saved.padding_side is not None:
        transformer.tokenizer.padding_side = saved.padding_side
