"""``save``: write a model with its adapters and its hooks' options, all of it or nothing."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from .._arguments import in_words, need_path, refuse_meta
from .._public import public
from ..compat import cross_encoders as cross
from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..compat.pipeline import read_pipeline
from ..compat.quiet import quiet
from ..errors import LoadError, PeftHooksError, SaveError, UnsupportedModelError
from ..prompts.attach import prompt_mask_hooks
from ..prompts.handle import options_on
from ..prompts.without import without_adapter
from . import manifest as _saved
from .card import point_to_load
from .embeddings import embeddings_of
from .folder import WEIGHTS, adapter_folders, check_values, transformer_folders
from .pickles import unpickle_own
from .readback import refuse_another
from .replacing import replacing
from .restore import ENCODER, computed
from .sample import sample_of
from .settings import changed_settings, types_of
from .staging import relative


@public
def save(model: nn.Module, path: str | Path) -> None:
    """Save a model with its adapters so that ``load(path)`` restores it as it is, with its hooks.

    Writes what ``model.save_pretrained(path)`` writes, and what that leaves out: the hooks' options, which adapter is
    active, the base model's path, the tokenizer's padding side, and the networks of P-tuning and of prefix tuning with
    a projection, so that they can be trained further, if the model was trained here or loaded with
    ``is_trainable=True``; the model card says how to load it. The base model's weights are not saved. Only files that
    ``save`` wrote itself, which ``peft_hooks.json`` lists, are ever replaced or removed, and only after everything is
    written: a crash leaves the former model, or none.

    Args:
        model: A ``SentenceTransformer`` (or another model of the library; a ``CrossEncoder`` since 5.4) with a PEFT
            adapter, with or without hooks.
        path: The folder: a new or empty one, or one that ``save`` wrote before, whose model is replaced.

    Raises:
        TypeError: If ``model`` is not a module or ``path`` is not a path.
        UnsupportedModelError: If it is not a Sentence Transformers model, has no adapter, has LoRA layers under a
            prompt, of which PEFT saves nothing, or is a ``CrossEncoder`` before 5.4.
        SaveError: If ``path`` is a file, or contains the base model or anything that ``save`` did not write or that was
            changed since; if an adapter's name cannot be the name of a folder; if a weight is NaN or infinite; or if
            the base model was changed in memory, so that a different one would be loaded: trained, an epsilon, a module
            replaced.

    Example:
        >>> import tempfile
        >>> import peft_hooks
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks.testing import tiny_model
        >>> temporary = tempfile.TemporaryDirectory()
        >>> model = tiny_model("bert", path=f"{temporary.name}/base")
        >>> handle = peft_hooks.add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> peft_hooks.save(model, f"{temporary.name}/tuned")
        >>> again = peft_hooks.load(f"{temporary.name}/tuned", device="cpu")
        >>> bool(abs(again.encode("a cat") - model.encode("a cat")).max() < 1e-6)
        True
        >>> temporary.cleanup()
    """
    adapted = _adapted(model)
    target = _place(need_path(path, "the path of a folder to save in"))
    _refuse_base_in(target, adapted)
    _refuse_not_finite(model, adapted)
    with replacing(target) as folder:
        _saved.write_incomplete(folder)
        model.save(str(folder))  # type: ignore[operator]
        unpickle_own(folder)
        saved = _complete(model, folder, adapted)
        point_to_load(folder)
        _saved.write(folder, saved)
        refuse_another(model, folder, saved)


def _place(path: Any) -> Path:
    """Return the absolute path of a folder; of a link, the path that it leads to."""
    try:
        target = Path(os.path.abspath(Path(path).expanduser()))
        target = target.resolve() if target.is_symlink() else target
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()
        str(target).encode()  # if this fails, no tokenizer can be saved there
    except (OSError, ValueError, RuntimeError) as error:  # too long, contains NUL, unknown home, circular links
        raise SaveError(f"{str(path)!r}: no folder can be made there: {type(error).__name__}: {error}") from error
    return target


def _adapted(model: Any) -> dict[int, Any]:
    """Return the Transformers that have adapters, by number; refuse what PEFT would lose or misplace."""
    read = read_pipeline(model)
    refuse_meta(read.root)
    if not all(encoder.is_transformer for encoder in read.encoders):
        raise UnsupportedModelError(
            f"in this release of Sentence Transformers a CrossEncoder does not save what kind of model it is: use "
            f"`model.model.save_pretrained(path)`, and later {cross.TO_LOAD}"
        )
    if not hasattr(model, "save"):
        raise UnsupportedModelError(f"{in_words(model)} has no save(): give the SentenceTransformer in it")
    adapted = {number: encoder.module for number, encoder in enumerate(read.encoders) if encoder.adapted}
    if not adapted:
        raise UnsupportedModelError(
            f"this {type(model).__name__} has no PEFT adapter: save it with model.save_pretrained(path)"
        )
    for transformer in adapted.values():
        backbone = releases.plain_backbone(transformer)
        heads = state.wrapped_heads(backbone)  # saved with the adapter
        if releases.prompt_configs(transformer) and set(state.tuner_layers(backbone)).difference(heads):
            raise UnsupportedModelError(
                "there are LoRA layers in the backbone under the prompt, and PEFT does not save them: merge them into "
                "the backbone and save that first, or train the prompt on a model without them"
            )
        for name in state.adapter_names(transformer):
            if not name or name != Path(name).name or name.startswith(".") or "\\" in name:
                raise SaveError(f"the adapter {name!r} cannot be saved: PEFT saves it in a folder with its name")
    return adapted


def _refuse_base_in(target: Path, adapted: dict[int, Any]) -> None:
    """Refuse to save over a base model, even if ``save`` wrote its files: a Router saves it whole."""
    for transformer in adapted.values():
        base = _base_of(transformer)
        if base and os.path.isdir(base) and Path(base).resolve().is_relative_to(target.resolve()):
            raise SaveError(
                f"{target}: the base model is there, in {base}: its weights are not saved with the adapter, so they "
                f"must stay: give a new or empty folder"
            )


def _refuse_not_finite(model: nn.Module, adapted: dict[int, Any]) -> None:
    """Refuse a model whose training diverged; the base model's weights are not saved, so they are not checked."""
    backbones = [releases.plain_backbone(transformer) for transformer in adapted.values()]
    frozen = {parameter for backbone in backbones for _, parameter in state.base_parameters(backbone)}
    for name, parameter in model.named_parameters():
        if parameter not in frozen and parameter.is_floating_point() and not parameter.isfinite().all():
            raise SaveError(
                f"the parameter {name!r} has values that are NaN or infinite, so the model gives no embeddings: return "
                f"to a checkpoint before that, and train with a lower learning rate or clipped gradients"
            )


def _complete(model: Any, folder: Path, adapted: dict[int, Any]) -> _saved.Saved:
    """Write what PEFT leaves out, and return what to record; raise if a file is missing."""
    folders = transformer_folders(folder)
    labels = {"num_labels": model.num_labels} if releases.is_cross_encoder(model) else {}
    found = []
    with without_adapter(model):
        samples = {number: sample_of(transformer) for number, transformer in adapted.items()}
    for number, transformer in adapted.items():
        adapters = adapter_folders(folders[number], folders)
        if not adapters:
            raise SaveError(f"nothing was saved for the adapters {', '.join(state.adapter_names(transformer))}")
        for name, at in adapters.items():
            if not (at / WEIGHTS).is_file():
                raise SaveError(f"no {WEIGHTS} was saved for the adapter {name!r}")
            _refuse_overflow(at / WEIGHTS, name)
            _save_network(transformer, name, at)
        active, backbone = state.active_adapter(transformer), releases.plain_backbone(transformer)
        tokenizer = getattr(transformer, "tokenizer", None)
        found.append(
            _saved.SavedTransformer(
                folder=relative(folders[number], folder),
                base_model=_base_of(transformer),
                active=active if active in adapters else next(iter(adapters)),
                padding_side=getattr(tokenizer, "padding_side", None),
                fingerprint=state.fingerprint(backbone),
                settings={**changed_settings(backbone, _base_of(transformer)), **labels},
                sample=samples[number],
            )
        )
    hooked = options_on(model)
    options = None if hooked is None else asdict(hooked)
    embeddings = _embeddings(model, options or {})
    return _saved.Saved(options, tuple(found), getattr(model, "truncate_dim", None), types_of(model), embeddings)


def _embeddings(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the model's embeddings with its hooks, in a block, so that its own hooks do not count these calls."""
    try:
        with quiet(), prompt_mask_hooks(model, **options):
            return embeddings_of(model)
    except PeftHooksError:  # `load` will refuse it as well, with its own message
        return {}


def _refuse_overflow(file: Path, name: str) -> None:
    """Refuse rows that are not finite although the network that computes them, in half precision, is."""
    try:
        check_values(file)
    except LoadError as error:
        raise SaveError(
            f"the prompt's network of the adapter {name!r} computes NaN or infinite values, although its weights are "
            f"finite: save the model in float32, with model.float()"
        ) from error


def _save_network(transformer: Any, name: str, folder: Path) -> None:
    """Save the weights of a prompt's network, if this adapter has one: PEFT saves only its output."""
    from safetensors.torch import save_file

    config = releases.prompt_configs(transformer).get(name)
    if config is None or not computed(config) or config.inference_mode:
        return
    state = releases.backbone_of(transformer).prompt_encoder[name].state_dict()
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / ENCODER)


def _base_of(transformer: Any) -> str | None:
    """Return the base model's name; if it is a folder, its absolute path, so that it is found from anywhere."""
    backbone = releases.plain_backbone(transformer)
    name = getattr(backbone, "name_or_path", None) or getattr(backbone.config, "_name_or_path", None)
    return (os.path.abspath(name) if os.path.isdir(name) else str(name)) if name else None
