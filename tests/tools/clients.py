"""What clients of a tuned model embed, and how near they have to come."""

from __future__ import annotations

from typing import Any

import numpy as np

# Lengths differ much, so that a batch of them has padding.
TEXTS = (
    "A refund takes five days.",
    "Trains.",
    "To change your password, open the settings page, choose Security, type the old one once and the new one twice.",
    "How do I get my money back for the shoes that I returned in March?",
)
TOLERANCE = 1e-6


def assert_equal(embeddings: Any, expected: Any) -> None:
    """Assert that no component differs."""
    found = np.asarray(embeddings)
    assert found.shape == np.shape(expected)
    assert np.abs(found - np.asarray(expected)).max() <= TOLERANCE
