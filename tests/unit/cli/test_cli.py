"""The command line: what it prints, its JSON, and its exit status."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peft_hooks.cli import main as _cli
from peft_hooks.compat.quiet import quiet
from peft_hooks.testing import tiny_model

from ...tools.checks import RELEASE
from ...tools.cross import tiny_cross_encoder
from ...tools.methods import backbone_of, put_adapter
from ...tools.wording import Golden, assert_says

ROOT = Path(__file__).parents[3]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, without a terminal and without a network."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = {"PYTHONPATH": paths, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "peft_hooks", *arguments],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, **settings, **environment},
        timeout=180,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny model plain, prompt-tuned as a whole, and its adapter alone."""
    where = tmp_path_factory.mktemp("saved")
    with quiet():
        model = tiny_model("bert", path=where / "transformer", pooling="cls")
        model.save(str(where / "plain"))
        put_adapter(model, "prompt_tuning")
        model.save(str(where / "whole"))
        config = backbone_of(model).peft_config["default"]
        config.base_model_name_or_path = str(where / "plain")
        backbone_of(model).save_pretrained(str(where / "adapter"))
    set_config(where / "whole", base_model_name_or_path=str(where / "plain"))
    return where


def set_config(folder: Path, **values: Any) -> None:
    (file,) = folder.rglob("adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """Copy the saved models, to be damaged."""
    shutil.copytree(saved, tmp_path / "saved")
    return tmp_path / "saved"


def doctor(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    status = _cli.main(["doctor", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_healthy_model_is_status_0(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = doctor(capsys, saved / "plain")
    assert status == 0
    assert_says(out, "healthy | 6 embeddings | the same")
    assert "PROBLEMS" not in out
    assert f"Loading {saved / 'plain'} ..." in err.replace("\n", "")


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_a_prompt_adapter_is_loaded_by_hand_and_its_findings_are_status_1(
    saved: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    status, out, err = doctor(capsys, saved / name)
    assert status == 1
    assert "'default': PROMPT_TUNING, 4 virtual tokens" in out
    assert_says(out, "PH006 | [CLS] | Pooling '1'")
    assert "Attaching the adapter in" in err
    assert re.search(r"PROBLEMS +\d findings?.* peft_hooks\.register_prompt_mask_hooks\(model\)", out)


def test_the_loaded_adapter_has_the_saved_weights_tokenizer_and_pooling(saved: Path) -> None:
    import contextlib

    from peft_hooks.checkpoints.loading import load_model

    original = tiny_model("bert", pooling="cls")
    put_adapter(original, "prompt_tuning")
    expected = original.encode("a cat")
    for name in ("whole", "adapter"):
        with quiet():
            loaded = load_model(str(saved / name), None, lambda what: contextlib.nullcontext())
        assert abs(loaded.encode("a cat") - expected).max() < 1e-6
        assert not loaded.training


def test_a_base_that_is_a_transformer_alone_gets_mean_pooling_and_that_is_said(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = doctor(capsys, saved / "adapter", "--base", saved / "transformer")
    assert status in (0, 1)
    assert "Pooling (mean)" in out
    assert "Sentence Transformers adds mean pooling" in err.replace("\n", " ")


def test_json_has_everything_and_nothing_else_is_on_stdout(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = doctor(capsys, saved / "whole", "--json")
    found = json.loads(out)
    assert status == 1
    assert found["path"] == str(saved / "whole")
    assert found["ok"] is False
    assert {"code", "name", "place", "sentence", "measured", "fix", "fixed"} == set(found["findings"][0])
    run = {"padding", "own", "hooks", "difference", "tolerance", "error", "same", "judged_by"}
    assert run == set(found["runs"][0])
    assert set(found["versions"]) == {"sentence-transformers", "peft", "transformers", "torch"}
    assert "PH006" in [one["code"] for one in found["findings"]]


def test_json_of_a_healthy_model_is_status_0(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = doctor(capsys, saved / "plain", "--json")
    assert status == 0
    assert json.loads(out)["ok"] is True
    assert json.loads(out)["findings"] == []


def test_an_adapter_of_no_task_type_loads_and_is_ph005(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(copied / "adapter", task_type=None)
    status, out, _ = doctor(capsys, copied / "adapter")
    assert status == 1
    assert "PH005" in out


REFUSED: dict[str, tuple[Any, str]] = {
    "an empty directory": (
        lambda at: shutil.rmtree(at / "plain") or (at / "plain").mkdir(),
        "modules.json | config.json | adapter_config.json",
    ),
    "no such path": (lambda at: shutil.rmtree(at / "plain"), "no such path"),
    "damaged modules.json": (
        lambda at: (at / "plain" / "modules.json").write_text("[{"),
        "modules.json | damaged | not JSON",
    ),
    "modules without types": (
        lambda at: (at / "plain" / "modules.json").write_text("[{}]"),
        "modules.json | a type and a path",
    ),
    "modules.json of another kind": (
        lambda at: (at / "plain" / "modules.json").write_text("{}"),
        "modules.json | damaged | a list | a dict",
    ),
    "a module with code": (
        lambda at: (at / "plain" / "modules.json").write_text('[{"type": "evil.Module", "path": ""}]'),
        "evil.Module | not part of Sentence Transformers | code is not run",
    ),
    "pickled weights": (
        lambda at: [
            file.rename(file.parent / "pytorch_model.bin") for file in (at / "plain").rglob("model.safetensors")
        ],
        "pytorch_model.bin | can run code | only safetensors",
    ),
    "damaged weights": (
        lambda at: [file.write_bytes(b"no") for file in (at / "plain").rglob("model.safetensors")],
        "could not be loaded | SafetensorError",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_loaded_is_status_2_and_one_sentence(
    copied: Path, capsys: pytest.CaptureFixture[str], what: str, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken where a path is long
    damage, facts = REFUSED[what]
    damage(copied)
    status, out, err = doctor(capsys, copied / "plain")
    assert status == 2
    assert out == ""
    refusal = err.splitlines()[-1]
    ours = re.sub(r"(not JSON|SafetensorError): .*", r"\1: <the library's words>", refusal)
    golden("refusals", ours.replace(str(copied), "<folder>"), title=what)
    assert_says(refusal, facts)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", "adapter_config.json | damaged | not JSON"),
        ("[]", "adapter_config.json | damaged | a dict | a list"),
        ("{}", "peft_type | not a PEFT adapter"),
        ('{"peft_type": "PROMPT_TUNING"}', "its base model | --base PATH"),
        ('{"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "/no/where"}', "/no/where | --base PATH"),
        ('{"peft_type": "NO_SUCH", "base_model_name_or_path": "../plain"}', "could not be loaded | NO_SUCH"),
    ],
)
def test_a_damaged_adapter_config_is_status_2(
    copied: Path, capsys: pytest.CaptureFixture[str], text: str, facts: str
) -> None:
    (copied / "adapter" / "adapter_config.json").write_text(text)
    status, out, err = doctor(capsys, copied / "adapter")
    assert status == 2
    assert out == ""
    assert_says("".join(err.splitlines()), facts)


def test_an_adapter_without_safetensors_is_status_2(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copied / "adapter" / "adapter_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    status, _, err = doctor(capsys, copied / "adapter")
    assert status == 2
    assert_says(" ".join(err.split()), "adapter_model.safetensors | nothing else")


def test_a_file_is_no_directory(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = doctor(capsys, copied / "plain" / "modules.json")
    assert status == 2
    assert_says(" ".join(err.split()), "not a model directory | a file")


def test_a_name_that_cannot_be_downloaded_is_status_2_piped_without_colour() -> None:
    done = command("doctor", "no-such-user/no-such-model", FORCE_COLOR="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert_says(done.stderr, "no-such-user/no-such-model | no such directory | Hugging Face Hub")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_piped_it_fits_80_columns_without_colours_and_says_what_it_does(saved: Path) -> None:
    done = command("doctor", str(saved / "whole"))
    assert done.returncode == 1, done.stderr
    wide = [line for line in done.stdout.splitlines() if len(line) > 80 and str(saved) not in line]
    assert not wide
    assert "\x1b" not in done.stdout + done.stderr
    steps = [line.split()[0] for line in done.stderr.splitlines() if line.endswith("...")]
    assert steps == ["Loading", "Loading", "Attaching", "Encoding"], done.stderr


def test_a_terminal_without_unicode_gets_plain_signs(saved: Path) -> None:
    done = command("doctor", str(saved / "whole"), PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert done.stdout.isascii()


@pytest.fixture(scope="module")
def native() -> tuple[subprocess.CompletedProcess[str], float]:
    """Run it once, and take down its processor time: the wall clock of a busy machine tells nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("doctor", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_with_no_model_it_tries_every_method_on_the_spot(native: Any) -> None:
    done, _ = native
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    cells = found["cells"]
    assert len(cells) == 6 * 2 * 2 * 2
    assert {cell["outcome"] for cell in cells if cell["hooks"]} <= {"right", "refused", "missing"}
    without = {
        (cell["method"], cell["backbone"], cell["pooling"]): cell["outcome"] for cell in cells if not cell["hooks"]
    }
    assert without["multitask", "bert", "mean"] == "raises"
    assert without["prompt tuning", "bert", "cls"] == "wrong"
    assert without["LoRA", "bert", "mean"] == "right"
    expected = "wrong" if RELEASE >= (6, 2) else "right" if RELEASE >= (3, 3) else "raises"
    assert without["prompt tuning", "bert", "mean"] == expected


def test_with_no_model_it_takes_less_than_a_minute(native: Any) -> None:
    assert native[1] < 60


def test_the_table_of_methods_fits_80_columns(native: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from io import StringIO

    from rich.console import Console

    from peft_hooks.cli.stack import Cell, show

    console = Console(file=StringIO(), width=80, color_system=None)
    show(console, [Cell(**cell) for cell in json.loads(native[0].stdout)["cells"]])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "bert, padded on the right" in shown
    assert "llama, padded on the left" in shown
    assert "…" not in shown
    assert re.search(r"^With hooks +\d+ right", shown, re.M)
    assert re.search(r"^\[\d\] ValueError: task_ids cannot be None", shown, re.M)


def test_trace_prints_a_table_and_writes_a_page_and_json(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--html", str(tmp_path / "page.html"), "--json", str(tmp_path / "trace.json")]
    assert _cli.main(["trace", str(saved / "plain"), "a cat", "rain falls", *files, "--depth", "1"]) == 0
    said = capsys.readouterr()
    assert "Transformer" in said.out
    assert "Pooling" in said.out
    assert "Encoding 2 texts ..." in said.err
    assert (tmp_path / "page.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")
    assert json.loads((tmp_path / "trace.json").read_text())["failure"] is None


def test_trace_of_a_forward_that_raises_is_status_1_with_the_explanation(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Multitask prompt tuning has no task without the hooks, in any release."""
    with quiet():
        model = tiny_model("bert")
        put_adapter(model, "multitask_prompt_tuning")
        backbone_of(model).save_pretrained(str(copied / "multitask"))
    set_config(copied / "multitask", base_model_name_or_path=str(copied / "plain"))
    assert _cli.main(["trace", str(copied / "multitask"), "a cat"]) == 1
    said = capsys.readouterr()
    assert "ValueError: task_ids cannot be None" in said.err
    assert "peft_hooks: " in said.err
    assert "cause: " in said.err


@pytest.mark.skipif(RELEASE < (5, 4), reason="before 5.4 a CrossEncoder's folder does not say what it is")
def test_trace_of_a_cross_encoder_takes_its_texts_in_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor, which compares embeddings, says what else there is."""
    with quiet():
        tiny_cross_encoder().save_pretrained(str(tmp_path))
    assert _cli.main(["trace", str(tmp_path), "a cat", "rain falls", "a dog", "it sleeps"]) == 0
    assert "CrossEncoder: 1 forward" in capsys.readouterr().out
    assert _cli.main(["trace", str(tmp_path), "a cat"]) == 1
    assert_says(capsys.readouterr().err, "CrossEncoder | pairs | even number | not 1")
    assert _cli.main(["doctor", str(tmp_path)]) == 2
    assert_says(capsys.readouterr().err, "CrossEncoder | no embeddings")


def test_trace_of_no_model_is_status_2_and_without_texts_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _cli.main(["trace", str(tmp_path), "a cat"]) == 2
    assert "not a model: it has no modules.json" in capsys.readouterr().err
    for wrong in (["trace", str(tmp_path)], ["trace", str(tmp_path), "a", "--depth", "-1"]):
        with pytest.raises(SystemExit) as left:
            _cli.main(wrong)
        assert left.value.code == 2


def test_a_file_that_cannot_be_written_is_status_2(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(["trace", str(saved / "plain"), "a cat", "--html", str(saved / "no" / "page.html")]) == 2
    assert_says(capsys.readouterr().err, "could not be written | No such file or directory")


def test_a_lora_saved_by_a_release_is_healthy(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        model = tiny_model("bert")
        put_adapter(model, "lora")
        backbone_of(model).save_pretrained(str(copied / "lora"))
    set_config(copied / "lora", base_model_name_or_path="../plain")
    status, out, err = doctor(capsys, copied / "lora")
    assert status == 0, out + err
    assert "'default': LORA" in out


def test_the_help_names_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("doctor", "trace"):
        with pytest.raises(SystemExit) as left:
            _cli.main([name, "--help"])
        assert left.value.code == 0
        assert "Exit status 0:" in capsys.readouterr().out


def test_importing_the_command_line_loads_no_library() -> None:
    libraries = "{'sentence_transformers', 'peft', 'rich', 'transformers'}"
    code = f"import sys, peft_hooks.cli.main; print({libraries} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
