"""What the contract tests share: models built once per process, skips that say why, and snapshots of modules."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import sentence_transformers
import torch
from torch import Tensor, nn

from peft_hooks.testing import POOLING_MODES, TEXTS, tiny_model

from ..tools import matrix
from ..tools.methods import CACHE_METHODS, Unavailable, put_adapter
from ..tools.reference import reference_embedding

RELEASE = tuple(int(part) for part in sentence_transformers.__version__.split(".")[:2])
TASK = 1


def needs(condition: bool, reason: str) -> None:
    """Skip the test with the reason unless the installed releases can do what it is about."""
    if not condition:
        pytest.skip(f"Sentence Transformers {sentence_transformers.__version__}: {reason}")


def add_adapter(model: Any, config: Any) -> None:
    """Have Sentence Transformers put LoRA's layers in, or skip where transformers asks for a later PEFT."""
    try:
        model.add_adapter(config)
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"add_adapter: {error}")


def plain(architecture: str = "bert", **options: Any) -> Any:
    """Build a tiny model without an adapter, or skip where the installed transformers lacks the architecture."""
    try:
        return tiny_model(architecture, **options)
    except ValueError as error:
        if "has no architecture" not in str(error):
            raise
        return pytest.skip(str(error))


def adapted(
    architecture: str = "bert", method: str = "prompt_tuning", *, adapter: Mapping[str, Any] = {}, **options: Any
) -> Any:
    """Build a tiny model of one's own with an adapter; it has no hooks."""
    model = plain(architecture, **options)
    put(model, method, **adapter)
    return model


def put(model: Any, method: str, **config: Any) -> Any:
    """Put an adapter on, or skip where the installed PEFT cannot."""
    try:
        return put_adapter(model, method, **config)
    except Unavailable as error:
        return pytest.skip(str(error))


@functools.cache
def shared(architecture: str, side: str, method: str | None) -> Any:
    """Build a model once per process; for tests that leave it as it is. Without an adapter if ``method`` is None."""
    if method is None:
        return plain(architecture, padding_side=side)
    try:
        return matrix.adapted(architecture, side, method)
    except Unavailable as error:
        return pytest.skip(str(error))
    except ValueError as error:
        if "has no architecture" not in str(error):
            raise
        return pytest.skip(str(error))


def with_pooling(model: Any, pooling: str | tuple[str, ...], include_prompt: bool = True) -> Any:
    """Put another Pooling after the model's Transformer."""
    return matrix.pipeline(model[0], pooling, include_prompt)


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


@contextlib.contextmanager
def clean_dynamo() -> Iterator[None]:
    """Trace anew, and leave nothing traced."""
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


def break_graph(*_: Any) -> None:
    """Break the graph of ``torch.compile``; a forward hook."""
    torch._dynamo.graph_break()


def interrupt(*_: Any) -> None:
    """Raise what Ctrl-C does; a forward hook."""
    raise KeyboardInterrupt


__all__ = [
    "CACHE_METHODS",
    "RELEASE",
    "TASK",
    "TEXTS",
    "adapted",
    "assert_right",
    "break_graph",
    "clean_dynamo",
    "distance",
    "encoded",
    "expected",
    "forward",
    "in_order",
    "interrupt",
    "needs",
    "options_for",
    "plain",
    "put",
    "refused",
    "shared",
    "snapshot",
    "unchanged",
    "with_pooling",
]
