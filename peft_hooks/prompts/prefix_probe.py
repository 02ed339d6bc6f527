"""Check that a prefix becomes the keys and values of every layer, by comparison with a cache filled by hand."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compat import backbones, kv_cache
from ..compat import sentence_transformers as releases
from ..hooks.dispatcher import hooks_on
from . import probes
from .prefix import PutPrefixInAttention
from .prefix_forwards import Texts, in_a_batch, in_place_of
from .prefix_places import find_places
from .prefix_proof import put_in, why_not_right
from .prefix_record import Places
from .prefix_watched import UnknownPlacesError


class Way(NamedTuple):
    """How a prefix gets into the layers.

    Attributes:
        places: Where hooks have to put it, or None if the backbone takes it as a cache.
        cache: Why the backbone does not take it as a cache, as PEFT passes it, or None.
        reason: Why hooks cannot put it in either, or None.
    """

    places: Places | None = None
    cache: str | None = None
    reason: str | None = None


def prefix_is_used(transformer: Any, adapter: str) -> str | None:
    """Return why the backbone cannot use the prefix of ``adapter`` correctly, with or without hooks, or None."""
    return way_of_prefix(transformer, adapter).reason


def way_of_prefix(transformer: Any, adapter: str) -> Way:
    """Measure how the prefix of ``adapter`` gets into the layers.

    Nothing can be measured on meta or fake tensors, nor if there is no room for a text, which `fit_positions` reports.
    """
    peft_model: Any = releases.backbone_of(transformer)
    config, there = peft_model.peft_config[adapter], _places_of_hooks(peft_model)
    if there is not None:
        return Way(there)  # measured when the hooks were attached
    if not probes.can_measure(peft_model) or probes.longest_text(transformer, config.num_virtual_tokens) < 1:
        return Way()
    with probes.probing(peft_model, adapter):
        way = _measured(transformer, peft_model, adapter)
    _known[peft_model] = way.places
    return way


def _measured(transformer: Any, peft_model: Any, adapter: str) -> Way:
    as_cache = _why_no_cache(transformer, peft_model, adapter)
    if as_cache is None:
        return Way()
    try:
        places = find_places(peft_model.get_base_model(), peft_model.peft_config[adapter].num_layers)
        reason = why_not_right(transformer, peft_model, adapter, places)
    except UnknownPlacesError as error:
        reason = str(error)
    except Exception as error:  # whatever a backbone raises for these inputs
        reason = probes.in_a_line(error)
    if reason is None:
        return Way(places, as_cache)
    return Way(None, as_cache, f"{as_cache}; and hooks cannot put the prefix into its attention: {reason}")


def is_kept_by_peft(transformer: Any, adapter: str) -> bool:
    """Tell whether PEFT withholds a prefix from a classifier whose layers would take it with another task type.

    With ``SEQ_CLS`` PEFT reads the signature of the backbone's forward, and raises if that names no cache.
    """
    peft_model: Any = releases.backbone_of(transformer)
    segments = "token_type_ids" in getattr(transformer.tokenizer, "model_input_names", ())
    if segments or not type(peft_model).__name__.endswith("ForSequenceClassification"):
        return False
    try:
        find_places(peft_model.get_base_model(), peft_model.peft_config[adapter].num_layers)
    except Exception:  # whatever a backbone raises
        return False
    return True


# Measuring takes forwards, and the places are needed whenever a model's hooks are planned or compared.
_known: weakref.WeakKeyDictionary[nn.Module, Places | None] = weakref.WeakKeyDictionary()


def _places_of_hooks(peft_model: Any) -> Places | None:
    """Return where hooks on the model already put the prefix, or None."""
    there = (hook.places for hook in hooks_on(peft_model.base_model) if isinstance(hook, PutPrefixInAttention))
    return next(there, None)


def places_of_prefix(transformer: Any) -> Places | None:
    """Return where hooks put the prefix of a Transformer's adapter, or None if no hooks are needed.

    The result of the last measurement, or what the hooks of a copy know; otherwise it is measured now.
    """
    peft_model: Any = releases.backbone_of(transformer)
    if peft_model not in _known:
        there = _places_of_hooks(peft_model)
        if there is None:
            return way_of_prefix(transformer, str(peft_model.active_adapter)).places
        _known[peft_model] = there
    known = _known[peft_model]
    # If a module of the backbone was replaced, the hooks no longer fit; refreshing them measures again.
    return known if known is None or _all_exist(peft_model.base_model, known) else None


@contextlib.contextmanager
def prefix_put_in(transformer: Any) -> Iterator[None]:
    """Have hooks put in the prefix of a Transformer's adapter, if it needs them, for a ``with`` block of probes."""
    peft_model: Any = releases.backbone_of(transformer)
    methods = {releases.method_of(config) for config in releases.prompt_configs(transformer).values()}
    places = None if methods.isdisjoint(releases.PREFIX_METHODS) else places_of_prefix(transformer)
    with contextlib.nullcontext() if places is None else put_in(peft_model.base_model, places):
        yield


def _all_exist(backbone: nn.Module, places: Places) -> bool:
    """Tell whether every place still has a module."""
    paths = {path for path, _ in backbone.named_modules(remove_duplicate=False)}
    return paths.issuperset(one.path for one in places.projections)


def _why_no_cache(transformer: Any, peft_model: Any, adapter: str) -> str | None:
    """Return why the backbone does not use the prefix as PEFT passes it, or None if it does.

    Random keys and values, different in each layer, replace the adapter's, because mixed-up keys and values make no
    difference if they are alike. The rows of a text in PEFT's forward must equal those that the layers return when
    given a cache that is filled here, and must be the same in a batch.
    """
    config, backbone = peft_model.peft_config[adapter], peft_model.get_base_model()
    prefix = _drawn(config, next(backbone.parameters()))
    with in_place_of(peft_model, adapter, prefix):
        return _Layers(transformer, peft_model, backbone).why_wrong(prefix, config)


def _drawn(config: Any, like: Tensor) -> Tensor:
    """Return random rows of a prefix, ``[virtual, 2 * layers * width]``, without using the global generator."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(config.num_virtual_tokens, 2 * config.num_layers * config.token_dim, generator=generator)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return rows.to(like.device, dtype)


def key_values(rows: Tensor, config: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each layer, ``[1, heads, virtual, head size]`` each.

    A row of a prefix holds the first layer's keys, the first layer's values, the second layer's keys, and so on.
    """
    heads, size = config.num_attention_heads, config.token_dim // config.num_attention_heads
    parts = rows.view(rows.size(0), config.num_layers, 2, heads, size).permute(1, 2, 3, 0, 4).unsqueeze(2)
    return [(layer[0], layer[1]) for layer in parts]


class _Layers:
    """The layers of a backbone below its head, run by PEFT's forward and by hand."""

    def __init__(self, transformer: Any, peft_model: Any, backbone: Any) -> None:
        self.peft_model = peft_model
        self.backbone = backbone
        self.body = probes.body_of(backbone)
        self.transformer = transformer

    def why_wrong(self, prefix: Tensor, config: Any) -> str | None:
        """Return what is wrong with the rows of a text behind ``prefix``, or None."""
        texts = Texts(self.transformer, self.backbone, int(config.num_virtual_tokens))
        try:
            alone, together = self._through_peft(**texts.long), self._through_peft(**texts.both)
            short = self._through_peft(**texts.short)
            without = self.body.forward(**texts.long)[0]
        except Exception as error:  # whatever a backbone raises for keys and values that it does not expect
            return self._or_no_cache(f"rejects a prefix ({probes.in_a_line(error)})")
        if torch.equal(alone, without):
            return self._or_no_cache("ignores the prefix: its output is the same without it")
        right = self._by_hand(key_values(prefix, config), texts.long, without)
        if right is None:
            return "does not take keys and values passed to its layers, so a prefix cannot be checked"
        return _difference(alone, right) or in_a_batch(alone, together, short)

    def _through_peft(self, **text: Tensor) -> Tensor:
        """Return the rows that the layers return in PEFT's forward."""
        return probes.rows_of(self.backbone, self.peft_model, text)

    def _by_hand(self, pairs: list[tuple[Tensor, Tensor]], text: dict[str, Tensor], without: Tensor) -> Tensor | None:
        """Return the rows of a text behind keys and values, or None if the layers do not take them in any form.

        It runs ``forward`` instead of calling the module: hooks that are already on change positions, so that an
        ignored cache would look used.
        """
        mask = torch.ones(1, pairs[0][0].size(2) + text["input_ids"].size(1), dtype=torch.int64, device=without.device)
        for cache in kv_cache.filled_caches(pairs):
            try:
                rows: Tensor = self.body.forward(input_ids=text["input_ids"], attention_mask=mask, **cache)[0]
            except Exception:
                continue
            if rows.shape == without.shape and not torch.equal(rows, without):
                return rows
        return None

    def _or_no_cache(self, measured: str) -> str:
        """Return what was measured, with the reason if the signature shows it."""
        if any(backbones.accepts(self.body, name) for name in kv_cache.NAMES):
            return measured
        return f"has no cache (past_key_values) in its forward, where a prefix would go: it {measured}"


def _difference(alone: Tensor, right: Tensor) -> str | None:
    if alone.shape != right.shape:
        return f"returns {alone.size(1)} rows behind a prefix instead of {right.size(1)}"
    far = probes.apart(alone, right)
    if far <= probes.tolerance_of(alone.dtype):
        return None
    return (
        f"gives other rows than with the prefix as keys and values of its layers, by {far:.0e} of their length: "
        f"PEFT mixes the keys and values up"
    )
