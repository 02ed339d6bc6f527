"""`langchain-huggingface`: `HuggingFaceEmbeddings` makes its own SentenceTransformer, of the modules it is given."""

from __future__ import annotations

import gc
from typing import Any

import pytest

import peft_hooks

from ..tools.clients import TEXTS, assert_equal

pytest.importorskip("langchain_huggingface", reason="a client: `tox run -e clients`")
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings


def embeddings_of(model: Any, **options: Any) -> HuggingFaceEmbeddings:
    return HuggingFaceEmbeddings(model_name="", model_kwargs={"modules": list(model), "device": "cpu"}, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_documents_embed_to_the_reference(model: Any, by_hand: Any, batch_size: int) -> None:
    """In any batch, a document's embedding is the one made by hand, and that of `model.encode`."""
    client = embeddings_of(model, encode_kwargs={"batch_size": batch_size})
    found = client.embed_documents(list(TEXTS))
    assert_equal(found, by_hand)
    assert_equal(found, model.encode(list(TEXTS)))


def test_a_query_embeds_to_the_reference(model: Any, by_hand: Any) -> None:
    """`embed_query` gives the same embedding as the batch of documents."""
    assert_equal([embeddings_of(model).embed_query(text) for text in TEXTS], by_hand)


def test_prompts_and_a_device_are_options_of_the_same_place(model: Any) -> None:
    """What belongs to the SentenceTransformer and not to its modules, its prompts, goes beside them."""
    options = {"modules": list(model), "device": "cpu", "prompts": {"query": "Find what answers: "}}
    client = HuggingFaceEmbeddings(model_name="", model_kwargs=options, query_encode_kwargs={"prompt_name": "query"})
    assert_equal(client.embed_query(TEXTS[3]), model.encode(TEXTS[3], prompt="Find what answers: "))
    assert_equal(client.embed_documents([TEXTS[3]]), model.encode([TEXTS[3]]))


def test_a_vector_store_finds_what_the_reference_finds(model: Any, by_hand: Any) -> None:
    """LangChain's own store scores a query against its documents as the reference does."""
    store = InMemoryVectorStore.from_texts(list(TEXTS[:3]), embeddings_of(model))
    found = store.similarity_search_with_score(TEXTS[3], k=3)
    expected = {text: float(by_hand[3] @ row) for text, row in zip(TEXTS, by_hand)}
    assert [document.page_content for document, _ in found] == sorted(TEXTS[:3], key=expected.__getitem__, reverse=True)
    assert_equal([score for _, score in found], [expected[document.page_content] for document, _ in found])


def test_the_hooks_stay_when_the_loaded_model_is_forgotten(saved: str, by_hand: Any) -> None:
    """The hooks are on the modules, so they outlive the SentenceTransformer that the modules came in."""
    client = embeddings_of(peft_hooks.load(saved, device="cpu"))
    gc.collect()
    assert_equal(client.embed_documents(list(TEXTS)), by_hand)


def test_the_name_of_the_folder_alone_is_refused_by_sentence_transformers(saved: str) -> None:
    """This is why the modules are handed over: given a name, LangChain has Sentence Transformers load it."""
    with pytest.raises(ValueError, match="prompt learning"):
        HuggingFaceEmbeddings(model_name=saved)
