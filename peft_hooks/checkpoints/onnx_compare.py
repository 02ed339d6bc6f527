"""Compares an exported graph with the hooked model: the same texts through ONNX Runtime and through ``encode``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._public import public
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..errors import UnsupportedModelError
from ..prompts import probes
from .onnx_graph import BATCH, PROMPT_LENGTH, prompts_are_left_out
from .onnx_tokenizer import Texts, max_length

# One token, several, other alphabets, capitals; a text as long as the model takes is added to them.
TEXTS = (
    "How do I get my money back?",
    "a",
    "Refunds take FIVE days, not weeks; see page 3 (or write to us).",
    "Łódź, a naïve café — 東京 42",
    "the dog sleeps on the warm sofa",
)

_LONGEST = 600
"""The number of tokens of the longest text, if the model takes as many: more than most attention windows have."""

_PROMPTS = 3
"""The number of prompts that are tried at most."""


@public
@dataclass(frozen=True)
class OnnxReport:
    """What ``export_onnx`` wrote, and how far the graph was from the hooked model.

    Attributes:
        path: The file of the graph.
        files: All files that were written, including the graph.
        inputs: The names of the graph's inputs.
        outputs: The names of its outputs.
        texts: The number of texts that were compared; for a CrossEncoder, of pairs.
        batches: The number of batches they were in, from one text to all of them.
        longest: The number of tokens of the longest text.
        largest_difference: The largest difference of any component of an embedding, or of a score.
        allowed: The largest difference that would have counted as the same.

    Example:
        >>> from pathlib import Path
        >>> from peft_hooks import OnnxReport
        >>> names = ("input_ids", "attention_mask")
        >>> print(OnnxReport(Path("model.onnx"), (), names, ("sentence_embedding",), 6, 16, 66, 3e-7, 1e-4))
        6 texts of up to 66 tokens in 16 batches, padded left and right: largest difference 3e-07 (allowed 1e-04)
    """

    path: Path
    files: tuple[Path, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    texts: int
    batches: int
    longest: int
    largest_difference: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"{self.texts} texts of up to {self.longest} tokens in {self.batches} batches, padded left and right: "
            f"largest difference {self.largest_difference:.0e} (allowed {self.allowed:.0e})"
        )


class Compared(NamedTuple):
    """What was compared, and how far apart it was."""

    texts: int
    batches: int
    longest: int
    largest: float
    allowed: float


class Batch(NamedTuple):
    """Texts that are encoded together, after a prompt; None for the prompt that ``encode`` uses by default."""

    texts: list[Any]
    prompt: str | None


def batches_of(model: Any, texts: Texts) -> list[Batch]:
    """Return the batches to compare: all texts, each alone, two together, and some with each of the model's prompts."""
    several = _texts(model, texts)
    batches = [Batch(several, None), *(Batch([text], None) for text in several), Batch(several[:2], None)]
    prompts = [prompt for prompt in (getattr(model, "prompts", None) or {}).values() if prompt]
    if not releases.is_cross_encoder(model) and prompts_are_left_out(model):
        prompts.append("query: ")  # any caller may use a prompt and tell the graph its length
    return [*batches, *(Batch(several[:3], prompt) for prompt in list(dict.fromkeys(prompts))[-_PROMPTS:])]


def _texts(model: Any, texts: Texts) -> list[Any]:
    takes_text = cross.inputs_of(cross.root_of(model))[0][1]
    words = min(max_length(takes_text) or _LONGEST, _LONGEST) + 8
    several = [*TEXTS, "the dog sleeps on a warm sofa " * (words // 7 + 1)]
    if releases.is_cross_encoder(model):
        return list(zip(several, [*several[1:], several[0]]))
    return several


def expected(model: Any, batch: Batch) -> Tensor:
    """Return the hooked model's result for a batch: ``float64[texts, width]``, or ``float64[pairs]`` and so on."""
    options: dict[str, Any] = {"batch_size": len(batch.texts), "convert_to_tensor": True, "show_progress_bar": False}
    if releases.is_cross_encoder(model):
        found = model.predict(batch.texts, **options)
    else:
        if type(model).__name__ == "SparseEncoder":
            options["convert_to_sparse_tensor"] = False
        found = model.encode(batch.texts, prompt=batch.prompt, **options)
    return torch.as_tensor(found).detach().double().cpu()


class Runtime:
    """The exported files in use: ``tokenizers`` makes the tensors, ONNX Runtime runs the graph.

    Raises:
        UnsupportedModelError: If ONNX Runtime cannot load the graph.
    """

    def __init__(self, path: Path, texts: Texts, model: Any) -> None:
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # it lacks a kernel
            raise UnsupportedModelError(_cannot_run(error, model)) from error
        self.texts = texts
        self.model = model
        self.inputs = tuple(node.name for node in self.session.get_inputs())
        self.outputs = tuple(node.name for node in self.session.get_outputs())

    def of(self, batch: Batch, side: str) -> tuple[Tensor, int]:
        """Return the first output for a batch padded on one side, and the number of tokens of its longest text."""
        prompt = _prompt(self.model, batch)
        rows = self.texts.on(side).rows([prompt + text if prompt else text for text in batch.texts])
        given: dict[str, Any] = {name: torch.tensor(values).numpy() for name, values in rows.items()}
        if PROMPT_LENGTH in self.inputs:
            given[PROMPT_LENGTH] = torch.full((len(batch.texts),), prompt_length(self.model, prompt)).numpy()
        try:
            found = self.session.run([self.outputs[0]], given)[0]
        except Exception as error:  # sizes became constants, or values are out of range
            raise UnsupportedModelError(_cannot_run(error, self.model)) from error
        return torch.as_tensor(found).double(), len(rows["input_ids"][0])


def _cannot_run(error: Exception, model: Any) -> str:
    dtype = next(cross.root_of(model).parameters()).dtype
    return (
        f"ONNX Runtime cannot run the graph of this {type(model).__name__}, whose weights are {dtype} "
        f"({probes.in_a_line(error)}): export it in float32, model.float()"
    )


def _prompt(model: Any, batch: Batch) -> str:
    """Return the prompt that ``encode`` puts before the texts of a batch."""
    if batch.prompt is not None:
        return batch.prompt
    name = getattr(model, "default_prompt_name", None)
    return str((getattr(model, "prompts", None) or {}).get(name) or "")


def prompt_length(model: Any, prompt: str) -> int:
    """Return how many tokens of a text belong to its prompt: those of the prompt alone, without a closing token."""
    if not prompt:
        return 0
    tokenizer = cross.inputs_of(cross.root_of(model))[0][1].tokenizer
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - int(ids[-1] in tokenizer.all_special_ids)


def compare(runtime: Runtime, batches: Sequence[Batch], wanted: Sequence[Tensor]) -> Compared:
    """Run the graph on every batch, padded on either side.

    Args:
        runtime: The graph.
        batches: The batches to run.
        wanted: The hooked model's result for each of them.

    Raises:
        UnsupportedModelError: If the graph gives a different result than the model; the message has the numbers.
    """
    largest, longest = 0.0, 0
    dtype = next(cross.root_of(runtime.model).parameters()).dtype
    allowed = probes.tolerance_of(dtype) * max(float(tensor.abs().max()) for tensor in wanted)
    for batch, right in zip(batches, wanted, strict=True):
        for side in ("right", "left") if len(batch.texts) > 1 else ("right",):
            found, length = runtime.of(batch, side)
            far = float((found - right).abs().max()) if found.shape == right.shape else float("nan")
            if not far <= allowed:
                raise UnsupportedModelError(_differ(runtime, batch, side, length, far, allowed, found, right))
            largest, longest = max(largest, far), max(longest, length)
    return Compared(len(batches[0].texts), len(batches), longest, largest, allowed)


def _differ(
    runtime: Runtime, batch: Batch, side: str, length: int, far: float, allowed: float, found: Tensor, right: Tensor
) -> str:
    what = f"differs by {far:.0e} (allowed {allowed:.0e})"
    if found.shape != right.shape:
        what = f"has the shape {list(found.shape)} but the model gives {list(right.shape)}"
    prompt = "" if batch.prompt is None else f" after the prompt {batch.prompt!r}"
    return (
        f"the graph of this {type(runtime.model).__name__} is not the hooked model: {runtime.outputs[0]} {what} in a "
        f"{BATCH} of {len(batch.texts)} texts{prompt}, {length} tokens long, padded {side}. Nothing was written. "
        f"{_likely(runtime, batch)}"
    )


def _likely(runtime: Runtime, batch: Batch) -> str:
    """Return the likely reason, and what to do."""
    modes = [releases.pooling_modes(pooling) for _, pooling in releases.poolings_of(cross.root_of(runtime.model))]
    if PROMPT_LENGTH in runtime.inputs and batch.prompt and any("weightedmean" in each for each in modes):
        return (
            "With include_prompt=False and no virtual tokens before the prompt, weightedmean pooling of this release "
            "weighs by positions that include the prompt, although the mask does not: use include_prompt=True or "
            "another pooling, or serve it with peft_hooks.load"
        )
    return (
        "What depends on more than token ids (a wrapped tokenizer, lower-casing outside of it, a module that reads "
        "values) has no graph: serve it with peft_hooks.load"
    )
