"""Hooks that tell the rest of the pipeline about virtual tokens: on the Transformer, and on Pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .._format import shape_of
from .._public import public
from ..compat.sentence_transformers import active_virtual_tokens, adapter_summary, pooling_modes
from ..errors import DimensionError
from ..hooks.call import Call, Hook
from . import tensors as ft

VirtualTokens = Literal["auto", "pool", "ignore", "strip"]
Expected = int | Callable[[nn.Module], int] | None


def check_policy(virtual_tokens: str) -> None:
    """Raise ValueError unless ``virtual_tokens`` is one of the four policies."""
    if virtual_tokens not in get_args(VirtualTokens):
        known = ", ".join(repr(policy) for policy in get_args(VirtualTokens))
        raise ValueError(f"virtual_tokens={virtual_tokens!r} is not a policy: choose one of {known}")


@public
class ExtendPromptMask(Hook):
    """Make a Transformer's attention mask as long as its token embeddings. Goes on the Transformer module.

    PEFT's prompt methods put virtual tokens in front of the text inside the backbone, but the features keep the mask
    of the text. This hook measures their number, ``token_embeddings.size(1)`` minus the input's length, so it is right
    both on releases that extend the mask themselves (3.3 to 6.1, as float32, and wrongly for prefix tuning as well) and
    on those that do not. It works on a copy of the features: the caller's dict stays unchanged.
    Reported in https://github.com/huggingface/sentence-transformers/issues/2995; that virtual tokens count, as ones,
    was decided in https://github.com/huggingface/sentence-transformers/pull/3000, where zeros were requested as well.

    The module takes a dict with ``input_ids``, ``[batch, seq]``, or ``inputs_embeds``, and ``attention_mask``,
    ``[batch, seq]`` of any dtype, and returns one with ``token_embeddings``, ``float[batch, virtual + seq, hidden]``.
    The returned mask is ``[batch, virtual + seq]``, with the dtype and device of the given one.

    Args:
        virtual_tokens: ``"auto"`` and ``"pool"`` count virtual tokens, ``"ignore"`` keeps them with a mask of 0,
            ``"strip"`` cuts them from ``token_embeddings`` and ``all_layer_embeddings`` and leaves the mask.
        expected: How many virtual tokens the adapter adds, or a function of the Transformer that returns it; None
            trusts the measurement. Finding none is always fine: LoRA, prefix tuning, a disabled adapter.

    Raises:
        ValueError: If ``virtual_tokens`` is not a policy.
        DimensionError: In the forward, if there are fewer rows than tokens, or not as many more as expected.

    Example:
        >>> from peft_hooks import ExtendPromptMask, HookRegistry
        >>> from peft_hooks.testing import tiny_features
        >>> import torch
        >>> transformer = torch.nn.Identity()  # the features already contain three virtual tokens
        >>> with HookRegistry(transformer).attached(ExtendPromptMask(expected=3), to=""):
        ...     transformer(tiny_features(batch=2, seq=4, virtual_tokens=3))["attention_mask"]
        tensor([[1, 1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1, 1, 0]])
    """

    def __init__(self, virtual_tokens: VirtualTokens = "auto", expected: Expected = active_virtual_tokens) -> None:
        check_policy(virtual_tokens)
        self.virtual_tokens = virtual_tokens
        self._expected = expected

    def before(self, call: Call) -> None:
        call.first = features = dict(call.first)
        call.notes[self] = features.get("attention_mask")  # some releases replace it in the features

    def after(self, call: Call, output: Any) -> Any:
        given, embeddings = call.given_first, output.get("token_embeddings")
        length = ft.input_length(given)
        shape: Sequence[int] = () if embeddings is None else embeddings.shape
        if length is None or len(shape) != 3:
            return None  # the output is not one row per token: a CrossEncoder's scores, an image
        found: int = shape[1] - length
        mask = call.notes[self]
        if found == 0:
            return None if mask is None else {**output, "attention_mask": mask}
        expected = self._expected(call.module) if callable(self._expected) else self._expected
        if found < 0 or (expected is not None and found != expected):
            raise DimensionError(_other_length(call, embeddings, length, expected))
        if mask is None:
            mask = embeddings.new_ones((embeddings.size(0), length), dtype=torch.int64)
        if self.virtual_tokens == "strip":
            return _text_only({**output, "attention_mask": mask}, found)
        return {**output, "attention_mask": ft.extend_mask(mask, found, counted=self.virtual_tokens != "ignore")}


def _other_length(call: Call, embeddings: Tensor, length: int, expected: int | None) -> str:
    found = int(embeddings.size(1)) - length
    return (
        f"{call.where}: token_embeddings is {shape_of(embeddings)} for an input of {length} tokens, "
        f"{abs(found)} position{'s' if abs(found) != 1 else ''} {'more' if found > 0 else 'fewer'}, but "
        f"{adapter_summary(call.module)} adds {expected or 0}. A hook or module in between changed the length: "
        f"`with peft_hooks.HookRegistry(model).attached(LogShapes(), to='**')` shows where"
    )


def _text_only(features: dict[str, Any], virtual: int) -> dict[str, Any]:
    """Cut the first ``virtual`` rows from the token embeddings and from every hidden state."""
    features["token_embeddings"] = features["token_embeddings"][:, virtual:]
    if "all_layer_embeddings" in features:
        features["all_layer_embeddings"] = tuple(layer[:, virtual:] for layer in features["all_layer_embeddings"])
    return features


@public
class PreparePooling(Hook):
    """Show Pooling the rows that it should count, and restore the text's own rows after it. Goes on the Pooling module.

    - ``cls`` reads the text's own first token, or the first one after the prompt if the prompt is left out; with
      ``virtual_tokens="pool"`` it reads position 0, as 3.3 to 5.3 did.
    - A prompt that is left out (``include_prompt=False``) is left out at its real position, behind the virtual tokens;
      with ``"pool"`` the first ``prompt_length`` positions are left out, as 3.3 to 6.1 did.
    - With ``"ignore"``, weighted means count from the text's first token, as 6.2 does by itself.
    - With ``"auto"``, what follows Pooling (``output_value="token_embeddings"``) sees one row per token of the text.

    It takes features whose rows are virtual tokens, text and padding, in this order, as ``PutPaddingLast`` and
    ``ExtendPromptMask`` return them: ``token_embeddings``, ``float[batch, virtual + seq, hidden]``, ``attention_mask``,
    ``[batch, virtual + seq]`` of any dtype, and ``input_ids``, ``int64[batch, seq]``, or ``inputs_embeds``.
    Rows and masks keep their dtype and device. What Sentence Transformers itself did:
    https://github.com/huggingface/sentence-transformers/pull/3000

    Args:
        virtual_tokens: The policy, as in ``ExtendPromptMask``.
        missing: How many tokens of a prompt ``prompt_length`` does not count, as in releases before 5.0.

    Raises:
        ValueError: If ``virtual_tokens`` is not a policy.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, PreparePooling
        >>> from peft_hooks.testing import tiny_features
        >>> class First(torch.nn.Module):
        ...     pooling_mode = "cls"
        ...     def forward(self, features):
        ...         return {**features, "sentence_embedding": features["cls_token_embeddings"]}
        >>> features = {**tiny_features(batch=2, seq=6, virtual_tokens=3), "attention_mask": torch.ones(2, 9)}
        >>> pooling = First()
        >>> with HookRegistry(pooling).attached(PreparePooling(), to=""):
        ...     pooled = pooling(features)
        >>> torch.equal(pooled["sentence_embedding"], features["token_embeddings"][:, 3])  # not a virtual token
        True
        >>> pooled["token_embeddings"].shape  # one row for each token of the text
        torch.Size([2, 6, 8])
    """

    def __init__(self, virtual_tokens: VirtualTokens = "auto", missing: int = 0) -> None:
        check_policy(virtual_tokens)
        self.virtual_tokens = virtual_tokens
        self.missing = missing

    def before(self, call: Call) -> None:
        features = call.first
        embeddings, mask = features.get("token_embeddings"), features.get("attention_mask")
        length = ft.input_length(features)
        if embeddings is None or mask is None or length is None:
            return
        shape = embeddings.shape  # read once, for speed, as in `input_length`
        if len(shape) != 3 or mask.shape != shape[:2]:
            return  # nothing to prepare, or wrong: AssertDimensions says what
        virtual = shape[1] - length
        leaves_out = _leaves_out_prompt(call.module, features)
        if virtual == 0 and not leaves_out:
            return  # rows and mask are already those of the text, from its first token on
        call.notes[self] = virtual
        call.first = features = dict(features)
        modes = pooling_modes(call.module)
        front = self._rows_before_text(features, virtual, leaves_out or "weightedmean" in modes)
        if leaves_out:
            self._leave_out_prompt(features, front)
        if "cls" in modes and (virtual or "cls_token_embeddings" not in features):
            pooled = self.virtual_tokens == "pool" and virtual
            features["cls_token_embeddings"] = _first_row(features, front, leaves_out and not pooled)

    def _rows_before_text(self, features: dict[str, Any], virtual: int, by_position: bool) -> int:
        """Return how many rows precede the text; rows that do not count go behind it if positions matter."""
        if self.virtual_tokens == "ignore" and by_position:
            for key in ("token_embeddings", "attention_mask"):
                features[key] = features[key].roll(-virtual, 1)
            return 0
        return 0 if self.virtual_tokens == "pool" else virtual

    def _leave_out_prompt(self, features: dict[str, Any], front: int) -> None:
        length = features["prompt_length"] + self.missing
        if front or is_compiling():
            # Pooling leaves out from position 0, which is right only without rows in front; and the length would become
            # a constant in a graph.
            del features["prompt_length"]
            features["attention_mask"] = ft.leave_out(features["attention_mask"], front, length)
        else:
            features["prompt_length"] = length

    def after(self, call: Call, output: Any) -> Any:
        virtual = call.notes.get(self)
        if virtual is None:
            return None
        given = call.given_first
        restored = dict(output)
        for key in ("token_embeddings", "attention_mask", "prompt_length", "cls_token_embeddings"):
            if key in given:
                restored[key] = given[key]
            else:
                restored.pop(key, None)
        if self.virtual_tokens == "auto" and virtual:
            restored["attention_mask"] = restored["attention_mask"][:, virtual:]
            return _text_only(restored, virtual)
        return restored


def _leaves_out_prompt(pooling: nn.Module, features: Mapping[str, Any]) -> bool:
    return "prompt_length" in features and not getattr(pooling, "include_prompt", True)


def _first_row(features: Mapping[str, Any], front: int, leaves_out: bool) -> Tensor:
    """Return a copy of the text's own first row, ``[batch, hidden]``, after the prompt if that is left out.

    A copy, because before 5.4 max pooling overwrites rows that do not count in place (c0af86c0).
    """
    embeddings, mask = features["token_embeddings"], features["attention_mask"]
    if not leaves_out:
        first: Tensor = embeddings[:, front].clone()
        return first
    if "prompt_length" in features:  # Pooling has not left the prompt out yet
        mask = ft.leave_out(mask, 0, features["prompt_length"])
    index = ft.first_counted(mask[:, front:]) + front
    return ft.take(embeddings, index.unsqueeze(1)).squeeze(1)
