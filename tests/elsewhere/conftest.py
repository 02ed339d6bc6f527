"""What is served, made once for all tools."""

from __future__ import annotations

import pytest

from .served import Served


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))
