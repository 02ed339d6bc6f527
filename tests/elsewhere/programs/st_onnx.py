"""Sentence Transformers' own ONNX backend: it exports the merged model by itself, and takes the exported folder."""

from __future__ import annotations

from importlib.metadata import version

from common import both, read, write
from sentence_transformers import SentenceTransformer

given = read()
merged = SentenceTransformer(given["merged"], backend="onnx", device="cpu")
merged.save_pretrained(given["merged_onnx"])  # with onnx/model.onnx, for the tools that take such a folder
found = both("merged", merged.encode, given["texts"])
exported = SentenceTransformer(given["exported"], backend="onnx", device="cpu")
write(given, version("optimum-onnx"), **found, **both("exported", exported.encode, given["texts"]))
