"""Losses written out from their papers, as functions of embeddings in any dtype.

`columns` holds embeddings `[rows, width]`, one tensor per column of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

Columns = Sequence[Tensor]
Formula = Callable[[Columns, Tensor | None], Tensor]


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine similarity of every row of one with every row of the other."""
    norms = first.norm(dim=1).unsqueeze(1) * second.norm(dim=1).unsqueeze(0)
    return first @ second.T / norms


def multiple_negatives(columns: Columns, labels: Tensor | None = None) -> Tensor:
    """Cross entropy of finding each anchor's own text among all texts of the other columns, by cosine * 20."""
    anchors, candidates = columns[0], torch.cat(list(columns[1:]))
    scores = 20 * cosines(anchors, candidates)
    return -log_softmax(scores, dim=1).diagonal().mean()


def symmetric_negatives(columns: Columns, labels: Tensor | None = None) -> Tensor:
    """The mean of multiple negatives in both directions."""
    scores = 20 * cosines(columns[0], columns[1])
    return -(log_softmax(scores, dim=1).diagonal() + log_softmax(scores, dim=0).diagonal()).mean() / 2


def cosine_similarity(columns: Columns, labels: Tensor | None) -> Tensor:
    """The squared error of each pair's cosine."""
    return (cosines(*columns).diagonal() - labels).pow(2).mean()


def triplet_with(sign: int, added: float) -> Formula:
    """Euclidean distances times a sign, margin 5; releases that use PyTorch's distance add 1e-6 to differences."""

    def value(columns: Columns, labels: Tensor | None = None) -> Tensor:
        anchor, positive, negative = columns
        near, far = (sign * (anchor - other + added).norm(dim=1) for other in (positive, negative))
        return (near - far + 5).clamp(min=0).mean()

    return value


def cosent(columns: Columns, labels: Tensor | None) -> Tensor:
    """log(1 + sum of exp(20 (cosine of the pair that should be farther - of the one that should be nearer)))."""
    scores = 20 * cosines(*columns).diagonal()
    assert labels is not None
    terms = [
        (scores[far] - scores[near]).exp()
        for far in range(len(labels))
        for near in range(len(labels))
        if labels[far] < labels[near]
    ]
    return torch.log(1 + torch.stack(terms).sum())


def online_contrastive(columns: Columns, labels: Tensor | None) -> Tensor:
    """Only positive pairs farther than the nearest negative, and negative pairs nearer than the farthest positive."""
    distances = 1 - cosines(*columns).diagonal()
    assert labels is not None
    negative, positive = distances[labels == 0], distances[labels == 1]
    hard_negative, hard_positive = negative[negative < positive.max()], positive[positive > negative.min()]
    return hard_positive.pow(2).sum() + (0.5 - hard_negative).clamp(min=0).pow(2).sum()


def contrastive(columns: Columns, labels: Tensor | None) -> Tensor:
    """Half of the squared distance, or half of the squared shortfall to 0.5 for negative pairs."""
    distances = 1 - cosines(*columns).diagonal()
    assert labels is not None
    missing = (0.5 - distances).clamp(min=0)
    return (labels * distances.pow(2) + (1 - labels) * missing.pow(2)).mean() / 2


def softmax_of(weight: Tensor, bias: Tensor) -> Formula:
    """Cross entropy of a linear layer's scores for both embeddings and their absolute difference."""

    def value(columns: Columns, labels: Tensor | None) -> Tensor:
        first, second = columns
        assert labels is not None
        scores = torch.cat([first, second, (first - second).abs()], dim=1) @ weight.T + bias
        return -log_softmax(scores, dim=1)[torch.arange(len(labels)), labels].mean()

    return value


def gist(guides: Columns) -> Formula:
    """Texts that the guide finds nearer than the anchor's own positive are not negatives; cosine / 0.01."""

    def value(columns: Columns, labels: Tensor | None = None) -> Tensor:
        (anchor, positive), (anchor_guide, positive_guide) = columns, guides
        own = cosines(anchor_guide, positive_guide).diagonal().unsqueeze(1)
        scores = []
        pairs = ((anchor, positive), (anchor, anchor), (positive, positive))
        guided = ((anchor_guide, positive_guide), (anchor_guide, anchor_guide), (positive_guide, positive_guide))
        for pair, guide in zip(pairs, guided, strict=True):
            # The positive is compared with itself, too: rounding must not make it nearer.
            nearer = cosines(*guide) > own + 1e-9
            scores.append(cosines(*pair).masked_fill(nearer, -torch.inf) / 0.01)
        return -log_softmax(torch.cat(scores, dim=1), dim=1).diagonal().mean()

    return value


def matryoshka(inner: Formula, dims: Sequence[int]) -> Formula:
    """The sum of a loss over the embeddings truncated to each width and normalized."""

    def value(columns: Columns, labels: Tensor | None = None) -> Tensor:
        cut = [[column[:, :dim] / column[:, :dim].norm(dim=1, keepdim=True) for column in columns] for dim in dims]
        return torch.stack([inner(one, labels) for one in cut]).sum()

    return value


def mean_squared_error(columns: Columns, labels: Tensor | None) -> Tensor:
    """The mean squared error over all components."""
    return (columns[0] - labels).pow(2).mean()


def margin_mean_squared_error(columns: Columns, labels: Tensor | None) -> Tensor:
    """The mean squared error of the differences of dot products."""
    query, positive, negative = columns
    return ((query * positive).sum(dim=1) - (query * negative).sum(dim=1) - labels).pow(2).mean()


def divergence(prior: Columns, last: Columns, temperature: float = 0.3) -> Tensor:
    """The Kullback-Leibler divergence of a layer's embeddings from the last layer's, times the temperature."""
    target = softmax(torch.cat(list(last)) / temperature, dim=1)
    found = log_softmax(torch.cat(list(prior)) / temperature, dim=1)
    return (target * (target.log() - found)).sum(dim=1).mean() * temperature
