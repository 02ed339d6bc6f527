"""Ready-made contracts: what Sentence Transformers' own modules take and return, read from their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._arguments import need_module
from .._public import public
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..compat.st_modules import FLATTENED
from ..hooks.call import Call
from .bindings import Bindings
from .check import Reason
from .hook import AssertDimensions, OnError
from .spec import Contract

Both = tuple[Contract, Contract]

TOKENS = {"token_embeddings": "float: batch seq hidden", "attention_mask": "batch seq"}
# Virtual tokens have no ids, so the ids have a length of their own.
TRANSFORMER = {**TOKENS, "input_ids": "batch ..."}


class Check(NamedTuple):
    """A ready-made hook and its module."""

    path: str
    module: nn.Module
    hook: AssertDimensions


@public
def contract_of(module: nn.Module) -> Both | None:
    """Return the contracts of a Sentence Transformers module, or None for any other module.

    Args:
        module: A Transformer, Pooling, Dense, Normalize, LayerNorm, Dropout, CNN, LSTM, WordEmbeddings, WordWeights,
            WeightedLayerPooling, SpladePooling, MultiVectorMask or Router, or a subclass with the same forward.

    Returns:
        The contracts of its inputs and outputs, as ``AssertDimensions`` takes them.

    Raises:
        TypeError: If ``module`` is not an ``nn.Module``.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore")  # the import has been deprecated since 5.4
        >>> from sentence_transformers.models import Dense
        >>> from peft_hooks import contract_of
        >>> contract_of(Dense(384, 128))[0]
        {'sentence_embedding!': 'float: batch ?in_features=384'}
    """
    need_module(module, "contract_of")
    make = _CONTRACTS.get(modules.kind_of(module) or "")
    return None if make is None else make(module)


def checks(
    model: nn.Module,
    *,
    causes: Mapping[int, str] | None = None,
    on_error: OnError = "raise",
    named: Iterable[tuple[str, nn.Module]] | None = None,
) -> Iterator[Check]:
    """Yield a hook for every module of ``model`` that has a contract, with shared bindings.

    A forward begins at the first module of the pipeline, and at every Transformer. After a module of an unknown kind
    nothing is bound, because it may change any dimension. ``named`` are the model's modules, if they are known already.
    """
    bindings = Bindings()
    steps = {module: path for path, module in modules.steps_of(model)}
    first = next(iter(model.children()), None) if isinstance(model, nn.Sequential) else None
    for path, module in model.named_modules() if named is None else named:
        contract = contract_of(module)
        starts = module is first or modules.kind_of(module) == "Transformer"
        ends = contract is None and module in steps
        if contract is None and not starts and not ends:
            continue
        inputs, outputs = contract or ({}, {})
        kind = AssertPooled if modules.kind_of(module) == "Pooling" else AssertDimensions
        hook = kind(
            inputs,
            outputs,
            bindings=bindings,
            starts=starts,
            ends=ends,
            causes=causes,
            on_error=on_error,
            unless=FLATTENED,
        )
        yield Check(path, module, hook)


class AssertPooled(AssertDimensions):
    """Check that a Pooling returns one part per mode; the modes may change while the hooks are on."""

    def after(self, call: Call, output: Any) -> None:
        super().after(call, output)
        if self not in call.notes:
            return  # attached while the module was running
        tokens, pooled = (features.get(key) for features, key in zip((call.first, output), _POOLED))
        if not isinstance(tokens, Tensor) or not isinstance(pooled, Tensor) or FLATTENED in call.first:
            return
        width, modes = tokens.size(-1), releases.count_of_modes(call.module)
        if pooled.size(-1) != width * modes:
            shape = f"{list(pooled.shape)}, but {modes} mode{'' if modes == 1 else 's'} of width {width} "
            self._report(Reason(f"sentence_embedding is {shape}make {width * modes}"), call, "output")


_POOLED = ("token_embeddings", "sentence_embedding")


def causes_of(model: nn.Module, named: Iterable[tuple[str, nn.Module]] | None = None) -> dict[int, str]:
    """Return hints by size difference: the numbers of virtual tokens of the adapters in any model."""
    modules_inside = model.named_modules() if named is None else named
    way_out = "extend the mask on the left, torch.nn.functional.pad(mask, (virtual_tokens, 0), value=1)"
    if cross.inputs_of(model):
        way_out = "attach the mask hooks, peft_hooks.register_prompt_mask_hooks(model)"
    causes: dict[int, str] = {}
    kind = releases.peft_class()
    wrapped: list[Any] = [] if kind is None else [one for _, one in modules_inside if isinstance(one, kind)]
    for peft_model in wrapped:
        for name, config in peft_model.peft_config.items():
            if config.is_prompt_learning:
                what = f"num_virtual_tokens of the {releases.method_of(config)} adapter {name!r}"
                causes.setdefault(config.num_virtual_tokens, f"{what}: {way_out}")
    return causes


def _transformer(module: Any) -> Both:
    return {}, TRANSFORMER


def _pooling(module: Any) -> Both:
    tokens = {
        "token_embeddings!": "float: batch seq ?width",
        "attention_mask": "batch seq",
        "token_weights_sum": "batch",
    }
    return tokens, {"sentence_embedding": "float: batch ?pooled"}


def _dense(module: Any) -> Both:
    taken, returned = modules.widths_of(module)
    return _one_feature(module, _named("?in_features", taken), _named("?out_features", returned))


def _normalize(module: Any) -> Both:
    return _one_feature(module, "?width", "?width", required=False)


def _layer_norm(module: Any) -> Both:
    width = _named("?dimension", modules.widths_of(module)[0])
    return _one_feature(module, width, width)


def _named(name: str, size: int | None) -> str:
    return name if size is None else f"{name}={size}"


def _one_feature(module: Any, taken: str, returned: str, required: bool = True) -> Both:
    """Return the contract of a module that maps the last dimension of one feature."""
    read, write = modules.names_in_and_out(module)
    rows = {"sentence_embedding": "batch", "token_embeddings": "batch seq"}.get(read, "batch ...")
    inputs = {f"{read}!" if required else read: f"float: {rows} {taken}"}
    return inputs, {write: f"float: {rows} {returned}"}


def _cnn(module: Any) -> Both:
    taken, returned = modules.widths_of(module)
    inputs = {"token_embeddings!": f"float: batch seq {_named('?in_channels', taken)}"}
    kept = {"attention_mask": "batch seq"}
    return {**inputs, **kept}, {"token_embeddings": f"float: batch seq {_named('?out_channels', returned)}"}


def _lstm(module: Any) -> Both:
    taken, returned = modules.widths_of(module)
    inputs = {
        "token_embeddings!": f"float: batch seq {_named('?width', taken)}",
        "attention_mask": "batch seq",
        "sentence_lengths!": "int: batch",
    }
    return inputs, {"token_embeddings": f"float: batch seq {_named('?hidden', returned)}"}


def _word_embeddings(module: Any) -> Both:
    wide = f"float: batch seq {_named('?width', modules.widths_of(module)[1])}"
    outputs = {"token_embeddings": wide, "attention_mask": "batch seq", "sentence_lengths": "batch"}
    return {"input_ids!": "int: batch seq"}, outputs


def _word_weights(module: Any) -> Both:
    inputs = {
        "token_embeddings!": "float: batch seq ?width",
        "attention_mask!": "batch seq",
        "input_ids!": "int: batch seq",
    }
    return inputs, {"token_embeddings": "float: batch seq ?width", "token_weights_sum": "batch"}


def _weighted_layers(module: Any) -> Both:
    # Since 5.4 a pipeline without layers passes, and gets the last layer instead of the weighted mean.
    tokens, stacked = "batch seq ?width", _named("?layers", modules.layers_of(module))
    return {"all_layer_embeddings!": f"float: {stacked} {tokens}"}, {"token_embeddings": f"float: {tokens}"}


def _splade(module: Any) -> Both:
    inputs = {"token_embeddings!": "float: batch seq ?vocabulary", "attention_mask": "batch seq"}
    return inputs, {"sentence_embedding": "float: batch ?vocabulary"}


def _multi_vector_mask(module: Any) -> Both:
    tokens = {"token_embeddings": "float: batch seq ?width", "attention_mask": "batch seq"}
    asked = {"input_ids": "batch seq", "query_expansion_positions": "batch seq"}
    return {**tokens, **asked}, tokens


def _router(module: Any) -> Both | None:
    """Return the contract of what all routes return, if they agree."""
    ends = [contract_of(route[-1]) if route else None for route in modules.routes_of(module)]
    known = [end[1] for end in ends if end is not None]
    if not known or len(known) < len(ends) or any(other != known[0] for other in known):
        return None
    return {}, known[0]


_CONTRACTS: dict[str, Callable[[Any], Both | None]] = {
    "CNN": _cnn,
    "Dense": _dense,
    "Dropout": _normalize,
    "LSTM": _lstm,
    "LayerNorm": _layer_norm,
    "MultiVectorMask": _multi_vector_mask,
    "Normalize": _normalize,
    "Pooling": _pooling,
    "Router": _router,
    "SpladePooling": _splade,
    "Transformer": _transformer,
    "WeightedLayerPooling": _weighted_layers,
    "WordEmbeddings": _word_embeddings,
    "WordWeights": _word_weights,
}
