"""Sentence Transformers 2.7 saves and loads Dense and other modules with weights as pickles; here both are safetensors.

No pickle is read but one that this process has just written.
"""

from __future__ import annotations

from pathlib import Path

from ..compat import sentence_transformers as releases
from .folder import parts_of

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def unpickle_own(path: Path) -> None:
    """Turn the weights of the modules that were just saved at ``path`` into safetensors where they are pickles."""
    for part in parts_of(path):
        if (part.folder / _PICKLED).is_file() and not (part.folder / _SAFE).is_file():
            import torch
            from safetensors.torch import save_file

            weights = torch.load(part.folder / _PICKLED, map_location="cpu", weights_only=True)
            save_file({key: value.contiguous() for key, value in weights.items()}, part.folder / _SAFE)
            (part.folder / _PICKLED).unlink()


def pickle_where_needed(folder: Path) -> None:
    """Write the safetensors of a module in a temporary folder as the pickle that the installed release reads."""
    if releases.reads_pickles_alone() and (folder / _SAFE).is_file():
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(folder / _SAFE), folder / _PICKLED)
