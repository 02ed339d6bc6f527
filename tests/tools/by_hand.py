"""Compute differentiable embeddings by hand: one text at a time, no padding, float64.

The counterpart of `reference.py` for prompt tuning and mean pooling: the same forward, with the prompt as a leaf.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .reference import float64_by_default, plain_backbone, prompt_rows, wrapped_backbone


class ByHand(nn.Module):
    """The expected embeddings of a prompt-tuned model, and the expected gradient of its prompt.

    Attributes:
        prompt: `[virtual, width]`, float64: the only trainable parameter.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = plain_backbone(wrapped_backbone(model)).requires_grad_(False)
        self.prompt = nn.Parameter(prompt_rows(wrapped_backbone(model), None).clone())

    def embed(self, ids: Tensor, layer: int = -1) -> Tensor:
        """Embed one text.

        Args:
            ids: `[tokens]`, without padding.
            layer: Which hidden state to pool; 0 is the input of the first layer, -1 is the output.

        Returns:
            `[hidden]`: the mean over the virtual tokens and the text's tokens.
        """
        words = self.backbone.get_input_embeddings()(ids)
        rows = torch.cat([self.prompt, words]).unsqueeze(0)
        mask = torch.ones(rows.shape[:2], dtype=torch.int64)
        with float64_by_default():
            output = self.backbone(inputs_embeds=rows, attention_mask=mask, return_dict=True, output_hidden_states=True)
        found: Tensor = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return found[0].sum(dim=0) / rows.shape[1]

    def batch(self, features: Any, layer: int = -1) -> Tensor:
        """Embed every row of a batch by itself, without its padding: `[rows, hidden]`."""
        real = features["attention_mask"].bool()
        return torch.stack(
            [self.embed(ids[keep], layer) for ids, keep in zip(features["input_ids"], real, strict=True)]
        )


class StandIn(nn.Module):
    """The only module of a SentenceTransformer that embeds by hand, to test a loss's own arithmetic."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.by_hand = ByHand(model)

    def forward(self, features: Any) -> Any:
        """Return the features with `sentence_embedding`."""
        return {**features, "sentence_embedding": self.by_hand.batch(features)}


def stand_in(model: Any) -> Any:
    """Return a SentenceTransformer that embeds as `model` should."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[StandIn(model)], device="cpu")
