"""``SharePrompt``: the virtual tokens of a causal decoder run once, not once for each row of the batch.

In a causal backbone the virtual tokens stand first and see only themselves: their keys, values and hidden states are
the same in every row. PEFT repeats the prompt for each row, and the backbone computes it as often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._public import public
from ..compat.backbones import is_of_transformers
from ..compat.kv_cache import cache_field, can_be_traced, empty_cache, repeated
from ..hooks.call import Call, Hook
from ..hooks.onlookers import is_watched
from .randomness import has_random
from .text import text_around


@public
class SharePrompt(Hook):
    """Run the virtual tokens of a causal backbone once per forward. Goes on PEFT's ``base_model``, the backbone.

    The virtual tokens are cut from ``inputs_embeds`` and run as a batch of one; the text runs after their keys and
    values, which are given to every row; their hidden states are put back in front of every row. The
    output is what it would have been, to rounding, and so are the gradients. Nothing is kept for the next forward.

    It steps aside, and the forward runs as it would have, where there is nothing to win (one row), and where that would
    not be the same: dropout or gradient checkpointing in training, attentions that are asked for, keys and values or
    position ids that the caller gives, a backbone that was switched to attend to both sides; and hooks of others on the
    backbone or below, ``trace_shapes`` among them, which would see the layers run twice. In ``torch.compile`` both runs
    are in one graph, for the number of virtual tokens in the adapter's config; it steps aside there in training and
    with transformers before 4.54, whose caches have no layers.

    Args:
        longest: Step aside for virtual tokens and text longer than this together: a sliding window's length.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter
        >>> from peft_hooks.testing import TEXTS, tiny_model
        >>> model = tiny_model("llama", pooling="lasttoken")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> print(handle.describe().remarks[0])
        virtual tokens of Transformer '0': computed once for all rows of a batch
        >>> shared = model.encode(list(TEXTS))
        >>> with handle.switched(share_prompt=False):
        ...     bool(abs(model.encode(list(TEXTS)) - shared).max() < 1e-5)
        True
    """

    def __init__(self, longest: int | None = None) -> None:
        self.longest = longest
        self._in_graphs = can_be_traced()

    def before(self, call: Call) -> None:
        virtual = self._virtual_tokens(call)
        if not virtual:
            return
        backbone, kwargs = call.module, call.kwargs
        rows, mask = kwargs["inputs_embeds"], kwargs["attention_mask"]
        common = {**kwargs, "use_cache": True, "return_dict": True}
        alone = {**common, "inputs_embeds": rows[:1, :virtual], "attention_mask": mask[:1, :virtual]}
        after = {**common, "inputs_embeds": rows[:, virtual:]}
        # `forward`, not a call: the hooks on the backbone, this one among them, belong to the call that is running.
        call.on_other_rows = True
        try:
            prompt = backbone.forward(**alone, **empty_cache(backbone))
        finally:
            call.on_other_rows = False
        name = cache_field(prompt)
        if name is None or not _CUT.issuperset(key for key in prompt if key != name):
            return  # it keeps no keys and values here, or gives something that cannot be put together again
        after[name] = repeated(prompt[name], rows.size(0))
        call.notes[self] = prompt, name
        call.args, call.kwargs = (), after

    def _virtual_tokens(self, call: Call) -> int:
        """Return how many rows in front are virtual tokens that can be shared; 0 to step aside."""
        size = text_around(call) if self._runs_here(call) else None
        rows, mask = call.kwargs.get("inputs_embeds"), call.kwargs.get("attention_mask")
        if size is None or size.uneven or size.batch < 2 or not size.length or rows is None or mask is None:
            return 0
        virtual: int = rows.size(1) - size.length
        fits = rows.size(0) == size.batch and mask.shape == rows.shape[:2] and virtual > 0
        if is_compiling():  # a number of which the graph holds, not one that it computes
            fits, virtual = fits and virtual == size.virtual, size.virtual
        if not fits or (self.longest is not None and rows.size(1) > self.longest):
            return 0
        if call.args or _asks_for_more(call) or attends_to_both_sides(getattr(call.module, "config", None)):
            return 0
        return 0 if has_random(call.module) or is_watched(call, is_of_transformers) else virtual

    def _runs_here(self, call: Call) -> bool:
        """Tell whether a graph that is compiled now can have it; where none is, it can."""
        return not is_compiling() or (self._in_graphs and not call.module.training)

    def after(self, call: Call, output: Any) -> Any:
        noted_here = call.notes.get(self)
        if noted_here is None:
            return None
        prompt, name = noted_here
        asked, config = call.given_kwargs, call.module.config
        fields = {key: output[key] for key in output}
        last = output["last_hidden_state"]
        fields["last_hidden_state"] = joined = _join(prompt["last_hidden_state"], last)
        if "hidden_states" in fields:
            layers = zip(prompt["hidden_states"], output["hidden_states"], strict=True)
            fields["hidden_states"] = tuple(joined if own is last else _join(first, own) for first, own in layers)
        if not _said(asked, "use_cache", config):
            fields.pop(name, None)
        whole = type(output)(**fields)
        return whole if _said(asked, "return_dict", config) else whole.to_tuple()


def _said(kwargs: Mapping[str, Any], option: str, config: Any) -> bool:
    """Return an option of a backbone's forward: of the call, or else of the config."""
    value = kwargs.get(option)
    return bool(getattr(config, option, True) if value is None else value)


def _join(prompt: Tensor, text: Tensor) -> Tensor:
    return torch.cat([prompt.expand(text.size(0), -1, -1), text], dim=1)


# What is one row for each token in an output, or, in what is given, can be cut in two or leaves the rows as they are.
_CUT = frozenset(["last_hidden_state", "hidden_states"])
_KNOWN = frozenset(["attention_mask", "inputs_embeds", "output_hidden_states", "return_dict"])


def _asks_for_more(call: Call) -> bool:
    """Tell whether the backbone is given or asked for anything else: keys and values, attentions, segment ids."""
    if any(value is not None and value is not False and key not in _KNOWN for key, value in call.kwargs.items()):
        return True
    config = getattr(call.module, "config", None)
    return bool(getattr(config, "output_attentions", False) or getattr(config, "output_router_logits", False))


def attends_to_both_sides(config: Any) -> bool:
    """Tell whether a decoder's config says that its tokens see those that come after them."""
    return getattr(config, "is_causal", None) is False or bool(getattr(config, "use_bidirectional_attention", False))


class EncodePromptOnce(Hook):
    """Run a prompt's network on one row, not on every row of the batch. Goes on the adapter's prompt encoder.

    PEFT gives the same indices for every row: to prefix tuning's network (``prefix_projection``) and multitask prompt
    tuning in every release, to P-tuning's in 0.10.
    """

    def before(self, call: Call) -> None:
        size, indices = None if is_compiling() else text_around(call), call.first
        if size is None or size.batch < 2 or indices.dim() != 2 or indices.size(0) != size.batch:
            return
        if has_random(call.module):
            size.uneven = True
            return
        call.first = indices[:1]
        call.notes[self] = size.batch

    def after(self, call: Call, output: Any) -> Any:
        batch = call.notes.get(self)
        return None if batch is None else output.expand(batch, *output.shape[1:])
