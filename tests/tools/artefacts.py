"""How the wheel and the source distribution are built and run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EPOCH = "1700000000"


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed."""
    given = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        check=False,
        cwd=cwd,
        encoding="utf-8",
        env={**given, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", **environment},
        timeout=600,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """What was built of a copy of what git has."""

    sdist: Path
    wheel: Path
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder where nothing of the checkout is found."""

    python: Path
    away: Path

    def run(self, *arguments: object, **environment: str) -> str:
        """Run Python of this environment."""
        return run(self.python, *arguments, cwd=self.away, **environment)

    def command(self, name: str) -> Path:
        """Return an installed command."""
        return self.python.with_name(name)


def build(checkout: Path, out: Path, what: str) -> Path:
    """Build one artefact as a release is built, reproducibly."""
    run(sys.executable, "-m", "build", f"--{what}", "--outdir", out, checkout, SOURCE_DATE_EPOCH=EPOCH)
    (found,) = out.iterdir()
    return found
