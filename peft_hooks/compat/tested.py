"""The stacks that this library was tested on, one per line, and a check for newer releases than those.

``setup.cfg`` has the same pins for tox; ``tests/unit/compat/test_tested.py`` keeps the two in step.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

from packaging.version import InvalidVersion, Version


class Stack(NamedTuple):
    """A combination of releases that install and run together."""

    sentence_transformers: str
    transformers: str
    peft: str
    torch: str


PACKAGES = ("sentence-transformers", "transformers", "peft", "torch")
"""The packages that this library builds on, in the order of a ``Stack``."""

STACKS = (
    Stack("2.7.0", "4.40.1", "0.10.0", "2.13.0"),
    Stack("3.0.1", "4.41.2", "0.11.1", "2.13.0"),
    Stack("3.2.1", "4.45.2", "0.13.2", "2.13.0"),
    Stack("3.3.1", "4.46.3", "0.13.2", "2.13.0"),
    Stack("3.4.1", "4.48.1", "0.14.0", "2.13.0"),
    Stack("4.1.0", "4.51.3", "0.15.2", "2.13.0"),
    Stack("5.0.0", "4.53.0", "0.16.0", "2.13.0"),
    Stack("5.1.2", "4.57.1", "0.17.1", "2.13.0"),
    Stack("5.3.0", "5.3.0", "0.18.1", "2.13.0"),
    Stack("5.4.1", "5.6.2", "0.21.2", "2.13.0"),
    Stack("5.5.1", "5.8.1", "0.19.1", "2.13.0"),
    Stack("5.7.0", "5.12.1", "0.20.0", "2.13.0"),
    Stack("6.0.1", "5.15.1", "0.21.0", "2.13.0"),
    Stack("6.1.0", "5.17.0", "0.21.2", "2.13.0"),
    Stack("6.2.0", "5.23.0", "0.21.2", "2.13.0"),
    Stack("6.2.0", "5.23.0", "0.21.2", "2.14.1"),
    Stack("6.2.0", "5.24.0", "0.21.2", "2.13.0"),
)
"""The stacks that tox pins, oldest first. The last is what pip installed without pins when this was last updated."""

UNKNOWN = "unknown"


def installed() -> dict[str, str]:
    """Return the installed version of each of ``PACKAGES``; ``"unknown"`` where the installation does not say."""
    return {name: _version_of(name) for name in PACKAGES}


def _version_of(name: str) -> str:
    try:
        version: str | None = metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError):  # a folder on the path, or metadata without a version
        return UNKNOWN
    return version or UNKNOWN


def newer_than_tested(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the packages whose installed release is newer than any tested one, with the newest tested release.

    A patch release (5.24.1 after 5.24.0) is expected to behave like the release that it patches, and a pre-release or a
    build of a commit (5.24.0.dev0, 2.13.0a0+git1f2e) like the release that it leads to. Unreadable versions are
    skipped.

    Args:
        versions: The installed versions by package.
    """
    found = {}
    for number, package in enumerate(PACKAGES):
        newest = max((stack[number] for stack in STACKS), key=Version)
        minor = _minor(versions.get(package, UNKNOWN))
        if minor is not None and minor > Version(newest).release[:2]:
            found[package] = newest
    return found


def _minor(version: str) -> tuple[int, ...] | None:
    """Return ``(5, 24)`` for ``"5.24.0.dev0"``, or None if the version cannot be read."""
    try:
        release = Version(version).release
    except (InvalidVersion, TypeError):
        return None
    return (*release, 0)[:2]


def in_words(versions: Mapping[str, str]) -> str | None:
    """Return a sentence that says which installed releases are newer than any tested one, or None if none are."""
    newer = newer_than_tested(versions)
    if not newer:
        return None
    tested = " and ".join(f"{name} up to {_shown(newest)}" for name, newest in newer.items())
    return f"peft_hooks was tested with {tested}; installed are {_listed(versions)}"


def _shown(version: str) -> str:
    return ".".join(map(str, Version(version).release[:2]))


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions.get(name, UNKNOWN)}" for name in PACKAGES)


_warned = False


def warn_if_untested(stacklevel: int) -> None:
    """Warn, once per process, if an installed release is newer than any tested one.

    Args:
        stacklevel: The ``stacklevel`` for ``warnings.warn``, counted from the calling function.
    """
    global _warned
    if _warned:
        return
    _warned = True
    said = in_words(installed())
    if said is not None:
        warnings.warn(
            f"{said}. Most likely all is well: `peft-hooks doctor` measures it on these releases",
            stacklevel=stacklevel + 1,
        )
