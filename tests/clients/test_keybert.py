"""`keybert` takes a SentenceTransformer, so it takes one with hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..tools.clients import TEXTS, assert_equal

pytest.importorskip("keybert", reason="a client: `tox run -e clients`")
from keybert import KeyBERT
from keybert.backend import SentenceTransformerBackend

WORDS = ("refund", "password", "trains", "change your password")


def test_documents_and_words_embed_to_the_reference(model: Any, by_hand: Any) -> None:
    """What `extract_embeddings` returns for documents is the reference, and words are as `model.encode` has them."""
    documents, words = KeyBERT(model).extract_embeddings(list(TEXTS), keyphrase_ngram_range=(1, 2))
    assert_equal(documents, by_hand)
    assert len(words) > 20
    assert_equal(SentenceTransformerBackend(model).embed(list(TEXTS)), by_hand)


def test_keywords_score_as_their_embeddings_do_alone(model: Any) -> None:
    """Words are embedded in one batch, documents in another; scores are cosines of what each is alone."""
    found = KeyBERT(model).extract_keywords(TEXTS[2], candidates=list(WORDS), top_n=3)
    assert found
    for word, score in found:
        alone = [model.encode([text], batch_size=1)[0] for text in (TEXTS[2], word)]
        assert score == pytest.approx(float(np.dot(*alone)), abs=1e-4)  # KeyBERT rounds to four digits
