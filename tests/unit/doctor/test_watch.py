"""What the doctor measures of one forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peft_hooks.doctor.findings import Seen, row_of
from peft_hooks.doctor.watch import positions_read


class Ones(nn.Module):
    """Pools all but the first position, whatever the mask says."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": features["token_embeddings"][:, 1:].mean(dim=1)}


def test_counted_positions_are_measured_not_read_from_a_mask() -> None:
    given = {"token_embeddings": torch.randn(2, 4, 3), "attention_mask": torch.tensor([[1, 1, 0, 0]] * 2)}
    assert positions_read(Ones(), given).tolist() == [[False, True, True, True]] * 2


def test_a_text_is_found_in_a_batch_by_its_ids_wherever_its_padding_is() -> None:
    ids = torch.tensor([[5, 6, 7], [0, 5, 6], [5, 6, 0]])
    mask = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    seen = Seen("Transformer '0'", "Pooling '1'", ids, mask, "i64", torch.zeros(3, 3, 2), (3, 3, 2), None)
    assert [row_of(seen, own) for own in ([5, 6, 7], [5, 6], [5], [7])] == [0, 1, 2, None]
