"""Makes a tokenizer whose post-processor puts virtual tokens before every text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedModelError
from .framing import Front, framed, post_processor

# Texts that must give the same tokens as before, after the virtual ones; `{}` is the name of a virtual token.
_TEXTS = (
    "a cat",
    "",
    " two  spaces\tand a tab\n",
    "The old captain's 3 boats (red, small) cost $4.50 - don't they?",
    "ÀÉÎõü ß Ω жук 猫が好き 🐈‍⬛ \u200b\ufeff",
    "[CLS] [SEP] [MASK] <s> </s> <pad> <mask> <|endoftext|> [PAD] <unk>",
    "{}",
    "a {} cat",
    "x{}s",
)


def first_free_id(tokenizer: Any) -> int:
    """Return the lowest id above all that the tokenizer can give."""
    highest: int = max([len(tokenizer) - 1, *tokenizer.get_vocab().values()])
    return highest + 1


def first_special_id(tokenizer: Any) -> int | None:
    """Return the id of the special token that a text begins with; None if it begins with one of its own tokens."""
    first = framed(_alone(tokenizer), pair=False)[0]
    return first.id if first.which is None else None


def with_front(tokenizer: Any, front: Front) -> tuple[Any, Front]:
    """Return a tokenizer that puts ``front`` before every text and pair, and the front with its tokens' names.

    Everything else stays the same, except for the class: tokenizer classes of single architectures write their own
    post-processor when they are loaded.

    Raises:
        UnsupportedModelError: If its texts get other tokens than before.
    """
    from tokenizers import Tokenizer

    former = _alone(tokenizer)
    state = json.loads(former.to_str())
    wrong = None
    for tried in (_named(state, front), front):
        rewritten = json.loads(json.dumps(state))
        _add_names(rewritten, tried)
        rewritten["post_processor"] = post_processor(former, rewritten["post_processor"], tried)
        made = Tokenizer.from_str(json.dumps(rewritten))
        made.encode_special_tokens = former.encode_special_tokens
        wrong = _first_wrong(former, made, tried)
        if wrong is None:
            return _wrapped(tokenizer, made, len(front.ids)), tried
    raise UnsupportedModelError(
        f"the tokenizer {type(tokenizer).__name__} gives different tokens for {wrong!r} after virtual tokens: use "
        f"peft_hooks.save(model, path), and load it with this library"
    )


def _alone(tokenizer: Any) -> Any:
    """Return a copy of the inner tokenizer, without the truncation and padding that its last call set."""
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None  # other engines would apply them
    alone = Tokenizer.from_str(json.dumps(state))
    alone.encode_special_tokens = backend.encode_special_tokens
    return alone


# The settings of transformers' wrapper around a tokenizer, by their argument names.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEPT = ("padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces", "chat_template")


def _wrapped(former: Any, made: Any, virtual: int) -> Any:
    """Wrap a tokenizer for transformers, in a class of no single architecture, with the settings of the former one."""
    from transformers import PreTrainedTokenizerFast

    special = {name: former.special_tokens_map.get(name) for name in _SPECIAL}
    kept = {name: getattr(former, name, None) for name in _KEPT}
    length = former.model_max_length
    settings = {name: value for name, value in {**special, **kept}.items() if value is not None}
    wrapper: Any = PreTrainedTokenizerFast  # not typed in every release
    tokenizer = wrapper(tokenizer_object=made, model_max_length=longer(length, virtual), **settings)
    if getattr(former, "split_special_tokens", False):
        tokenizer.split_special_tokens = True
    return tokenizer


def longer(length: Any, virtual: int) -> Any:
    """Return a length limit with room for the virtual tokens; None, and numbers that mean no limit, stay."""
    return length + virtual if isinstance(length, int) and length < NO_LIMIT else length


NO_LIMIT = 10**9
"""Limits from here on mean no limit: transformers uses 1e30 if nothing is known."""


def _named(state: dict[str, Any], front: Front) -> Front:
    """Return the front with names, if the model's vocabulary maps names to ids (that of a Unigram is a list)."""
    vocabulary = state["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return front
    names = [f"<|virtual_{number}|>" for number in range(len(front.ids))]
    names += ["<|virtual_first|>"] if front.first is not None else []
    taken = {*vocabulary, *(token["content"] for token in state["added_tokens"])}
    while taken.intersection(names):
        names = [name.replace("<|", "<|_") for name in names]
    return replace(front, names=tuple(names))


def _add_names(state: dict[str, Any], front: Front) -> None:
    """Put the names into the model's own vocabulary: a text that spells out an added token would get its id."""
    if front.names is None:
        return
    vocabulary = state["model"]["vocab"]
    for token in state["added_tokens"]:  # without them it has holes, which cause a warning on every save
        vocabulary.setdefault(token["content"], token["id"])
    vocabulary.update(zip(front.names, front.all_ids))


def _first_wrong(former: Any, made: Any, front: Front) -> str | None:
    """Return the first text whose tokens are not the virtual ones and then its former ones; None if all are right."""
    names = front.names or (f"<|virtual_{front.ids[0]}|>",)
    texts = [text.replace("{}", name) for text in _TEXTS for name in (names if "{}" in text else names[:1])]
    for text in texts:
        if not _same(former, made, front, (text,)) or not _same(former, made, front, (text, "a dog")):
            return text
    return None


def _same(former: Any, made: Any, front: Front, texts: tuple[str, ...]) -> bool:
    """Tell whether a text or a pair has the same tokens after the virtual ones, whole and truncated to any length."""
    framing = former.num_special_tokens_to_add(len(texts) == 2)
    for limit in (None, framing + 2, framing + 5):
        before, now = _encoded(former, texts, limit), _encoded(made, texts, limit and limit + len(front.ids))
        expected = [*[0] * len(front.ids), *before.type_ids] if front.segments else [0] * len(now.ids)
        if now.ids != front.before(before.ids) or now.type_ids != expected:
            return False
    return True


def _encoded(backend: Any, texts: tuple[str, ...], limit: int | None) -> Any:
    if limit is None:
        return backend.encode(*texts)
    backend.enable_truncation(limit)
    try:
        return backend.encode(*texts)
    finally:
        backend.no_truncation()
