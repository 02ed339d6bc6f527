"""A tokenizer that puts virtual tokens before every text: of every kind, with every post-processor."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from peft_hooks.checkpoints.framing import Front, framed
from peft_hooks.checkpoints.merged_tokenizer import first_free_id, first_special_id, with_front
from peft_hooks.errors import UnsupportedModelError

from ...tools.tokenizers import CORPUS, KINDS, SPECIAL, post_processors, trained, with_special_beyond, wrapped

POSTS = dict(post_processors())
TEXTS = (
    *CORPUS,
    "",
    "a",
    " leading, trailing ",
    "<s> a </s> <mask> <pad>",
    "<|virtual_0|>",
    "a<|virtual_1|>, <|virtual_2|>s <|VIRTUAL_0|>",
    "<|virtual_first|>",
    "\u200b\ufeff\x00 \u0301 🐈‍⬛",
    "word" * 40,
)
VIRTUAL = 3


def made(kind: str, post: str, beyond: bool = False) -> Any:
    """Return a tokenizer as transformers wraps it."""
    tokenizer = trained(kind)
    if POSTS[post] is not None:
        tokenizer.post_processor = POSTS[post]
    return wrapped(with_special_beyond(tokenizer) if beyond else tokenizer)


def front_of(tokenizer: Any, behind_first: bool = False) -> Front:
    """Return new ids behind those of a tokenizer."""
    free = first_free_id(tokenizer)
    ids = tuple(range(free, free + VIRTUAL))
    if not behind_first:
        return Front(ids)
    return Front(ids, first=free + VIRTUAL, stands_for=first_special_id(tokenizer))


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_and_pair_has_its_tokens_behind_the_virtual_ones(kind: str, post: str) -> None:
    """Whole and cut at any length, with special tokens beyond the vocabulary and without, names spelled out or not."""
    for beyond in (False, True):
        tokenizer = made(kind, post, beyond)
        front = front_of(tokenizer)
        found, _ = with_front(tokenizer, front)
        for text in TEXTS:
            for texts in ((text,), (text, "a cat")):
                for limit in (None, 8, 17):
                    options = {} if limit is None else {"truncation": True, "max_length": limit}
                    longer = {} if limit is None else {"truncation": True, "max_length": limit + VIRTUAL}
                    before, now = tokenizer(*texts, **options), found(*texts, **longer)
                    assert now["input_ids"] == [*front.ids, *before["input_ids"]], (texts, limit)
                    assert now["token_type_ids"] == [*[0] * VIRTUAL, *before["token_type_ids"]]


@pytest.mark.parametrize("post", [name for name in POSTS if "bert" in name or "template" in name])
def test_a_texts_first_special_token_can_stand_before_the_virtual_ones(post: str) -> None:
    """It has another id there; a tokenizer without one says so."""
    tokenizer = made("byte-level", post)
    if first_special_id(tokenizer) is None:
        assert "first" not in post and "bert" not in post
        return
    front = front_of(tokenizer, behind_first=True)
    found, named = with_front(tokenizer, front)
    for text in TEXTS:
        before, now = tokenizer(text)["input_ids"], found(text)["input_ids"]
        assert now == [front.first, *front.ids, *before[1:]]
    assert named.names is not None and found.convert_ids_to_tokens(front.first) == named.names[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_never_has_a_virtual_token(kind: str) -> None:
    """A name that is spelled out has the tokens that it had; names are in the vocabulary, none is an added token."""
    tokenizer = made(kind, "template")
    front = front_of(tokenizer)
    found, named = with_front(tokenizer, front)
    added = {token["content"] for token in json.loads(found.backend_tokenizer.to_str())["added_tokens"]}
    assert added == set(SPECIAL)
    for name in named.names or ():
        assert not set(front.ids) & set(found(f"a {name} x{name}s", add_special_tokens=False)["input_ids"])
    assert (named.names is None) == (kind in ("unigram", "wordlevel"))  # a list; words are taken whole
    if named.names is not None:
        assert found.convert_ids_to_tokens(list(front.ids)) == list(named.names)


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    """A vocabulary that has the names already keeps them."""
    state = json.loads(trained("wordpiece").to_str())
    state["model"]["vocab"]["<|virtual_1|>"] = 700
    tokenizer = wrapped(Tokenizer.from_str(json.dumps(state)))
    front = front_of(tokenizer)
    assert front.ids[0] == 701
    found, named = with_front(tokenizer, front)
    assert named.names == ("<|_virtual_0|>", "<|_virtual_1|>", "<|_virtual_2|>")
    assert found.convert_tokens_to_ids("<|virtual_1|>") == 700


def test_the_tokenizer_that_was_given_stays_as_it_is() -> None:
    """Also where the last call cut and padded."""
    tokenizer = made("byte-level", "sequence with a template first", beyond=True)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=4)
    before = tokenizer.backend_tokenizer.to_str()
    found, _ = with_front(tokenizer, front_of(tokenizer))
    assert tokenizer.backend_tokenizer.to_str() == before
    state = json.loads(found.backend_tokenizer.to_str())
    assert state["truncation"] is None and state["padding"] is None


def test_settings_of_the_wrapper_stay() -> None:
    """Sides, special tokens, names of inputs, whether special tokens are split; the length has room for more."""
    tokenizer = wrapped(
        trained("unigram"), padding_side="left", truncation_side="left", model_input_names=["input_ids"]
    )
    tokenizer.split_special_tokens = True
    found, _ = with_front(tokenizer, front_of(tokenizer))
    assert (found.padding_side, found.truncation_side, found.model_input_names) == ("left", "left", ["input_ids"])
    assert found.special_tokens_map == tokenizer.special_tokens_map
    assert found.split_special_tokens and found.model_max_length == tokenizer.model_max_length + VIRTUAL
    unlimited = wrapped(trained("unigram"), model_max_length=int(1e30))
    assert with_front(unlimited, front_of(unlimited))[0].model_max_length == int(1e30)


def test_segment_ids_that_a_backbone_is_not_given_are_all_the_same() -> None:
    """As PEFT drops them where the task is none of its own."""
    tokenizer = made("wordpiece", "bert")
    front = Front(front_of(tokenizer).ids, segments=False)
    assert set(with_front(tokenizer, front)[0]("a", "the cat")["token_type_ids"]) == {0}


def test_a_tokenizer_that_has_no_token_for_anything_is_refused() -> None:
    """How it frames a text cannot be seen."""
    from tokenizers import models

    with pytest.raises(UnsupportedModelError, match="cannot tell how the tokenizer frames a text"):
        framed(Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), pair=False)
