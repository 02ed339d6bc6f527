"""``SharePrompt``: run the virtual tokens of a causal decoder once, not once for each row of the batch.

In a causal backbone the virtual tokens come first and see only themselves, so their keys, values and hidden states are
the same in every row. PEFT repeats the prompt for each row, and the backbone computes it just as often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._public import public
from ..compat.backbones import is_of_transformers
from ..compat.kv_cache import cache_field, can_be_traced, copied, empty_cache, grows, repeated
from ..compat.peft_state import prompt_of
from ..hooks.call import Call, Hook
from ..hooks.onlookers import is_watched, others_below
from .kept import Kept, is_keeping
from .randomness import has_random
from .task import BY_ROW, tasks_given
from .text import Text, text_around


@public
class SharePrompt(Hook):
    """Run the virtual tokens of a causal backbone once per forward. Goes on PEFT's ``base_model``, the backbone.

    The virtual tokens are cut from ``inputs_embeds`` and run as a batch of one; the text runs after their keys and
    values, which every row gets; their hidden states are put back in front of every row. The output is the same, up to
    rounding, and so are the gradients. Nothing is kept for the next forward unless ``keep`` is set.

    The backbone is called with ``inputs_embeds``, ``float[batch, virtual + seq, hidden]``, and ``attention_mask``,
    ``[batch, virtual + seq]``; ``last_hidden_state`` and all ``hidden_states`` have the shape of ``inputs_embeds``.

    It steps aside, and the forward runs as usual, if there is nothing to gain (one row), or if the result would differ:
    dropout or gradient checkpointing in training, requested attentions, keys and values or position ids from the
    caller, a backbone that was switched to bidirectional attention; and if someone else's hooks are on the backbone or
    below, including ``trace_shapes``, because they would see the layers run twice. In ``torch.compile`` both runs are
    in one graph, for the number of virtual tokens in the adapter's config; there it steps aside in training and with
    transformers before 4.54, whose caches have no layers.

    Args:
        longest: Step aside if virtual tokens and text are together longer than this, a sliding window's length.
        keep: In ``no_grad`` and ``inference_mode``, keep the result for each adapter's virtual tokens and use it in
            later forwards, even for a single row, until the weights or anything else are seen to have changed.

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

    def __init__(self, longest: int | None = None, keep: bool = False) -> None:
        self.longest = longest
        self.keep = keep
        self._in_graphs = can_be_traced()
        self._kept = Kept()

    def before(self, call: Call) -> None:
        virtual = self._virtual_tokens(call)
        prompt = self._prompt(call, virtual) if virtual else None
        if prompt is None:
            return
        rows = call.kwargs["inputs_embeds"]
        after = {**call.kwargs, "use_cache": True, "return_dict": True, "inputs_embeds": rows[:, virtual:]}
        after[prompt.name] = repeated(prompt.cache, rows.size(0))
        call.notes[self] = prompt
        call.args, call.kwargs = (), after

    def _prompt(self, call: Call, virtual: int) -> _Prompt | None:
        """Return the result for the virtual tokens, computed now or kept; None if the forward cannot be split."""
        if not self._keeps(call):
            if self.keep and not is_compiling():
                self._kept.clear()  # weights in training soon differ from those that it was computed with
            return _run(call, virtual)
        size, rows = text_around(call), call.kwargs["inputs_embeds"]
        assert size is not None
        name, encoder, known = prompt_of(size.entry)
        if others_below(encoder, call, is_of_transformers):
            return _run(call, virtual)
        asked = {key: value for key, value in call.kwargs.items() if key not in _OF_ROWS}
        asked.update(virtual=virtual, dtype=rows.dtype, device=rows.device, mask=call.kwargs["attention_mask"].dtype)
        first = rows[:1, :virtual]
        prompt: _Prompt | None = self._kept.get(name, rows.device, asked, first)
        if prompt is None:
            prompt = _run(call, virtual)
            if prompt is None or not grows(prompt.cache, virtual):
                return prompt
            self._kept.put(name, prompt, (call.module, encoder), rows.device, asked, first, known)
        return prompt._replace(cache=copied(prompt.cache))

    def _keeps(self, call: Call) -> bool:
        return self.keep and is_keeping(call.module)

    def _virtual_tokens(self, call: Call) -> int:
        """Return how many rows in front are virtual tokens that can be shared, or 0 to step aside."""
        size = text_around(call) if self._runs_here(call) else None
        rows, mask = call.kwargs.get("inputs_embeds"), call.kwargs.get("attention_mask")
        if size is None or size.uneven or not size.length or rows is None or mask is None:
            return 0
        virtual: int = rows.size(1) - size.length
        enough = size.batch > 1 or self._keeps(call)
        fits = enough and rows.size(0) == size.batch and mask.shape == rows.shape[:2] and virtual > 0
        if is_compiling():  # a constant for which the graph is valid, not a number that it computes
            fits, virtual = fits and virtual == size.virtual, size.virtual
        if not fits or (self.longest is not None and rows.size(1) > self.longest):
            return 0
        if call.args or _asks_for_more(call) or attends_to_both_sides(getattr(call.module, "config", None)):
            return 0
        return 0 if has_random(call.module) or is_watched(call, is_of_transformers) else virtual

    def _runs_here(self, call: Call) -> bool:
        """Tell whether sharing works here: always, except in some graphs while they are compiled."""
        return not is_compiling() or (self._in_graphs and not call.module.training)

    def after(self, call: Call, output: Any) -> Any:
        prompt: _Prompt | None = call.notes.get(self)
        if prompt is None:
            return None
        asked, config = call.given_kwargs, call.module.config
        fields = {key: output[key] for key in output}
        last = output["last_hidden_state"]
        fields["last_hidden_state"] = joined = _join(prompt.output["last_hidden_state"], last)
        if "hidden_states" in fields:
            layers = zip(prompt.output["hidden_states"], output["hidden_states"], strict=True)
            fields["hidden_states"] = tuple(joined if own is last else _join(first, own) for first, own in layers)
        if not _option_of(asked, "use_cache", config):
            fields.pop(prompt.name, None)
        whole = type(output)(**fields)
        return whole if _option_of(asked, "return_dict", config) else whole.to_tuple()


class _Prompt(NamedTuple):
    """The output for the virtual tokens as a batch of one; the name of its cache; and that cache."""

    output: Mapping[str, Any]
    name: str
    cache: Any


def _run(call: Call, virtual: int) -> _Prompt | None:
    """Run the virtual tokens as a batch of one; return None if a text cannot follow the result."""
    backbone, kwargs = call.module, call.kwargs
    rows, mask = kwargs["inputs_embeds"], kwargs["attention_mask"]
    common = {**kwargs, "use_cache": True, "return_dict": True}
    alone = {**common, "inputs_embeds": rows[:1, :virtual], "attention_mask": mask[:1, :virtual]}
    # `forward` instead of a call: the backbone's hooks, including this one, belong to the call that is running.
    call.on_other_rows = True
    try:
        output = backbone.forward(**alone, **empty_cache(backbone))
    finally:
        call.on_other_rows = False
    name = cache_field(output)
    if name is None or not _CUT.issuperset(key for key in output if key != name):
        return None  # there is no cache, or the output has something that cannot be joined again
    rest = {key: output[key] for key in output if key != name}
    return _Prompt(rest, name, output[name])


def _option_of(kwargs: Mapping[str, Any], option: str, config: Any) -> bool:
    """Return an option of a backbone's forward, from the call or else from the config."""
    value = kwargs.get(option)
    return bool(getattr(config, option, True) if value is None else value)


def _join(prompt: Tensor, text: Tensor) -> Tensor:
    return torch.cat([prompt.expand(text.size(0), -1, -1), text], dim=1)


# Outputs with one row per token, and arguments that can be split or do not affect the rows.
_CUT = frozenset(["last_hidden_state", "hidden_states"])
_OF_ROWS = frozenset(["attention_mask", "inputs_embeds"])
_KNOWN = frozenset(["attention_mask", "inputs_embeds", "output_hidden_states", "return_dict"])


def _asks_for_more(call: Call) -> bool:
    """Tell whether the backbone is given or asked for anything else, such as a cache, attentions or segment ids."""
    if any(value is not None and value is not False and key not in _KNOWN for key, value in call.kwargs.items()):
        return True
    config = getattr(call.module, "config", None)
    return bool(getattr(config, "output_attentions", False) or getattr(config, "output_router_logits", False))


def attends_to_both_sides(config: Any) -> bool:
    """Tell whether a decoder's config says that its tokens see later tokens."""
    return getattr(config, "is_causal", None) is False or bool(getattr(config, "use_bidirectional_attention", False))


class EncodePromptOnce(Hook):
    """Run a prompt's network on one row, not on every row of the batch. Goes on the adapter's prompt encoder.

    PEFT passes the same indices for every row: to the networks of prefix tuning (``prefix_projection``) and multitask
    prompt tuning in every release, to that of P-tuning in 0.10.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._kept = Kept()

    def before(self, call: Call) -> None:
        size, indices = None if is_compiling() else text_around(call), call.first
        keep = self.keep and is_keeping(call.module)
        if size is None or indices.dim() != 2 or not self._is_for_all(indices, size, keep):
            return
        if has_random(call.module) or call.notes.get(BY_ROW) or (keep and tasks_given(call) is not None):
            size.uneven = True
            return
        kept = self._kept_rows(call, indices) if keep else None
        rows = 1 if kept is None else 0  # with no rows the network computes nothing
        call.first = indices[:rows]
        if "task_ids" in call.kwargs:
            call.kwargs = {**call.kwargs, "task_ids": call.kwargs["task_ids"][:rows]}
        call.notes[self] = indices.size(0), kept

    @staticmethod
    def _is_for_all(indices: Tensor, size: Text, keep: bool) -> bool:
        """Tell whether the network gets more rows than it needs: one, or none if its result may be kept."""
        rows = indices.size(0)
        return rows == size.batch > 1 or (keep and rows in (1, size.batch))

    def _kept_rows(self, call: Call, indices: Tensor) -> Any:
        if is_watched(call, is_of_transformers):
            return None
        return self._kept.get(None, indices.device, {"indices": indices.shape[1:]})

    def after(self, call: Call, output: Any) -> Any:
        noted_here = call.notes.get(self)
        if noted_here is None:
            return None
        batch, kept = noted_here
        if kept is None and self.keep and is_keeping(call.module):
            asked = {"indices": call.given_first.shape[1:]}
            self._kept.put(None, output, (call.module,), output.device, asked)
        rows = output if kept is None else kept
        return rows.expand(batch, *rows.shape[1:])
