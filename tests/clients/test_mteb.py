"""`mteb` evaluates a SentenceTransformer with hooks on a task of one's own, with no network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..tools.clients import TEXTS, assert_equal

pytest.importorskip("mteb", reason="a client: `tox run -e clients`")
import mteb
from datasets import Dataset
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SentenceTransformerEncoderWrapper
from torch.utils.data import DataLoader

PAIRS = [(0, 3), (0, 1), (1, 2), (2, 3)]
SCORES = [4.5, 1.0, 0.5, 1.5]


class Refunds(AbsTaskSTS):
    """Pairs of texts and how similar people find them."""

    metadata = TaskMetadata(
        name="Refunds",
        description="Four pairs of texts.",
        dataset={"path": "local/refunds", "revision": "1"},
        type="STS",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_pearson",
    )

    def load_data(self, **_: Any) -> None:
        first, second = ([TEXTS[number] for number in side] for side in zip(*PAIRS))
        data = {"sentence1": first, "sentence2": second, "score": SCORES}
        self.dataset = {"test": Dataset.from_dict(data)}
        self.data_loaded = True


def test_the_encoder_of_mteb_gives_the_reference(model: Any, by_hand: Any) -> None:
    """mteb's wrapper gives the embeddings made by hand."""
    wrapper = SentenceTransformerEncoderWrapper(model)
    data = DataLoader(Dataset.from_dict({"text": list(TEXTS)}), batch_size=4)
    found = wrapper.encode(data, task_metadata=Refunds.metadata, hf_split="test", hf_subset="default")
    assert_equal(found, by_hand)


def test_a_task_scores_as_the_reference_does(model: Any, by_hand: Any) -> None:
    """The score of a whole evaluation is the one computed from the embeddings made by hand."""
    result = mteb.evaluate(model, Refunds(), cache=None, show_progress_bar=False)
    score = result.task_results[0].scores["test"][0]["cosine_pearson"]
    cosines = [float(by_hand[first] @ by_hand[second]) for first, second in PAIRS]
    assert score == pytest.approx(np.corrcoef(cosines, SCORES)[0, 1], abs=1e-6)
