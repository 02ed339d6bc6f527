"""fastembed: the merged model pooled and normalized by it, and the exported one, whose graph pools; without PyTorch."""

from __future__ import annotations

import fastembed
from common import both, read, write
from fastembed.common.model_description import ModelSource, PoolingType

given = read("torch", "transformers")
kinds = {
    "merged": (given["merged_onnx"], {"pooling": PoolingType.MEAN, "normalization": True}),
    "exported": (given["exported"], {"pooling": PoolingType.DISABLED, "normalization": False}),
}
found = {}
for name, (folder, options) in kinds.items():
    fastembed.TextEmbedding.add_custom_model(
        model=name, sources=ModelSource(hf=name), dim=384, model_file="onnx/model.onnx", **options
    )
    model = fastembed.TextEmbedding(name, specific_model_path=folder)
    found |= both(name, lambda texts, model=model: list(model.embed(texts, batch_size=8)), given["texts"])
write(given, fastembed.__version__, **found)
