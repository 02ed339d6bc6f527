"""``examples/tour.ipynb`` runs, with the installed wheel and offline, and shows what its committed outputs show."""

from __future__ import annotations

import base64
import json
import re
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ..tools.artefacts import ROOT, Installed

TOUR = ROOT / "examples" / "tour.ipynb"

# Run in the environment that has the wheel: the kernel is of the Python that asks for it.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False).execute(cwd=".")
nbformat.write(notebook, sys.argv[2])
"""


def outputs(file: Path) -> list[list[dict[str, Any]]]:
    """Return the outputs of each code cell."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def data(cells: list[list[dict[str, Any]]], kind: str) -> list[str]:
    """Return everything of one MIME type, in order."""
    found = [output.get("data", {}).get(kind) for cell in cells for output in cell]
    return ["".join(each) for each in found if each is not None]


def printed(cells: list[list[dict[str, Any]]]) -> str:
    """Return what was printed, with numbers masked: the last digits are the machine's."""
    text = "".join("".join(output.get("text", "")) for cell in cells for output in cell)
    return re.sub(r"\d[\d.,e-]*", "N", text)


def size(picture: str) -> tuple[int, int]:
    """Return the width and height of a PNG."""
    raw = base64.b64decode(picture)
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")


@pytest.fixture(scope="module")
def committed() -> list[list[dict[str, Any]]]:
    """Return the outputs that git has."""
    return outputs(TOUR)


@pytest.fixture(scope="module")
def executed(installed: Installed) -> list[list[dict[str, Any]]]:
    """Run the notebook, beside the file that it imports, and return its outputs."""
    for name in ("tour.ipynb", "docstring_search.py"):
        shutil.copy(ROOT / "examples" / name, installed.away)
    home = str(installed.away)
    installed.run("-c", EXECUTE, "tour.ipynb", "executed.ipynb", OMP_NUM_THREADS="1", IPYTHONDIR=home)
    return outputs(installed.away / "executed.ipynb")


def test_every_cell_gives_what_is_committed_in_kind(
    committed: list[list[dict[str, Any]]], executed: list[list[dict[str, Any]]]
) -> None:
    """The same kinds of output in the same cells, the same words, and no error."""

    def kinds(cells: list[list[dict[str, Any]]]) -> list[list[tuple[str, list[str]]]]:
        # What is printed comes in one piece or more, as it happens.
        found = ([(output["output_type"], sorted(output.get("data", {}))) for output in cell] for cell in cells)
        return [[kind for kind, _ in groupby(cell)] for cell in found]

    assert kinds(executed) == kinds(committed)
    assert printed(executed) == printed(committed)
    assert "stderr" not in {output.get("name") for cell in executed for output in cell}


def test_the_pictures_are_there(committed: list[list[dict[str, Any]]], executed: list[list[dict[str, Any]]]) -> None:
    """How far embeddings move, the ribbon of masks, the training curve: of the committed sizes."""
    pictures = [size(each) for each in data(executed, "image/png")]
    assert len(pictures) == 3
    assert pictures == [pytest.approx(each, rel=0.1) for each in map(size, data(committed, "image/png"))]


def test_the_trace_and_the_diff_draw_themselves(
    committed: list[list[dict[str, Any]]], executed: list[list[dict[str, Any]]]
) -> None:
    """As HTML, that of today: the picture of the pipeline, and the table of what the hooks change."""
    trace, diff = shown = data(executed, "text/html")
    assert shown == data(committed, "text/html")
    assert "<svg" in trace
    assert "Shapes in SentenceTransformer" in trace
    assert "<table>" in diff
    assert "attention_mask" in diff


def test_it_shows_the_harm_and_the_cure(executed: list[list[dict[str, Any]]]) -> None:
    """Padding is pooled without hooks; with them a prompt is trained, saved and loaded."""
    said = printed(executed)
    for sentence in (
        "PHN Padding counts as if it were text",
        "better on held-out queries: True",
        "the same embeddings: True",
        "the same alone and in a batch: True",
    ):
        assert sentence in said


def test_what_is_committed_is_small_and_of_no_machine() -> None:
    """No paths, no times, no warnings."""
    text = TOUR.read_text(encoding="utf-8")
    assert len(text) < 400_000
    for noise in ("/home/", "/root/", "/tmp/", "/work/", "Warning", "iopub", 'execution": {'):
        assert noise not in text
