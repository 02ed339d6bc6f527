"""Ray Data: ``map_batches`` with a pool of two actors, each with a merged model of its own."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from common import read, write

# Read when Ray is imported: nothing goes out, and no token is left in the home folder.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}

import ray


class Embed:
    """What each actor does."""

    def __init__(self, folder: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(folder, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "embedding": self.model.encode(list(batch["text"]))}


given = read()
with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder, _node_ip_address="127.0.0.1")
    items = [{"id": number, "text": text} for number, text in enumerate(given["corpus"])]
    # Not repartition(8): its tasks would wait for a CPU, and the actors, which have both, for its blocks.
    texts = ray.data.from_items(items, override_num_blocks=8)
    actors = ray.data.ActorPoolStrategy(size=2)
    job = texts.map_batches(Embed, fn_constructor_args=[given["merged"]], batch_size=64, compute=actors)
    rows = sorted(job.take_all(), key=lambda row: row["id"])  # blocks come in any order
    ray.shutdown()
assert [row["id"] for row in rows] == list(range(len(given["corpus"])))
write(given, ray.__version__, corpus_job=np.stack([row["embedding"] for row in rows]))
