"""What Sentence Transformers' own modules are and declare: names of attributes that differ between releases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
"""The key of features whose texts are laid out end to end in one row, since 5.4 with Flash Attention 2."""


def kind_of(module: nn.Module) -> str | None:
    """Return the name of the class of Sentence Transformers whose forward this module has, or None.

    The classes have moved (5.4), their names have not. A subclass with a forward of its own has a contract of its own.
    """
    for kind in type(module).__mro__:
        if kind.__name__ in KINDS and kind.__module__.partition(".")[0] == "sentence_transformers":
            return kind.__name__ if type(module).forward is kind.forward else None  # type: ignore[attr-defined]
    return None


def widths_of(module: Any) -> tuple[int | None, int | None]:
    """Return how wide the rows are that a module takes and gives, by its weights; None where they do not tell.

    What a module declares holds nothing: a Pooling of a declared width of 128 works on 384, and only reports 128.
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
    """Return which features a Dense or Normalize module reads and writes: the user's choice since 5.4 and 6.0."""
    name = getattr(module, "module_input_name", "sentence_embedding")
    return name, getattr(module, "module_output_name", None) or name


def layers_of(pooling: Any) -> int | None:
    """Return how many layers a WeightedLayerPooling module takes, embeddings included; None if any number fits."""
    weights = pooling.layer_weights.numel()
    return None if weights == 1 else int(pooling.layer_start + weights)


def routes_of(router: Any) -> list[list[nn.Module]]:
    """Return the modules of each route of a Router. One route always runs: before 5.0 it is Asym, where none may."""
    return [list(route.children()) for route in router.sub_modules.values()]


def steps_of(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a pipeline calls one after another, those in the routes of a Router among them."""
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
    """Yield the modules of these classes with their paths, each once, and look for no others inside of one.

    A walk through all modules takes longer than anything else that attaching does, and most are inside a Transformer.
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

    Its property sets the default one where none is set, and a look at a model is to change nothing.
    """
    name = vars(model).get("_similarity_fn_name")
    return None if name is None else str(getattr(name, "value", name))
