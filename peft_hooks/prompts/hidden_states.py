"""Hooks for hidden states: make the backbone return them, and a loss find them again."""

from __future__ import annotations

import weakref
from typing import Any

from ..hooks.call import Call, Hook
from .layer_replay import Replay, layer_replay

_ASKED = ("output_hidden_states", "output_attentions")


class KeepHiddenStates(Hook):
    """Let the backbone's config decide whether hidden states are returned. Goes on PEFT's ``base_model``, the backbone.

    If the caller does not ask, ``PeftModelForFeatureExtraction.forward`` passes on ``output_hidden_states=None``, which
    newer backbones take as False, whatever ``config.output_hidden_states`` says. AdaptiveLayerLoss, Matryoshka2dLoss
    and WeightedLayerPooling ask through the config, and raise ``KeyError: 'all_layer_embeddings'``.
    """

    def before(self, call: Call) -> None:
        call.kwargs = {key: value for key, value in call.kwargs.items() if value is not None or key not in _ASKED}


class ReplayLayers(Hook):
    """Give AdaptiveLayerLoss the layers of its first pass again. Goes on the Transformer module.

    Since Sentence Transformers 5.4 the loss writes ``all_layer_embeddings`` into the features in its first pass, and
    reads them from there in the next ones. ``ExtendPromptMask`` passes a copy to the Transformer, so that the caller's
    features stay unchanged; this hook therefore saves the layers in one pass and puts them into the copy in the next.
    They are kept while the loss computes one value. The same applies to Matryoshka2dLoss, which builds on this loss.
    """

    def before(self, call: Call) -> None:
        replay = layer_replay(call.module)
        if replay is None or replay.layer_idx is None:
            return
        for features, layers in _passes.get(replay, ()):
            if features is call.given_first:
                call.first = {**call.first, "all_layer_embeddings": layers}

    def after(self, call: Call, output: Any) -> Any:
        replay = layer_replay(call.module)
        if replay is not None and replay.layer_idx is None and "all_layer_embeddings" in output:
            _passes.setdefault(replay, []).append((call.given_first, output["all_layer_embeddings"]))


# Not on the hook, which travels with the model. Keeping the features ensures that no other dict is mistaken for them.
_passes: weakref.WeakKeyDictionary[Replay, list[tuple[Any, Any]]] = weakref.WeakKeyDictionary()
