"""infinity: its engine with dynamic batches, on the merged folder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from common import read, write
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

given = read()


async def embedded(texts: Sequence[str]) -> dict[str, Any]:
    """Give all texts at once, and one after another."""
    options = EngineArgs(
        model_name_or_path=given["merged"], engine="torch", device="cpu", dtype="float32", batch_size=8
    )
    engine = AsyncEmbeddingEngine.from_args(options)
    async with engine:
        together, _ = await engine.embed(sentences=list(texts))
        alone = [(await engine.embed(sentences=[text]))[0][0] for text in texts]
    return {"merged_together": np.array(together), "merged_alone": np.array(alone)}


write(given, version("infinity_emb"), **asyncio.run(embedded(given["texts"])))
