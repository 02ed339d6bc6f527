"""The hooks for hidden states: that the backbone returns them, and that a loss finds them again."""

from __future__ import annotations

import weakref
from typing import Any

from ..hooks.call import Call, Hook
from .layer_replay import Replay, layer_replay

_ASKED = ("output_hidden_states", "output_attentions")


class KeepHiddenStates(Hook):
    """Let the backbone's config say whether hidden states come out. Goes on PEFT's ``base_model``, the backbone.

    ``PeftModelForFeatureExtraction.forward`` hands ``output_hidden_states=None`` on where nobody asked, which newer
    backbones take for no, whatever ``config.output_hidden_states`` says. AdaptiveLayerLoss, Matryoshka2dLoss and
    WeightedLayerPooling ask through the config, and raise ``KeyError: 'all_layer_embeddings'``.
    """

    def before(self, call: Call) -> None:
        call.kwargs = {key: value for key, value in call.kwargs.items() if value is not None or key not in _ASKED}


class ReplayLayers(Hook):
    """Give AdaptiveLayerLoss the layers of its first pass again. Goes on the Transformer module.

    Since Sentence Transformers 5.4 the loss writes ``all_layer_embeddings`` into the features and reads them there in
    the next passes. ``ExtendPromptMask`` hands the Transformer a copy, so that the caller's features stay as they are:
    this hook takes the layers down in one pass and puts them into the copy in the next. They are kept for as long as
    the loss computes one value. Matryoshka2dLoss is the same loss.
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


# Not on a hook, which travels with the model. The features are kept, too, so that no other dict can be taken for them.
_passes: weakref.WeakKeyDictionary[Replay, list[tuple[Any, Any]]] = weakref.WeakKeyDictionary()
