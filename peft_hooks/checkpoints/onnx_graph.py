"""A model as one graph of tensors, from token ids to embeddings or scores, and its export to ONNX by PyTorch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..errors import UnsupportedModelError

BATCH, SEQUENCE = "batch", "sequence"
"""The names of the dimensions of the graph's inputs."""

PROMPT_LENGTH = "prompt_length"
"""The input with the number of prompt tokens of each text; it exists only if Pooling leaves prompts out."""

EMBEDDING, SCORES, POOLED = "sentence_embedding", "scores", "last_hidden_state"
"""The names of the graph's outputs."""

_SHOWN = 300
"""How many characters of PyTorch's message are shown: some go on for pages."""


class Graph(nn.Module):
    """What ``encode`` or ``predict`` computes from tokens: the pipeline's modules, and what these two do after them.

    Args:
        model: The model, with the hooks on.
        names: The names of its inputs, in order.
        pooled: Whether to return the embedding once more as the only row of hidden states, for libraries that pool
            those themselves.
    """

    def __init__(self, model: Any, names: tuple[str, ...], pooled: bool = False) -> None:
        super().__init__()
        root = cross.root_of(model)
        holders = cross.holders_of(root)
        self.pipeline: Any = holders[0][1].model if holders else root
        self.names = names
        self.outputs = (
            (SCORES,) if releases.is_cross_encoder(model) else (EMBEDDING, POOLED) if pooled else (EMBEDDING,)
        )
        self._takes_features = not holders
        self._missing = 0 if holders else releases.missing_in_prompt_length(root)
        self._dimensions: int | None = getattr(model, "truncate_dim", None)
        self._activation: Any = cross.activation_of(model) if SCORES in self.outputs else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs, in the order of their names."""
        features = dict(zip(self.names, tensors, strict=True))
        if PROMPT_LENGTH in features:
            features[PROMPT_LENGTH] = features[PROMPT_LENGTH] - self._missing
        if SCORES in self.outputs:
            return (self._scores(features),)
        # Not a call: in some releases encode() does not call the model itself, so hooks on it do not count.
        embedding = self.pipeline.forward(features)[EMBEDDING][:, : self._dimensions]
        return (embedding, embedding.unsqueeze(1))[: len(self.outputs)]

    def _scores(self, features: dict[str, Tensor]) -> Tensor:
        if self._takes_features:
            scores = self.pipeline.forward(features)[SCORES]
        else:
            scores = self.pipeline(**features, return_dict=True).logits
        scores = self._activation(scores)
        found: Tensor = scores.squeeze(-1) if scores.dim() == 2 and scores.size(1) == 1 else scores
        return found


def prompts_are_left_out(model: nn.Module) -> bool:
    """Tell whether a Pooling leaves prompts out, so that the graph must know how long they are."""
    return any(not getattr(pooling, "include_prompt", True) for _, pooling in releases.poolings_of(model))


def exported(graph: Graph, example: Mapping[str, Tensor], transformer: Any) -> Any:
    """Return the graph as PyTorch's ``ONNXProgram``, for any number of texts of any length.

    Args:
        graph: The graph.
        example: Its inputs for a few texts: several rows and columns, because PyTorch takes a size of 1 as a constant.
        transformer: The module that takes the texts in the model, for messages.

    Raises:
        UnsupportedModelError: If the installed PyTorch cannot export it.
    """
    sizes = tuple({0: BATCH, 1: SEQUENCE} if tensor.dim() == 2 else {0: BATCH} for tensor in example.values())
    try:
        with _quiet_exporter(), _attributes_kept(graph), torch.no_grad():
            return torch.onnx.export(
                graph,
                tuple(example.values()),
                input_names=list(graph.names),
                output_names=list(graph.outputs),
                dynamic_shapes=(sizes,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever PyTorch raises for the forward of a backbone or module
        raise UnsupportedModelError(_why_not(error, transformer)) from error


def _why_not(error: Exception, transformer: Any) -> str:
    """Return a message that names the backbone that was not exported, with the root cause of the error."""
    from importlib.metadata import version

    root = error
    while isinstance(root.__cause__, Exception):
        root = root.__cause__
    shown = shorten(str(root), _SHOWN)
    return (
        f"torch.onnx.export of PyTorch {torch.__version__} cannot export the backbone "
        f"{backbones.model_type(transformer)!r} of transformers {version('transformers')} with the modules after it "
        f"({type(root).__name__}: {shown}). Newer releases of both export more models; prompt tuning, P-tuning and "
        f"multitask prompt tuning can be served as a plain model, peft_hooks.merge_and_unload(model), any method with "
        f"peft_hooks.load"
    )


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore every module's own dicts and lists, which torch.export replaces by copies, at the end of a block."""
    former = [(vars(module), dict(vars(module))) for module in model.modules()]
    within = [(value, _items(value)) for _, known in former for value in known.values() if type(value) in (dict, list)]
    try:
        yield
    finally:
        for attributes, known in former:
            for name in attributes.keys() - known.keys():
                del attributes[name]
            attributes.update(known)
        for value, items in within:
            if not _same(_items(value), items):
                value.clear()
                value.update(items) if isinstance(value, dict) else value.extend(items)


def _items(value: Any) -> list[Any]:
    return list(value.items()) if isinstance(value, dict) else list(value)


def _same(found: list[Any], known: list[Any]) -> bool:
    """Tell whether these are the very same objects; comparing tensors by value would fail."""
    return len(found) == len(known) and [*map(_identity, found)] == [*map(_identity, known)]


def _identity(item: Any) -> Any:
    """Return the identity of an entry: a dict makes a new pair each time, so that of its two parts."""
    return tuple(map(id, item)) if type(item) is tuple else id(item)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter from reporting on stderr what it does not need, such as torchvision."""
    logger = logging.getLogger("torch.onnx")
    former = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(former)
