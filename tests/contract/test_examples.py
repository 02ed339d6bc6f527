"""Contract: the examples end with a sentence, not a traceback, where Sentence Transformers is too old for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentence_transformers

from ..tools.checks import RELEASE, needs

ROOT = Path(__file__).parents[2]
EXAMPLES = ("custom_hook", "debug_shapes", "distributed", "quickstart", "train_prompt")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_which_release_it_needs(name: str) -> None:
    """Newer releases run them: see tests/unit/test_examples.py."""
    needs(RELEASE < (5, 4), "runs the examples")
    script = f"examples/{name}.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == (
        f"{script} needs Sentence Transformers 5.4 or later, and {sentence_transformers.__version__} is installed: run "
        f"`pip install --upgrade sentence-transformers peft transformers`. (peft_hooks itself needs 2.7 or later.)\n"
    )
    assert done.returncode == 1
    assert done.stdout == ""
