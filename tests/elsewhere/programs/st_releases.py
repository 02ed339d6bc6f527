"""Merged models in another release of Sentence Transformers: in a batch, alone, with a prompt, from two processes."""

from __future__ import annotations

import json

import sentence_transformers
import torch
from common import read


def from_two_processes(model: sentence_transformers.SentenceTransformer, texts: list[str]) -> torch.Tensor:
    """Encode by a pool of two processes, and where the release takes several devices in ``encode`` by that as well."""
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        if hasattr(model, "encode_multi_process"):
            found = model.encode_multi_process(texts, pool, chunk_size=3)
        else:
            found = model.encode(texts, pool=pool, chunk_size=3)
    finally:
        model.stop_multi_process_pool(pool)
    if sentence_transformers.__version__ >= "5.1":
        assert (model.encode(texts, device=["cpu", "cpu"], chunk_size=3) == found).all()
    return torch.as_tensor(found)


def main() -> None:
    given = read()
    texts, far = given["texts"], {}
    for number, folder in enumerate(given["folders"]):
        model = sentence_transformers.SentenceTransformer(folder, device="cpu")
        together, prompted = torch.load(f"{folder}.pt")
        pairs = [
            (model.encode(texts, batch_size=len(texts), convert_to_tensor=True), together),
            (torch.stack([model.encode(text, convert_to_tensor=True) for text in texts]), together),
            (model.encode(texts, prompt="query: ", convert_to_tensor=True), prompted),
        ]
        if number == 0:
            pairs.append((from_two_processes(model, texts), together))
        far[folder] = max(float((found - truth).abs().max()) for found, truth in pairs)
    print(json.dumps([sentence_transformers.__version__, far]))


if __name__ == "__main__":
    main()
