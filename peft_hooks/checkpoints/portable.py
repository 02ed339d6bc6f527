"""Writes a plain model's folder so that all releases since 2.7 and other engines read it, whichever release wrote it.

``merge_and_unload`` returns a model whose ``save`` does this. Since 5.4 Sentence Transformers writes module paths and
options of Pooling that earlier releases cannot read; transformers 5 writes a tokenizer class that 4 does not have, and
a rotary theta where 4 does not look for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..compat.cross_encoders import inputs_of, root_of
from ..errors import SaveError
from .folder import CONFIG, MODULES, read_json
from .rope import with_flat_rope

_TOKENIZER, _TOKENIZER_CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_TRANSFORMER = "sentence_bert_config.json"
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"

# Where modules are since 5.4, and where every release finds them.
_HOMES = {
    "sentence_transformers.sentence_transformer.modules.": "sentence_transformers.models.",
    "sentence_transformers.base.modules.": "sentence_transformers.models.",
    "sentence_transformers.sparse_encoder.modules.": "sentence_transformers.sparse_encoder.models.",
}

# What releases since 5.4 infer if it is not written, and others cannot read.
_INFERRED = {
    "transformer_task": ("feature-extraction", "fill-mask"),
    "module_output_name": ("token_embeddings",),
}


class Portable:
    """Mixed into the class of a merged model, so that older releases and other engines read what it saves."""

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save the model as its own class does, in a form that releases since 2.7 and other engines read.

        Raises:
            SaveError: If the saved tokenizer gives other tokens than the model's.
        """
        super().save(path, *args, **kwargs)  # type: ignore[misc]
        make_portable(Path(path), self)

    def save_pretrained(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Call ``save``."""
        self.save(path, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the model as its own class, so that a process without this library can read it.

        Uses protocol 1, because later ones allow no other class than the object's.
        """
        reduced: Any = super().__reduce_ex__(1)
        made, arguments, *rest = reduced
        own = type(self).__mro__[2]
        return made, tuple(own if argument is type(self) else argument for argument in arguments), *rest

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the model with its class; by default, copies are made like pickles."""
        copied: Any = object.__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


def portable(model: Any) -> Any:
    """Make the model save portably, and return it. A user's own class stays, and so does how it saves."""
    kind = __getattr__(type(model).__name__) if type(model).__name__ in _KINDS else None
    if kind is not None and kind.__mro__[2] is type(model):
        model.__class__ = kind
    return model


_KINDS = ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "CrossEncoder")


def __getattr__(name: str) -> Any:
    """Return the portable class of a name, made on first use; some releases write its name into the folder.

    It is an attribute of this module so that a pickled model finds it.
    """
    import sentence_transformers

    kind = getattr(sentence_transformers, name, None) if name in _KINDS else None
    if kind is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (Portable, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    globals()[name] = made
    return made


def make_portable(folder: Path, model: Any) -> None:
    """Rewrite what ``model.save(folder)`` has just written."""
    if (folder / MODULES).is_file():
        listed = read_json(folder / MODULES, list)
        for entry, module in zip(listed, model.children(), strict=True):
            _rewrite_module(folder / entry["path"], module)
            entry["type"] = _old_home(str(entry["type"]), releases.transformer_class(), model, module)
        _write(folder / MODULES, listed)
    ((_, transformer),) = inputs_of(root_of(model))
    _edit(folder / CONFIG, with_flat_rope)
    _rewrite_tokenizer(folder, transformer)


def _old_home(reference: str, transformer: Any, model: Any, module: Any) -> str:
    """Return where every release finds a module's class; a SparseEncoder's Transformer has its own before 5.4."""
    if type(model).__name__ == "SparseEncoder" and isinstance(module, transformer):
        return "sentence_transformers.sparse_encoder.models.MLMTransformer"
    for new, old in _HOMES.items():
        if reference.startswith(new):
            return old + reference.rpartition(".")[2]
    return reference


def _rewrite_module(folder: Path, module: Any) -> None:
    """Rewrite what a module has written about itself."""
    kind = modules.kind_of(module)
    if kind == "Transformer":
        _edit(folder / _TRANSFORMER, lambda config: _transformer_config(config, module))
        return
    name = getattr(module, "config_file_name", "config.json")
    if (folder / name).is_file():
        _edit(folder / name, lambda config: _with_old_keys(config, module))
    if kind == "Pooling":
        _edit(folder / name, _pooling_config)
    if (folder / _SAFE).is_file() and not (folder / _PICKLED).is_file() and kind != "WordWeights":
        import torch  # 2.7 reads nothing else

        torch.save(module.state_dict(), folder / _PICKLED)


def _transformer_config(config: dict[str, Any], transformer: Any) -> dict[str, Any]:
    """Return the options that every release knows, and of the others only those that cannot be inferred."""
    options = {"max_seq_length": transformer.max_seq_length, "do_lower_case": bool(transformer.do_lower_case)}
    kept = {name: value for name, value in config.items() if value not in _INFERRED.get(name, ())}
    if set(kept.get("modality_config", ())) == {"text"}:
        del kept["modality_config"]
    return {**kept, **options}


def _with_old_keys(config: dict[str, Any], module: Any) -> dict[str, Any]:
    """Return a module's config with the option names from before 5.4, which later releases also read.

    What a Dense reads and writes is included only if it is not what every release assumes.
    """
    renamed = {new: old for old, new in getattr(module, "config_key_renames", {}).items()}
    usual = modules.names_in_and_out(module) == ("sentence_embedding", "sentence_embedding")
    dropped = ("module_input_name", "module_output_name") if usual else ()
    return {renamed.get(name, name): value for name, value in config.items() if name not in dropped}


def _pooling_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a flag for each mode instead of their names; modes in an order of their own stay as they are."""
    if "pooling_mode" not in config:
        return config
    given = config["pooling_mode"]
    chosen = [given] if isinstance(given, str) else list(given)
    flags = {flag: mode in chosen for mode, flag in releases.MODE_FLAGS.items()}
    if chosen != [mode for mode in releases.MODE_FLAGS if mode in chosen]:
        return config
    rest = {name: value for name, value in config.items() if name != "pooling_mode"}
    return {**rest, **flags}


def _rewrite_tokenizer(folder: Path, transformer: Any) -> None:
    """Write the tokenizer without the truncation and padding of its last call, and without a class of one release."""
    tokenizer = transformer.tokenizer
    _edit(folder / _TOKENIZER, _tokenizer_state)
    dropped = ("backend", "is_local", "local_files_only", "tokenizer_class", "extra_special_tokens")
    settings = {name: value for name, value in read_json(folder / _TOKENIZER_CONFIG).items() if name not in dropped}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": list(tokenizer.model_input_names)}
    settings |= {"padding_side": tokenizer.padding_side, "truncation_side": tokenizer.truncation_side}
    _write(folder / _TOKENIZER_CONFIG, {**settings, **special})
    _write(folder / _SPECIAL, special)
    _compare_tokens(folder, tokenizer)


def _tokenizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer without truncation and padding, its merges in the form that tokenizers before 0.20 reads."""
    model = dict(state["model"])
    merges = model.get("merges")
    if merges and not any(" " in part for merge in merges if isinstance(merge, list) for part in merge):
        model["merges"] = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    return {**state, "truncation": None, "padding": None, "model": model}


def _compare_tokens(folder: Path, tokenizer: Any) -> None:
    """Raise SaveError if this release loads the tokenizer in a folder as a different one: some rebuild their own."""
    from transformers import AutoTokenizer

    if "auto_map" in read_json(folder / CONFIG):
        return  # loading the tokenizer would run the backbone's code
    again = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    texts = ["a cat", "", "The old captain's 3 boats; naïve café, 中文 🐈", " two  spaces"]
    for text in texts:
        before, now = (dict(one(text, truncation=True, max_length=48)) for one in (tokenizer, again))
        if before != now:
            raise SaveError(
                f"{folder}: {type(again).__name__}, which this transformers loads from it, gives other tokens "
                f"for {text!r} than the model's {type(tokenizer).__name__}"
            )


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    _write(file, change(read_json(file)))


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
