"""`setfit` trains a classifier on a SentenceTransformer's embeddings, and the prompt in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import peft_hooks

from ..tools.clients import TEXTS, assert_equal

pytest.importorskip("setfit", reason="a client: `tox run -e clients`")
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression

LABELS = [0, 1, 1, 0]


def test_encode_gives_the_reference(model: Any, by_hand: Any) -> None:
    """`SetFitModel.encode` of a model body with hooks gives the embeddings made by hand."""
    client = SetFitModel(model_body=model, model_head=LogisticRegression())
    assert_equal(client.encode(list(TEXTS)), by_hand)


def test_a_head_predicts_what_it_predicts_of_the_reference(model: Any, by_hand: Any) -> None:
    """A head that SetFit fits has the probabilities of one fitted to the embeddings made by hand."""
    client = SetFitModel(model_body=model, model_head=LogisticRegression())
    client.fit(list(TEXTS), LABELS, num_epochs=1)
    expected = LogisticRegression().fit(by_hand, LABELS).predict_proba(by_hand)
    assert np.abs(np.asarray(client.predict_proba(list(TEXTS))) - expected).max() < 1e-4


def test_the_trainer_trains_the_prompt_and_nothing_else(saved: str, tmp_path: Any) -> None:
    """SetFit's own contrastive training moves the prompt, and leaves the backbone as it was."""
    body = peft_hooks.load(saved, device="cpu", is_trainable=True)
    before = {name: value.detach().clone() for name, value in body.named_parameters()}
    client = SetFitModel(model_body=body, model_head=LogisticRegression())
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=2, batch_size=4, report_to="none")
    data = Dataset.from_dict({"text": list(TEXTS), "label": LABELS})
    Trainer(model=client, args=arguments, train_dataset=data).train()
    moved = {name for name, value in body.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all("prompt_encoder" in name for name in moved)
    assert peft_hooks.check_padding_invariance(body, TEXTS, tolerance=1e-6)
