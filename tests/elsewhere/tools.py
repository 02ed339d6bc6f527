"""What serves a tuned model in an environment of its own; the guide about serving has the table."""

from __future__ import annotations

from typing import NamedTuple

TORCH = "torch==2.13.0"
ST62 = ("sentence-transformers==6.2.0", "transformers==5.23.0")


class Tool(NamedTuple):
    """A program of ``programs/``, and what is installed for it."""

    version: str
    program: str
    wanted: tuple[str, ...]


BACKEND = "Sentence Transformers' ONNX backend"
JAVASCRIPT = "transformers.js"

TOOLS = {
    BACKEND: Tool(
        "0.1.0",
        "st_onnx.py",
        (TORCH, "optimum-onnx[onnxruntime]==0.1.0", "sentence-transformers==5.1.2", "transformers==4.57.1"),
    ),
    "OpenVINO": Tool("2026.4.1", "with_openvino.py", ("openvino==2026.4.1", "tokenizers==0.23.3")),
    "fastembed": Tool("0.9.1", "with_fastembed.py", ("fastembed==0.9.1",)),
    "infinity": Tool(
        "0.0.78",
        "with_infinity.py",
        (TORCH, "infinity-emb[torch]==0.0.78", "sentence-transformers==3.4.1", "transformers==4.57.6"),
    ),
    "Ray Data": Tool("2.60.0", "with_ray.py", (TORCH, *ST62, "ray[data]==2.60.0")),
    JAVASCRIPT: Tool("4.3.1", "transformers_js.mjs", ("@huggingface/transformers@4.3.1",)),
}

RELEASES = {
    "2.7": ("sentence-transformers==2.7.0", "transformers==4.40.1"),
    "3.2": ("sentence-transformers==3.2.1", "transformers==4.45.2"),
    "5.1": ("sentence-transformers==5.1.2", "transformers==4.57.1"),
    "6.2": ST62,
}
