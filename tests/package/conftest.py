"""The wheel and the source distribution as ``python -m build`` makes them, and an environment that has the wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ..tools.artefacts import ROOT, Built, Installed, build, run


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
