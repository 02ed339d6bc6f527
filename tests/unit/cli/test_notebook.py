"""``%load_ext peft_hooks`` in a real IPython, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("IPython")

ROOT = Path(__file__).parents[3]
FAILS = "torch.nn.Linear(3, 4)(torch.zeros(2, 5))"
BEGIN = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="NoColor")
run = lambda cell: print("== " + cell.splitlines()[0], flush=True) or shell.run_cell(cell)
run("import torch")
"""


def cells(*lines: str, folder: Path) -> list[str]:
    """Run lines in a process with a shell, and return what was printed for each cell."""
    script = folder / "session.py"
    script.write_text(BEGIN + "\n".join(lines), encoding="utf-8")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {"PYTHONPATH": paths, "IPYTHONDIR": str(folder), "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={**os.environ, **settings},
        timeout=180,
    )
    return done.stdout.split("== ")[2:]


def test_each_cell_is_explained_from_loading_to_unloading(tmp_path: Path) -> None:
    run = f"run({FAILS!r})"
    before, _, first, second, _, after = cells(
        run, "run('%load_ext peft_hooks')", run, run, "run('%unload_ext peft_hooks')", run, folder=tmp_path
    )
    for shown in (first, second):
        assert shown.count("peft_hooks: Linear raised RuntimeError") == 1
        assert "fix: set in_features=5" in shown
    for shown in (before, after):
        assert "mat1 and mat2" in shown
        assert "peft_hooks:" not in shown


def test_whatever_is_not_explained_is_shown_as_without_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = = 1\n", encoding="utf-8")
    cells_of_errors = ["1 +", "1 / 0", "import broken", "  x\n y", "raise KeyboardInterrupt", "%nothing"]
    lines = [f"run({cell!r})" for cell in cells_of_errors]
    alone = cells(*lines, folder=tmp_path)
    loaded = cells("run('%load_ext peft_hooks')", *lines, folder=tmp_path)[1:]
    numbered = [shown.replace("[3]", "[2]") for shown in loaded]
    assert [_without_numbers(shown) for shown in numbered] == [_without_numbers(shown) for shown in alone]


def test_a_handler_that_was_there_still_shows_its_exceptions_and_is_put_back(tmp_path: Path) -> None:
    handler = "shell.set_custom_exc((KeyError,), lambda *given, tb_offset=None: print('mine', given[1].__name__))"
    key, failed, fails = "run('{}[1]')", f"run({FAILS!r})", "mine KeyError"
    _, own, explained, _, again, plain = cells(
        handler,
        "run('%load_ext peft_hooks')",
        key,
        failed,
        "run('%unload_ext peft_hooks')",
        key,
        failed,
        folder=tmp_path,
    )
    assert fails in own
    assert fails in again
    assert "peft_hooks: Linear raised" in explained
    assert "peft_hooks:" not in plain


def _without_numbers(shown: str) -> str:
    """Leave out the numbers of cells, of which the loading takes one."""
    return "".join(letter for letter in shown if not letter.isdigit())
