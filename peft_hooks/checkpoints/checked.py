"""Checks that the settings in a saved folder have the right types and agree with the weights next to them.

Runs before anything is allocated: a size that no weight has would take gigabytes before a library notices, and a value
of the wrong type would fail in some later call, with a message about something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..compat import sentence_transformers as releases
from ..errors import LoadError
from .folder import ADAPTER, CONFIG, WEIGHTS, Part, read_json

Shapes = dict[str, tuple[int, ...]]

_SLACK = 1024  # allowance for numbers of layers, positions and the like, which are not sizes of weights

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def shapes_in(file: Path, floats: bool = False) -> Shapes:
    """Return the shapes of the weights in a safetensors file; only its header is read.

    Raises:
        LoadError: If ``floats`` is set and a weight is of another type.
    """
    from safetensors import safe_open

    found = {}
    with safe_open(str(file), "pt") as opened:
        for name in list(opened.keys()):
            part = opened.get_slice(name)
            if floats and part.get_dtype() not in _FLOATS and "indices" not in name:
                raise LoadError(f"{file}: {name} has the type {part.get_dtype()}: expected a floating-point type")
            found[name] = tuple(part.get_shape())
    return found


# --- adapters


def check_adapter(folder: Path) -> None:
    """Raise LoadError if an adapter's config has sizes that its weights do not have."""
    config, file = read_json(folder / ADAPTER), folder / ADAPTER
    shapes = shapes_in(folder / WEIGHTS, floats=True)
    for key in ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_tasks", "num_ranks", "r"):
        value = config.get(key)
        if value is not None and not _is_count(value):
            raise LoadError(f"{file}: its {key} is {value!r}: expected a positive whole number")
    for key, expected in _expected(config):
        found = shapes.get(key)
        if found is not None and found != expected:
            raise LoadError(
                f"{file}: by its sizes {key} is {list(expected)}, but in {WEIGHTS} it is {list(found)}: one of them "
                f"was changed"
            )
    _check_ranks(config, shapes, file)


def _check_ranks(config: dict[str, Any], shapes: Shapes, file: Path) -> None:
    """Compare LoRA's ranks, which may differ between layers: none may exceed the largest rank of any layer."""
    ranks = [shape[0] for name, shape in shapes.items() if ".lora_A." in name and shape]
    wanted = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if ranks and max([rank for rank in wanted if isinstance(rank, int)], default=0) > max(ranks):
        raise LoadError(f"{file}: its r is {config.get('r')}, but in {WEIGHTS} it is {max(ranks)}: one was changed")
    alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
    wrong = [alpha for alpha in alphas if alpha is not None and not _is_finite(alpha)]
    if wrong:
        raise LoadError(f"{file}: its lora_alpha is {wrong[0]!r}: expected a finite number")


def _expected(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the weights of a prompt with the shapes that follow from its config, as far as it determines them."""
    tokens, width = config.get("num_virtual_tokens"), config.get("token_dim")
    if not tokens or not width:
        return
    method, rows = config.get("peft_type"), tokens * (config.get("num_transformer_submodules") or 1)
    if method in ("PREFIX_TUNING", "CARTRIDGE"):
        if config.get("num_layers"):
            yield "prompt_embeddings", (tokens, config["num_layers"] * 2 * width)
        return
    yield "prompt_embeddings", (rows, width)
    if method == "MULTITASK_PROMPT_TUNING" and config.get("num_tasks") and config.get("num_ranks"):
        yield "prefix_task_cols", (config["num_tasks"], rows, config["num_ranks"])
        yield "prefix_task_rows", (config["num_tasks"], config["num_ranks"], width)


def check_network(folder: Path, file: Path) -> None:
    """Raise LoadError if a prompt's network has other sizes than its config says."""
    config, shapes = read_json(folder / ADAPTER), shapes_in(file, floats=True)
    hidden = config.get("encoder_hidden_size")
    sizes = {size for shape in shapes.values() for size in shape}
    if hidden is not None and (not _is_count(hidden) or (sizes and hidden > max(sizes))):
        raise LoadError(f"{folder / ADAPTER}: its encoder_hidden_size is {hidden!r}, which does not match {file.name}")
    layers = config.get("encoder_num_layers")
    if layers is not None and (not _is_count(layers) or layers > len(shapes) + 2):
        raise LoadError(f"{folder / ADAPTER}: its encoder_num_layers is {layers!r}, which does not match {file.name}")


# --- modules and tokenizers


def check_part(part: Part) -> None:
    """Raise LoadError if a module's config has sizes that its weights do not have, or its tokenizer's is invalid."""
    tokens = part.folder / "tokenizer_config.json"
    if part.kind.endswith("Transformer"):
        if tokens.is_file():
            _check_tokenizer(tokens)
        for file in part.folder.glob("sentence_*_config.json"):
            length = read_json(file).get("max_seq_length")
            if length is not None and not _is_count(length):
                raise LoadError(f"{file}: its max_seq_length is {length!r}: expected a positive whole number")
        return
    config = part.folder / CONFIG
    weights = part.folder / "model.safetensors"
    if config.is_file() and weights.is_file():
        sizes = [size for shape in shapes_in(weights, floats=True).values() for size in shape]
        for key, value in _numbers_in(read_json(config)):
            if value > max(sizes, default=value) + _SLACK and "length" not in key:
                raise LoadError(f"{config}: its {key} is {value}, but {weights.name} has no such size")


def _numbers_in(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, int) and not isinstance(one, bool):
                yield key, one


def _check_tokenizer(file: Path) -> None:
    config = read_json(file)
    for key, (is_right, expected) in _TOKENIZER.items():
        if key in config and not is_right(config[key]):
            raise LoadError(f"{file}: its {key} is {config[key]!r}: expected {expected}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_length(value: Any) -> bool:
    """Tell whether this is a number of tokens; no limit is written as 1e30, which other JSON tools make a float."""
    return _is_count(value) or (isinstance(value, float) and value >= 1e18)


def _has_the_mask(value: Any) -> bool:
    return isinstance(value, list) and {"input_ids", "attention_mask"} <= set(map(str, value))


def _is_token(value: Any) -> bool:
    return value is None or isinstance(value, (str, dict))


_Check = tuple[Callable[[Any], bool], str]

_TOKENIZER: dict[str, _Check] = {
    "model_max_length": (_is_length, "a positive whole number"),
    "model_input_names": (_has_the_mask, "a list with input_ids and attention_mask, without which padding counts"),
    "padding_side": (lambda value: value in ("left", "right"), "'left' or 'right'"),
    "truncation_side": (lambda value: value in ("left", "right"), "'left' or 'right'"),
    **{f"{name}_token": (_is_token, "a token") for name in ("pad", "cls", "sep", "unk", "bos", "eos", "mask")},
}


def check_special_tokens(transformer: Any, named_by: Path) -> None:
    """Raise LoadError if the tokenizer gives a token that the backbone has no embedding for."""
    tokenizer: Any = getattr(transformer, "tokenizer", None)
    backbone = releases.plain_backbone(transformer)
    if getattr(tokenizer, "pad_token", None) is None or not hasattr(backbone, "get_input_embeddings"):
        return
    rows = len(backbone.get_input_embeddings().weight)
    given = tokenizer(["a", "a b c d e f g h"], padding=True, truncation=True, max_length=8)["input_ids"]
    largest = max(max(ids) for ids in given)
    if largest >= rows:
        which = next((name for name, value in _special(tokenizer) if value == largest), "a token")
        raise LoadError(
            f"{named_by}: {which} has the id {largest}, but the backbone has embeddings for only {rows} tokens"
        )


def _special(tokenizer: Any) -> Iterator[tuple[str, int | None]]:
    for name in ("pad_token", "cls_token", "sep_token", "unk_token", "bos_token", "eos_token"):
        yield f"{name} {getattr(tokenizer, name, None)!r}", getattr(tokenizer, f"{name}_id", None)
