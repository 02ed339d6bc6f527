"""Keeps weights in safetensors: Sentence Transformers 2.7 pickles those of Dense and other modules.

No pickle is ever read unless this process has just written it.
"""

from __future__ import annotations

from pathlib import Path

from ..compat import sentence_transformers as releases
from .folder import parts_of

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def unpickle_own(path: Path) -> None:
    """Turn the pickled weights of the modules just saved at ``path`` into safetensors."""
    for part in parts_of(path):
        if (part.folder / _PICKLED).is_file() and not (part.folder / _SAFE).is_file():
            import torch
            from safetensors.torch import save_file

            weights = torch.load(part.folder / _PICKLED, map_location="cpu", weights_only=True)
            save_file({key: value.contiguous() for key, value in weights.items()}, part.folder / _SAFE)
            (part.folder / _PICKLED).unlink()


def pickle_where_needed(folder: Path) -> None:
    """Write a module's safetensors in a temporary folder as a pickle, if the installed release reads nothing else."""
    if releases.reads_pickles_alone() and (folder / _SAFE).is_file():
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(folder / _SAFE), folder / _PICKLED)
