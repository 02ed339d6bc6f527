from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

# Everything is in setup.cfg, but what a source distribution has that is no part of the package.
BESIDE_THE_PACKAGE = ("CHANGELOG.rst", ".ruff.toml", ".ci/*", ".github/*", "examples/**/*", "tests/**/*")
MADE = (".pyc", ".pyo", ".swp", "~")


class SourceDistribution(sdist):
    """The tests, the examples and what runs them as well: a MANIFEST.in in place of this would be one file more."""

    def make_distribution(self) -> None:
        found = [file for pattern in BESIDE_THE_PACKAGE for file in Path().glob(pattern) if file.is_file()]
        kept = [
            file.as_posix() for file in found if not file.name.endswith(MADE) and ".ipynb_checkpoints" not in str(file)
        ]
        self.filelist.files = sorted({*self.filelist.files, *kept})
        super().make_distribution()


setup(cmdclass={"sdist": SourceDistribution})
