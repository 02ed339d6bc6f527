"""A merged MiniLM of this release, in environments of other releases that have neither PEFT nor this library.

They are made of wheels and removed again: ``tox run -e merged``. Elsewhere these tests are skipped: they take minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_hooks import merge_and_unload, prompt_mask_hooks

from .environments import ONLY_IF_ASKED, environment, install, run
from .served import tuned
from .texts import FEW
from .tools import RELEASES, TORCH

pytestmark = ONLY_IF_ASKED

METHODS = ("prompt_tuning", "p_tuning", "multitask_prompt_tuning")
POLICIES = ("auto", "ignore")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Save MiniLM, merged with each method and policy, beside what the hooked model gives."""
    found = []
    for method in METHODS:
        model = tuned(method)
        for policy in POLICIES:
            options: dict[str, Any] = {"virtual_tokens": policy}
            if method == "multitask_prompt_tuning":
                options["task_id"] = 1
            folder = str(tmp_path_factory.mktemp("merged") / f"{method}-{policy}")
            merge_and_unload(model, **options).save_pretrained(folder)
            with prompt_mask_hooks(model, **options):
                together = model.encode(list(FEW), batch_size=len(FEW), convert_to_tensor=True)
                prompted = model.encode(list(FEW), prompt="query: ", convert_to_tensor=True)
            torch.save((together, prompted), f"{folder}.pt")
            found.append(folder)
    return found


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """Make an environment with PyTorch, of 2 GB; each release in turn is installed into it."""
    with environment(TORCH, *next(iter(RELEASES.values()))) as python:
        yield python


@pytest.mark.parametrize("release", RELEASES)
def test_the_same_embeddings_without_peft_and_this_library(
    release: str, python: str, folders: list[str], tmp_path: Path
) -> None:
    """In a batch with an empty and a truncated text, alone, with a prompt, and from two processes: to 1e-6."""
    install(python, TORCH, *RELEASES[release])
    version, far = run("st_releases.py", python, cwd=tmp_path, texts=FEW, folders=folders)
    for folder, largest in far.items():
        print(f"Sentence Transformers {version}, {Path(folder).name}: {largest:.1e}", flush=True)
    assert version.startswith(release)
    assert set(far) == set(folders)
    assert max(far.values()) <= 1e-6
