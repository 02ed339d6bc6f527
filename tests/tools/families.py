"""Five more families of models for the campaign: a CNN, a UNet, a ViT, an LSTM tagger and a recommender."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolution, norm and activation, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.act(self.norm(self.conv(x)))
        return x + residual


class ConvNet(nn.Module):
    """An image classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(Block(6) for _ in range(3))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x).flatten(1))


class Up(nn.Module):
    """Double the size of images, and concatenate the skip connection."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, after, 2, 2)
        self.conv = nn.Conv2d(2 * after, after, 3, padding=1)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        x = self.up(x)
        return self.conv(torch.cat([kept, x], dim=1)).relu()


class UNet(nn.Module):
    """An image segmentation model."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 4, 3, padding=1)
        self.down1 = nn.Conv2d(4, 6, 2, 2)
        self.down2 = nn.Conv2d(6, 9, 2, 2)
        self.up2 = Up(9, 6)
        self.up1 = Up(6, 4)
        self.leave = nn.Conv2d(4, 3, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        first = self.enter(pixels)
        second = self.down1(first)
        third = self.down2(second)
        return self.leave(self.up1(self.up2(third, second), first))


class Tagger(nn.Module):
    """A tagger with one label per word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.drop = nn.Dropout(0.1)
        self.lstm = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.drop(self.embed(ids))
        out, _ = self.lstm(x)
        out = self.norm(out) * mask.unsqueeze(-1)
        return self.head(out)


class Tower(nn.Module):
    """The embedding of a user, or of an item."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, 10)
        self.dense = nn.Sequential(nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 7))

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.dense(torch.cat([self.embed(ids), numbers], dim=-1))


class Recommender(nn.Module):
    """Score how well users and items match."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.things = Tower(30), Tower(40)
        self.mix = nn.Bilinear(7, 7, 3)

    def forward(self, users: Tensor, things: Tensor, numbers: Tensor) -> Tensor:
        one, other = self.users(users, numbers), self.things(things, numbers)
        return self.mix(one, other) + (one * other).sum(-1, keepdim=True)


def families() -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Yield the name, model and inputs of each family."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    yield "CNN", ConvNet(), {"pixels": torch.randn(4, 3, 10, 12)}
    yield "UNet", UNet(), {"pixels": torch.randn(2, 1, 16, 20)}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    yield "ViT", ViTModel(ViTConfig(image_size=12, patch_size=4, **small)), {"pixel_values": torch.randn(4, 3, 12, 12)}
    mask = torch.ones(4, 11)
    yield "LSTM", Tagger(), {"ids": torch.randint(0, 50, (4, 11)), "mask": mask}
    ids = {"users": torch.arange(6), "things": torch.arange(6) + 3}
    yield "Recommender", Recommender(), {**ids, "numbers": torch.randn(6, 4)}
