"""What tests ask of a model: embeddings by hand and how far they are, a refusal, and modules that stay as they were."""

from __future__ import annotations

import contextlib
import multiprocessing
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sentence_transformers
import torch
from torch import Tensor, nn

from peft_hooks.testing import POOLING_MODES, TEXTS

from .matrix import pipeline
from .reference import reference_embedding

RELEASE = tuple(int(part) for part in sentence_transformers.__version__.split(".")[:2])
TASK = 1
OTHERS = ("rain", "a cat", "", "the moon and the stars", *TEXTS, " ".join(TEXTS * 3))
"""Texts that no probe ever saw: of one token, of none, and beyond what a tiny model takes."""


def needs(condition: bool, reason: str) -> None:
    """Skip the test with the reason unless the installed releases can do what it is about."""
    if not condition:
        pytest.skip(f"Sentence Transformers {sentence_transformers.__version__}: {reason}")


def with_pooling(model: Any, pooling: str | tuple[str, ...], include_prompt: bool = True) -> Any:
    """Put another Pooling after the model's Transformer."""
    return pipeline(model[0], pooling, include_prompt)


def options_for(method: str) -> dict[str, Any]:
    """Return the options that the method cannot do without."""
    return {"task_id": TASK} if method == "multitask_prompt_tuning" else {}


def in_order(modes: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the modes in the order in which every release concatenates them."""
    wanted = (modes,) if isinstance(modes, str) else modes
    return tuple(mode for mode in POOLING_MODES if mode in wanted)


def expected(
    model: Any, texts: Sequence[str] = TEXTS, *, pooling: str | tuple[str, ...] = "mean", **how: Any
) -> Tensor:
    """Compute the texts' embeddings by hand, ``[texts, width]``, float64."""
    return torch.stack([reference_embedding(model, text, pooling=in_order(pooling), **how) for text in texts])


def encoded(model: Any, texts: Sequence[str] = TEXTS, **options: Any) -> Tensor:
    """Encode the texts in one batch."""
    found = model.encode(list(texts), batch_size=len(texts), convert_to_tensor=True, **options)
    return torch.as_tensor(found)


def distance(found: Tensor, truth: Tensor) -> float:
    """Return the largest difference of a component; NaN counts as infinite."""
    assert found.shape == truth.shape, f"{list(found.shape)} is not {list(truth.shape)}"
    return float((found.double() - truth.double()).abs().nan_to_num(nan=float("inf")).max())


def assert_right(model: Any, texts: Sequence[str] = TEXTS, *, tolerance: float = 1e-4, **how: Any) -> None:
    """Assert that the texts' embeddings are the reference's, in one batch and each alone."""
    truth = expected(model, texts, **how)
    assert distance(encoded(model, texts), truth) <= tolerance
    assert distance(torch.cat([encoded(model, [text]) for text in texts]), truth) <= tolerance


def forward(model: Any, features: Any) -> Any:
    """Run the whole pipeline on features, without gradients."""
    with torch.no_grad():
        return model(features)


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Take down ``vars()`` of every module, the hooks among them with their keys and in their order."""
    return {
        path: {key: _contents(value) for key, value in vars(module).items()} for path, module in model.named_modules()
    }


def _contents(value: Any) -> Any:
    if isinstance(value, list):  # what is in it: an LSTM makes its lists of weights anew at each `.to()`, as in encode
        return [id(entry() if isinstance(entry, weakref.ref) else entry) for entry in value]
    return [(key, id(entry)) for key, entry in value.items()] if isinstance(value, dict) else (id(value), _shown(value))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float, bool, tuple, type(None))) else type(value).__name__


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that the block leaves ``vars()`` of every module of the model, and what is frozen, as it found them."""
    before, frozen = snapshot(model), [parameter.requires_grad for parameter in model.parameters()]
    yield
    after = snapshot(model)
    assert list(after) == list(before)
    for path in before:
        assert after[path] == before[path], f"vars() of {path!r} differ"
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen


@contextlib.contextmanager
def refused(model: nn.Module, kind: type[BaseException], *parts: str) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Assert that the block raises exactly ``kind``, with every part in the message, and leaves the model as it was."""
    with unchanged(model):
        with pytest.raises(kind) as caught:
            yield caught
        assert caught.type is kind
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def break_graph(*_: Any) -> None:
    """Break the graph of ``torch.compile``; a forward hook."""
    torch._dynamo.graph_break()


def interrupt(*_: Any) -> None:
    """Raise what Ctrl-C does; a forward hook."""
    raise KeyboardInterrupt


def encode_in_processes(model: Any, texts: list[str]) -> Any:
    """Encode in two spawned workers, by the API that the release has."""
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork", "spawn", "forkserver")
    if RELEASE >= (5, 1):
        return model.encode(texts, device=["cpu", "cpu"], chunk_size=3)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        return model.encode_multi_process(texts, pool, chunk_size=3)
    finally:
        model.stop_multi_process_pool(pool)
