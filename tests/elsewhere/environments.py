"""Environments of their own: made of what pip or npm installs, used by a program of this folder, and deleted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ONLY_IF_ASKED = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("MERGED_ELSEWHERE") != "1", reason="makes environments: tox run -e merged"),
]
"""The marks of all tests here."""

PROGRAMS = Path(__file__).parent / "programs"


@contextlib.contextmanager
def environment(*wanted: str) -> Iterator[str]:
    """Make an environment with what pip installs, and give its Python."""
    with tempfile.TemporaryDirectory(prefix="elsewhere") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        install(python, *wanted)
        yield python


def install(python: str, *wanted: str) -> None:
    """Install packages in one command, in which what one of them wants cannot lift another."""
    print(f"\npip install {' '.join(wanted)}", flush=True)
    subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", "--no-compile", *wanted], check=True)


@contextlib.contextmanager
def node_modules(*wanted: str) -> Iterator[Path]:
    """Make a folder with what npm installs, and give it."""
    npm = shutil.which("npm")
    assert npm is not None, "Node.js 20 or newer and npm are needed"
    with tempfile.TemporaryDirectory(prefix="elsewhere") as folder:
        (Path(folder) / "package.json").write_text('{"private": true, "type": "module"}')
        print(f"\nnpm install {' '.join(wanted)}", flush=True)
        # Without this onnxruntime-node, which has its library for the CPU, downloads the one for CUDA as well.
        only_cpu = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
        subprocess.run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", *wanted], cwd=folder, env=only_cpu, check=True
        )
        yield Path(folder)


def run(program: str, *command: str, cwd: Path, **given: Any) -> Any:
    """Run a program of this folder with a command, and return the JSON of its last line; ``given`` is its input."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*command, str(PROGRAMS / program)],
        input=json.dumps(given),
        capture_output=True,
        cwd=cwd,
        encoding="utf-8",
        env=kept,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])
