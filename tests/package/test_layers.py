"""The folders import only downwards: ``lint-imports`` says so, and sees it when one does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..tools.artefacts import ROOT

UPWARD = {
    "hooks/call.py": "from ..prompts.mask import ExtendPromptMask",
    "compat/pipeline.py": "from ..doctor import run",
    "hooks/board.py": "from .registry import HookRegistry",  # which imports the board: a circle
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_no_import_goes_up_and_none_goes_round() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("file", UPWARD)
def test_an_import_that_goes_up_or_round_is_seen(file: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "peft_hooks", tmp_path / "peft_hooks")
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    broken = tmp_path / "peft_hooks" / file
    broken.write_text(f"{broken.read_text(encoding='utf-8')}\n{UPWARD[file]}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
