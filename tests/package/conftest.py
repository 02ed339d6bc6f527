"""The wheel and the source distribution as ``python -m build`` makes them, and an environment that has the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build a source distribution of a clean checkout with litter in it, and the wheel of that."""
    pytest.importorskip("build", reason="what builds and checks a release is installed by `tox run -e package`")
    folder = tmp_path_factory.mktemp("built")
    sources = tuple(run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines())
    for name in sources:
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkout" / name).write_bytes((ROOT / name).read_bytes())
    for litter in ("tests/__pycache__/a.cpython-311.pyc", "examples/.ipynb_checkpoints/tour.ipynb", "notes.txt"):
        (folder / "checkout" / litter).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkout" / litter).write_text("litter")
    sdist = build(folder / "checkout", folder / "sdist", "sdist")
    run("tar", "xzf", sdist, cwd=folder)
    wheel = build(folder / sdist.name.removesuffix(".tar.gz"), folder / "wheel", "wheel")
    return Built(sdist, wheel, sources)


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Make a fresh environment, with the wheel installed by pip, and its requirements from the one that runs the tests.

    Downloading those anew would take minutes.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    Path(purelib, "requirements.pth").write_text("\n".join(here))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built.wheel)
    (folder / "away").mkdir()
    return Installed(python, folder / "away")
