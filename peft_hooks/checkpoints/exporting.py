"""``export_onnx``: write a hooked model as one ONNX graph with its tokenizer, for processes without PyTorch."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._arguments import need_path, refuse_meta
from .._public import public
from .._version import VERSION
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..compat import st_modules as modules
from ..compat.pipeline import read_pipeline
from ..errors import MissingExtraError, SaveError, UnsupportedModelError
from ..prompts import probes
from ..prompts.attach import prompt_mask_hooks
from ..prompts.mask import VirtualTokens
from ..prompts.plan import given_options
from .manifest import digest
from .onnx_compare import OnnxReport, Runtime, batches_of, compare, expected, prompt_length
from .onnx_files import KEY, beside, put_in_place, refuse_others
from .onnx_folder import MODEL, write_folder
from .onnx_graph import PROMPT_LENGTH, Graph, exported, prompts_are_left_out
from .onnx_tokenizer import TOKENIZER, Texts, max_length, texts_of

__all__ = ["OnnxReport", "export_onnx"]

_NEEDED = ("onnx", "onnxscript", "onnxruntime")

ABOUT = "peft_hooks"
"""The key of the graph's metadata under which the graph describes itself, as a JSON object."""


class Target(NamedTuple):
    """The target of an export: a folder, the graph's name in it, and whether the folder is a whole model."""

    folder: Path
    graph: str
    is_model: bool


@public
def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    task_id: int | None = None,
    virtual_tokens: VirtualTokens | None = None,
) -> OnnxReport:
    """Write a model with its adapter and hooks as one ONNX graph, with its tokenizer next to it.

    The graph has everything from token ids to ``sentence_embedding``: the virtual tokens or the prefix, the backbone,
    Pooling, the modules after it, and ``truncate_dim``; for a ``CrossEncoder``, everything up to ``scores``, as
    ``predict`` returns them. It takes any number of texts of any length, padded on either side, as tensors
    ``int64[batch, sequence]`` with the names that the tokenizer gives. ``tokenizer.json`` truncates and pads by itself,
    so only ONNX Runtime and the library ``tokenizers`` are needed::

        tokenizer, session = Tokenizer.from_file("tokenizer.json"), InferenceSession("model.onnx")
        texts = tokenizer.encode_batch(["a cat", "a dog"])
        given = {"input_ids": np.array([text.ids for text in texts]), "attention_mask": ...}
        embeddings = session.run(["sentence_embedding"], given)[0]

    Before they are moved to their place, the files are used like this and the result is compared with the hooked
    model: on texts alone and in batches of other sizes and lengths, truncated, with the model's prompts, and padded
    left and right. The caller puts a prompt before the text, as ``encode`` does. If Pooling leaves prompts out
    (``include_prompt=False``), the graph has one more input, ``prompt_length``, ``int64[batch]``: how many tokens of
    the text are the prompt, or 0; the graph's metadata has it for the prompts of the model. A text without any token,
    as GPT-2's tokenizer makes of an empty one, has no embedding.

    A path that does not end in ``.onnx`` becomes a folder that Sentence Transformers loads with
    ``SentenceTransformer(path, backend="onnx")``, and fastembed as a custom model. Both read hidden states and pool
    them themselves: for them the graph in ``onnx/model.onnx`` also returns each embedding as the only hidden state of
    its text, ``last_hidden_state``, ``float[batch, 1, width]``, which ``cls`` pooling picks; ``encode`` gives no token
    embeddings there.

    Needs the extra ``onnx``. The model stays as it is. The exporter: https://docs.pytorch.org/docs/stable/onnx.html

    Args:
        model: A ``SentenceTransformer``, ``SparseEncoder`` or ``CrossEncoder`` with a PEFT adapter of any method;
            without hooks, it gets those of ``register_prompt_mask_hooks`` for the export.
        path: The file of the graph, ``name.onnx``, or a folder for a whole model. Weights of more than 2 GB go into
            ``name.onnx.data``. Files that ``export_onnx`` wrote before are replaced, others are not.
        task_id: The task of multitask prompt tuning; by default that of the hooks.
        virtual_tokens: The policy; by default that of the hooks.

    Returns:
        A report of what was written and compared; as text, it is one sentence.

    Raises:
        TypeError: If ``model`` is not a model of Sentence Transformers or ``path`` is not a path.
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
        SaveError: If another file is in the way, or nothing can be written there.
        UnsupportedModelError: If the embeddings cannot be right with this model and adapter, if PyTorch cannot export
            it or ONNX Runtime cannot run it, or if the graph gives a different result; nothing is written then.

    Example:
        >>> import tempfile
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, export_onnx
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(model, f"{folder}/model.onnx")  # doctest: +SKIP
        >>> report.largest_difference < 1e-5  # doctest: +SKIP
        True
    """
    target = _target(need_path(path, "the path of a file to export to"))
    root, takes_text = _exportable(model, target)
    _need_extra()
    chosen = given_options(task_id, virtual_tokens)
    with prompt_mask_hooks(model, **chosen), probes.at_rest(root), beside(target.folder) as stage:
        return _write(model, takes_text, target, stage)


def _target(path: str) -> Target:
    whole = Path(os.path.abspath(Path(path).expanduser()))
    if whole.suffix.lower() == ".onnx":
        if whole.is_dir():
            raise SaveError(f"{whole}: this is a folder: give the name of a file in it")
        return Target(whole.parent, whole.name, False)
    if whole.is_file():
        raise SaveError(f"{whole}: this is a file: give a folder, or a file that ends in .onnx")
    return Target(whole, MODEL, True)


def _exportable(model: Any, target: Target) -> tuple[nn.Module, Any]:
    """Return the module to run and the one in it that takes texts; refuse what a graph cannot express."""
    read = read_pipeline(model)
    root, encoders = read.root, read.encoders
    refuse_meta(root)
    kind = type(model).__name__
    if len(encoders) > 1 or releases.routes_of(root):
        raise UnsupportedModelError(
            f"this {kind} has a Router, which chooses modules by the task of a text; a graph cannot do that: export "
            f"the modules of each route as a model of their own, SentenceTransformer(modules=[...])"
        )
    if kind == "MultiVectorEncoder":
        raise UnsupportedModelError(
            "a MultiVectorEncoder gives one vector for each token that counts, and encode() chooses these: serve it "
            "with peft_hooks.load"
        )
    if target.is_model and kind != "SentenceTransformer":
        raise UnsupportedModelError(
            f"{target.folder}: only a SentenceTransformer can become a folder, not a {kind}: give the name of a file "
            f"that ends in .onnx"
        )
    if getattr(model, "max_active_dims", None) is not None:
        raise UnsupportedModelError(
            f"max_active_dims={model.max_active_dims} cannot be part of a graph: set it to None, and keep the largest "
            f"components where the graph is used"
        )
    return root, encoders[0].module


def _need_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"export_onnx needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install peft_hooks[onnx]"
        )


def _write(model: Any, takes_text: Any, target: Target, stage: Path) -> OnnxReport:
    """Write everything to the stage, compare it, and move it to its place."""
    texts = texts_of(takes_text)
    example = _example(model, texts)
    graph = Graph(model, tuple(example), pooled=target.is_model)
    program = exported(graph, example, takes_text)
    texts.tokenizer.save(str(stage / TOKENIZER))
    if target.is_model:
        write_folder(model, takes_text, stage)
    written = {file.relative_to(stage).as_posix(): digest(file) for file in stage.rglob("*") if file.is_file()}
    properties = program.model.metadata_props
    properties[ABOUT], properties[KEY] = json.dumps(_about(model, takes_text)), json.dumps(written)
    file = stage / target.graph
    file.parent.mkdir(exist_ok=True)
    program.save(str(file))
    runtime, batches = Runtime(file, texts, model), batches_of(model, texts)
    found = compare(runtime, batches, [expected(model, batch) for batch in batches])
    _refuse_others(stage, target)
    files = put_in_place(stage, target.folder, target.graph)
    at = target.folder / target.graph
    return OnnxReport(at, tuple(files), runtime.inputs, runtime.outputs, *found)


def _example(model: Any, texts: Texts) -> dict[str, Tensor]:
    """Return inputs for three texts of different lengths."""
    several: list[Any] = ["the dog sleeps on the warm sofa", "a cat", "rain falls on the sea"]
    if releases.is_cross_encoder(model):
        several = list(zip(several, several[::-1]))
    device = next(cross.root_of(model).parameters()).device
    example = {name: torch.tensor(rows, device=device) for name, rows in texts.rows(several).items()}
    if not releases.is_cross_encoder(model) and prompts_are_left_out(model):
        example[PROMPT_LENGTH] = torch.tensor([2, 0, 1], device=device)
    return example


def _about(model: Any, takes_text: Any) -> dict[str, Any]:
    """Return the graph's description of itself."""
    prompts: Mapping[str, str] = getattr(model, "prompts", None) or {}
    config = releases.active_config(takes_text)
    return {
        "version": VERSION,
        "model": type(model).__name__,
        "method": None if config is None else releases.method_of(config),
        "max_seq_length": max_length(takes_text),
        "similarity": modules.similarity_of(model),
        "prompts": dict(prompts),
        "prompt_lengths": {name: prompt_length(model, prompt) for name, prompt in prompts.items()},
        "default_prompt": getattr(model, "default_prompt_name", None),
    }


def _refuse_others(stage: Path, target: Target) -> None:
    import onnx

    names = [file.relative_to(stage).as_posix() for file in stage.rglob("*") if file.is_file()]
    written: dict[str, str] = {}
    there = target.folder / target.graph
    if there.is_file():
        try:
            known = onnx.load(str(there), load_external_data=False).metadata_props
            written = next((json.loads(one.value) for one in known if one.key == KEY), {})
        except Exception:  # not a graph, despite its name
            written = {}
    refuse_others(target.folder, names, target.graph, written)
