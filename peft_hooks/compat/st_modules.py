"""Sentence Transformers' own modules: their kinds, widths and names, whose attributes differ between releases."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

KINDS = frozenset(
    {
        "CNN",
        "Dense",
        "Dropout",
        "LSTM",
        "LayerNorm",
        "MultiVectorMask",
        "Normalize",
        "Pooling",
        "Router",
        "SpladePooling",
        "Transformer",
        "WeightedLayerPooling",
        "WordEmbeddings",
        "WordWeights",
    }
)

FLATTENED = "cu_seq_lens_q"
"""A key of features whose texts are laid out end to end in one row: since 5.4, with Flash Attention 2."""


def kind_of(module: nn.Module) -> str | None:
    """Return the name of the Sentence Transformers class whose forward this module has, or None.

    The classes moved in 5.4, but their names stayed. A subclass with its own forward has its own contract.
    """
    for kind in type(module).__mro__:
        if kind.__name__ in KINDS and kind.__module__.partition(".")[0] == "sentence_transformers":
            return kind.__name__ if type(module).forward is kind.forward else None  # type: ignore[attr-defined]
    return None


def widths_of(module: Any) -> tuple[int | None, int | None]:
    """Return the widths of the rows that a module takes and returns, read from its weights; None if they do not say.

    Declared widths mean nothing: a Pooling with a declared width of 128 works on 384, and only reports 128.
    """
    kind, layers = kind_of(module), list(getattr(module, "convs", ()))
    if kind == "CNN" and layers:
        return int(layers[0].in_channels), sum(int(layer.out_channels) for layer in layers)
    if kind == "LSTM":
        return int(module.encoder.input_size), int(module.encoder.hidden_size) * (1 + module.encoder.bidirectional)
    if kind == "WordEmbeddings":
        return None, _last_size(module.emb_layer)
    if kind == "LayerNorm":
        return _last_size(module.norm), _last_size(module.norm)
    weight = getattr(getattr(module, "linear", None), "weight", None)
    return (None, None) if weight is None or weight.dim() != 2 else (int(weight.size(1)), int(weight.size(0)))


def _last_size(module: Any) -> int | None:
    weight = getattr(module, "weight", None)
    return None if weight is None or not weight.dim() else int(weight.size(-1))


def names_in_and_out(module: Any) -> tuple[str, str]:
    """Return which features a Dense or Normalize module reads and writes: configurable since 5.4 and 6.0."""
    name = getattr(module, "module_input_name", "sentence_embedding")
    return name, getattr(module, "module_output_name", None) or name


def layers_of(pooling: Any) -> int | None:
    """Return how many layers a WeightedLayerPooling takes, including the embeddings; None if any number fits."""
    weights = pooling.layer_weights.numel()
    return None if weights == 1 else int(pooling.layer_start + weights)


def routes_of(router: Any) -> list[list[nn.Module]]:
    """Return the modules of each route of a Router. One route always runs, except in Asym, its form before 5.0."""
    return [list(route.children()) for route in router.sub_modules.values()]


def word_weights(count: int, weights: Mapping[int, float]) -> nn.Module:
    """Return a WordWeights module that multiplies the rows of some ids below ``count``, and leaves the others.

    Its vocabulary is only a list of names, so ids serve as well as words.
    """
    new, old = "sentence_transformers.sentence_transformer.modules", "sentence_transformers.models"
    home = importlib.import_module(new if importlib.util.find_spec("sentence_transformers.base") else old)
    by_name = {str(token): weight for token, weight in weights.items()}
    made: nn.Module = home.WordWeights([str(token) for token in range(count)], by_name, 1)
    return made


def lengthen_word_weights(module: Any, weights: Mapping[int, float]) -> None:
    """Append weights for further ids to the vocabulary of a WordWeights module, in place."""
    known, count = module.emb_layer.weight.detach(), max(weights) + 1
    layer = nn.Embedding(count, 1, device=known.device, dtype=known.dtype)
    names = [f"<|virtual_{token}|>" for token in range(len(module.vocab), count)]
    module.vocab = [*module.vocab, *names]
    module.word_weights = {**module.word_weights, **{module.vocab[token]: weights[token] for token in weights}}
    with torch.no_grad():
        layer.weight.fill_(module.unknown_word_weight)
        layer.weight[: len(known)] = known
        for token, weight in weights.items():
            layer.weight[token] = weight
    module.emb_layer = layer


def insert_module(model: Any, index: int, module: nn.Module) -> None:
    """Insert a module into a pipeline, and renumber the modules' forward options, which are keyed by their names."""
    options = getattr(model, "module_kwargs", None)
    model.insert(index, module)
    if options:
        model.module_kwargs = {
            str(int(name) + (int(name) >= index)) if name.isdigit() else name: value for name, value in options.items()
        }


@contextlib.contextmanager
def prompt_lengths_kept(model: nn.Module) -> Iterator[None]:
    """Restore the cached lengths of prompts after a ``with`` block that encodes with other prompts.

    A model caches how many tokens each prompt has; since 5.4 its Transformer does.
    """
    found = (getattr(module, "_prompt_length_mapping", None) for module in model.modules())
    kept = [(mapping, dict(mapping)) for mapping in found if isinstance(mapping, dict)]
    try:
        yield
    finally:
        for mapping, former in kept:
            mapping.clear()
            mapping.update(former)


def forget_prompt_lengths(model: nn.Module) -> None:
    """Clear the cached lengths of prompts, which come from another tokenizer."""
    for module in model.modules():
        mapping = getattr(module, "_prompt_length_mapping", None)
        if isinstance(mapping, dict):
            mapping.clear()


def steps_of(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a pipeline calls one after another, including those in the routes of a Router."""
    if not isinstance(model, (nn.Sequential, nn.ModuleDict)) and kind_of(model) != "Router":
        return
    for name, child in model.named_children():
        inner = f"{path}.{name}" if path else name
        routes = isinstance(child, (nn.Sequential, nn.ModuleDict)) or kind_of(child) == "Router"
        if routes:
            yield from steps_of(child, inner)
        else:
            yield inner, child


def outermost(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of these classes with their paths, each once, without searching inside them.

    A walk through all modules would take longer than anything else in attaching, and most are inside a Transformer.
    """
    seen: set[nn.Module] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        if isinstance(module, kinds):
            yield path, module
            return
        for name, child in module.named_children():
            yield from walk(f"{path}.{name}" if path else name, child)

    return walk("", model)


def similarity_of(model: Any) -> str | None:
    """Return the name of the similarity function that a model was given, or None.

    The property is not used, because reading it sets a default, and inspecting a model must not change it.
    """
    name = vars(model).get("_similarity_fn_name")
    return None if name is None else str(getattr(name, "value", name))
