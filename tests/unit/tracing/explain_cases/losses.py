"""Losses, inside the model and beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import Does, Made, called
from .table import case


def beside(loss: Callable[[Tensor], Any], width: int = 3, rows: int = 4) -> Made:
    """Return a classifier, and a loss that the caller computes of its output."""
    model = nn.Sequential(nn.Linear(5, width))
    return model, lambda: loss(model(torch.randn(rows, 5)))


@case(None, "labels from_0_to_3 3_classes", "labels|classes")
def a_label_beyond_the_classes_beside_the_model() -> Made:
    labels = torch.tensor([0, 1, 2, 3])
    return beside(lambda logits: functional.cross_entropy(logits, labels))


@case(None, "-1 3_classes first", "ignore_index=-1|0_to_2")
def a_label_of_minus_one() -> Made:
    labels = torch.tensor([0, -1, 2, 1])
    return beside(lambda logits: functional.nll_loss(logits.log_softmax(-1), labels))


@case(None, "labels 4 3 batch", "")
def labels_of_another_batch() -> Made:
    labels = torch.zeros(3, dtype=torch.long)
    return beside(lambda logits: nn.CrossEntropyLoss()(logits, labels))


@case(None, "labels is_f32 class_numbers", "long")
def labels_that_are_floats() -> Made:
    labels = torch.zeros(4)
    return beside(lambda logits: functional.cross_entropy(logits, labels))


@case(None, r"same_shape \[4,_1\] \[4\]", r"squeeze\(1\)")
def binary_labels_without_the_last_dimension() -> Made:
    labels = torch.ones(4)
    return beside(lambda logits: functional.binary_cross_entropy_with_logits(logits, labels), width=1)


@case(None, "2_dimensions takes_1", "squeeze|1")
def labels_with_a_dimension_too_many() -> Made:
    labels = torch.zeros(4, 1, dtype=torch.long)
    return beside(lambda logits: functional.cross_entropy(logits, labels))


@case(None, r"dimension_2 7 50 transposed", r"transpose\(1,_2\)")
def logits_of_tokens_with_the_classes_last() -> Made:
    ids = torch.zeros(2, 7, dtype=torch.long)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
    return model, lambda: functional.cross_entropy(model(ids), ids)


@case(None, "8 6 dimension_1", "6|8")
def a_cosine_loss_of_two_widths() -> Made:
    other = torch.randn(4, 6)
    return beside(lambda x: nn.CosineEmbeddingLoss()(x, other, torch.ones(4)), width=8)


@case(None, "anchor|x 4 3 dimension_0", "")
def a_triplet_of_another_batch() -> Made:
    positive, negative = torch.randn(3, 8), torch.randn(4, 8)
    return beside(lambda x: functional.triplet_margin_loss(x, positive, negative), width=8)


@case(None, "teacher 5 3 dimension_1", "")
def a_divergence_from_other_classes() -> Made:
    teacher = torch.rand(4, 5).softmax(-1)
    return beside(lambda logits: functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean"))


@case(None, "input_lengths|lengths 2 3|batch", "")
def ctc_with_lengths_of_another_batch() -> Made:
    def loss(x: Tensor) -> Any:
        lengths = torch.tensor([10, 10])
        return functional.ctc_loss(
            x.log_softmax(-1), torch.ones(3, 4, dtype=torch.long), lengths, torch.tensor([4, 4, 4])
        )

    model = nn.Sequential(nn.Linear(4, 6))
    return model, lambda: loss(model(torch.randn(10, 3, 4)))


@case("loss", "target|labels 6 3", "")
def an_mse_loss_inside_the_model() -> Made:
    model = Does(lambda self, x, y: self.loss(self.head(x), y), head=nn.Linear(4, 3), loss=nn.MSELoss())
    return called(model, torch.randn(2, 4), torch.randn(2, 6))


@case(None, "out.*no_'logits'|no_'logits'", "")
def logits_of_a_plain_tensor() -> Made:
    def loss(out: Any) -> Any:
        return out.logits.mean()

    return beside(loss)
