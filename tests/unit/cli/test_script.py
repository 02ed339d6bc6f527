"""``peft-hooks run``: a script runs as Python runs it, and the error that ends it is explained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ...tools.wording import Golden, assert_says

ROOT = Path(__file__).parents[3]
FAILS = """
import torch
from torch import nn

class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(100, 64)
        self.conv = nn.Conv1d(64, 32, kernel_size=3)

    def forward(self, ids):
        return self.conv(self.words(ids))

Convolution()(torch.ones(2, 4, dtype=torch.long))
"""
# What a script can see of how it was started.
LOOKS = """
import pickle, sys
from beside import beside
class Kept: pass
main = sys.modules["__main__"]
print(__name__, __file__, __spec__ and (__spec__.name, __spec__.parent, __spec__.cached), __package__)
print(sys.argv, sys.path[0], main.__dict__ is globals(), beside)
print(type(pickle.loads(pickle.dumps(Kept()))) is Kept, "peft_hooks" in sys.modules and "torch" in sys.modules)
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        check=False,
        cwd=cwd,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
        timeout=180,
    )


def both(
    script: str, *arguments: str, folder: Path
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Run a script as Python does, and with the command."""
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "beside.py").write_text("beside = 'found'\n", encoding="utf-8")
    (folder / "sub" / "script.py").write_text(script, encoding="utf-8")
    name = os.path.join("sub", "script.py")
    command = python("-m", "peft_hooks", "run", name, *arguments, cwd=folder)
    return python(name, *arguments, cwd=folder), command


@pytest.mark.parametrize("arguments", [[], ["a", "--html", "b", "-h", "--", "c"]])
def test_a_script_finds_what_it_would_find(tmp_path: Path, arguments: list[str]) -> None:
    plain, command = both(LOOKS, *arguments, folder=tmp_path)
    assert plain.returncode == 0
    assert command.stdout == plain.stdout
    assert (command.returncode, command.stderr) == (0, "")


def test_the_error_of_a_forward_is_explained_below_the_traceback_that_python_prints(tmp_path: Path) -> None:
    plain, command = both(FAILS, folder=tmp_path)
    assert command.returncode == plain.returncode == 1
    assert command.stderr.count("peft_hooks: Conv1d 'conv' raised RuntimeError\n") == 1
    assert "transpose(1, 2)" in command.stderr
    if sys.version_info >= (3, 11):  # Python 3.10 prints no notes, so it was logged
        assert command.stderr.startswith(plain.stderr + "peft_hooks: ")


@pytest.mark.parametrize(
    "script",
    [
        "1 / 0",
        "x = = 1",
        "import sys; sys.exit()",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('bye')",
        "raise KeyboardInterrupt",
        "import atexit; atexit.register(print, 'the end')\nraise KeyboardInterrupt",
        "import sys; sys.excepthook = lambda kind, error, traceback: print(kind, traceback.tb_lineno)\n1 / 0",
        "import peft_hooks; raise peft_hooks.HookError('of the script')",
        "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('b') from error",
        "import threading\nthreading.Thread(target=lambda: print(__name__)).start()",
    ],
)
def test_everything_else_ends_as_it_does_in_python(tmp_path: Path, script: str) -> None:
    plain, command = both(script, folder=tmp_path)
    assert (command.returncode, command.stdout, command.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT of this kind")
def test_an_interrupt_ends_it_by_the_signal(tmp_path: Path) -> None:
    # Where the tests run in the background of a shell, the signal is ignored from the start.
    own = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    _, command = both(f"{own}; os.kill(os.getpid(), signal.SIGINT)", folder=tmp_path)
    assert command.returncode == -signal.SIGINT


def test_a_script_that_is_not_there_is_status_2(tmp_path: Path, golden: Golden) -> None:
    command = python("-m", "peft_hooks", "run", "nothing.py", cwd=tmp_path)
    assert command.returncode == 2
    golden("refusals", command.stderr)
    assert_says(command.stderr, "peft-hooks: | nothing.py | No such file or directory")


@pytest.mark.parametrize("name", ["package.inside", "package"])
def test_a_module_finds_what_it_would_find(tmp_path: Path, name: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for file in ("inside.py", "__main__.py"):
        (package / file).write_text(LOOKS.replace("from beside", "from .beside"), encoding="utf-8")
    (package / "beside.py").write_text("beside = 'found'\n", encoding="utf-8")
    plain, command = (python("-m", *run, name, "-m", "a", cwd=tmp_path) for run in ([], ["peft_hooks", "run", "-m"]))
    assert plain.returncode == 0
    assert "found" in plain.stdout
    assert command.stdout == plain.stdout
    assert (command.returncode, command.stderr) == (0, "")


def test_the_error_of_a_module_is_explained_below_its_own_frames(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS, encoding="utf-8")
    plain, command = (python("-m", *run, "fails", cwd=tmp_path) for run in ([], ["peft_hooks", "run", "-m"]))
    assert command.returncode == plain.returncode == 1
    assert "Conv1d 'conv'" in command.stderr
    assert command.stderr.splitlines()[1] == f'  File "{tmp_path / "fails.py"}", line 14, in <module>'


@pytest.mark.parametrize("name", ["nothing", "nothing.at.all", ".beside"])
def test_a_module_that_is_not_there_is_status_2(tmp_path: Path, name: str) -> None:
    command = python("-m", "peft_hooks", "run", "-m", name, cwd=tmp_path)
    assert command.returncode == 2
    assert command.stderr.startswith(f"peft-hooks: {name}: no module that can be run")


def test_html_is_the_page_of_the_failure(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(FAILS, encoding="utf-8")
    command = python("-m", "peft_hooks", "run", "--html", "page.html", "script.py", cwd=tmp_path)
    assert command.returncode == 1
    assert "Wrote page.html\n" in command.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>Why Conv1d &#39;conv&#39; failed</title>" in page
    assert "transpose(1, 2)" in page


def test_html_is_not_written_where_there_is_nothing_to_explain(tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "script.py").write_text("print('fine')", encoding="utf-8")
    command = python("-m", "peft_hooks", "run", "--html", "page.html", "script.py", cwd=tmp_path)
    assert (command.returncode, command.stdout) == (0, "fine\n")
    golden("refusals", command.stderr)
    assert_says(command.stderr, "peft-hooks: | nothing to explain | page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(FAILS, encoding="utf-8")
    command = python("-m", "peft_hooks", "run", "--html", "no/page.html", "script.py", cwd=tmp_path)
    assert command.returncode == 1
    assert_says(command.stderr, "peft-hooks: no/page.html: | No such file or directory\n")
    assert "peft_hooks: Conv1d 'conv' raised RuntimeError" in command.stderr
