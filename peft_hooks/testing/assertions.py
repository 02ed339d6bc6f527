"""The assertions of ``peft_hooks.testing``: embeddings do not move, no hooks are left, shapes agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .models import TEXTS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..doctor.invariance import PaddingReport


def assert_padding_invariant(model: nn.Module, texts: Sequence[str] = TEXTS, **options: Any) -> PaddingReport:
    """Assert that a text's embedding is the same alone and in batches with others.

    Args:
        model: A ``SentenceTransformer``, with hooks or without.
        texts: At least two texts, of different lengths.
        **options: Options of ``check_padding_invariance``: ``tolerance``, ``batch_sizes``, ``prompt_name`` and so on.

    Returns:
        The report.

    Raises:
        AssertionError: If an embedding moves with its batch. The message is the report, followed by every text that
            moves, worst first.

    Example:
        >>> from peft_hooks.testing import assert_padding_invariant, tiny_model
        >>> assert_padding_invariant(tiny_model("bert")).ok
        True
    """
    from ..doctor.invariance import check_padding_invariance

    report = check_padding_invariance(model, texts, **options)
    moved = sorted((row for row in report.differences if not row.difference <= report.allowed), key=_by_difference)
    if moved:
        rows = [f"  {row.difference:.2e} in a batch of {row.batch_size}: {row.text!r}" for row in moved]
        raise AssertionError("\n".join([str(report), *rows]))
    return report


def _by_difference(row: Any) -> float:
    return -float(row.difference)


def assert_no_hooks_left(model: nn.Module, *, foreign: bool = False) -> None:
    """Assert that no hook of this library is on any module of a model.

    Args:
        model: Any ``nn.Module``.
        foreign: Whether other code's hooks count as well.

    Raises:
        AssertionError: If there are any. The message names each hook, its module and its owner.

    Example:
        >>> import torch
        >>> from peft_hooks import HookRegistry, LogShapes
        >>> from peft_hooks.testing import assert_no_hooks_left
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> with HookRegistry(model).attached(LogShapes(), to="0", name="log"):
        ...     assert_no_hooks_left(model)
        Traceback (most recent call last):
        ...
        AssertionError: hooks are left on Sequential:
          Linear '0': log (LogShapes) of registry ...
        >>> assert_no_hooks_left(model)
    """
    from .leftovers import hooks_on, written

    left = hooks_on(model, foreign)
    if left:
        raise AssertionError(written(model, left))


def assert_shapes(
    tensors: Tensor | Sequence[Any] | Mapping[str, Any], contract: str | Mapping[str, str]
) -> dict[str, int]:
    """Assert the dimensions of tensors without a model, such as what a hook returns.

    Args:
        tensors: A tensor, or a dict or tuple with tensors in it.
        contract: A contract as for ``AssertDimensions``; for a single tensor, just its dimensions: ``"batch seq 8"``.

    Returns:
        The size that each name is bound to.

    Raises:
        AssertionError: If a tensor disagrees.
        ValueError: If the contract cannot be read.

    Example:
        >>> from peft_hooks.testing import assert_shapes, tiny_features
        >>> assert_shapes(tiny_features(virtual_tokens=0), {"token_embeddings": "b s 8", "attention_mask!": "i64: b s"})
        {'b': 2, 's': 6}
    """
    from ..dimensions.check import disagreement
    from ..dimensions.lookup import output_of
    from ..dimensions.spec import parse

    bound: dict[str, Any] = {}
    spec = parse({"": contract} if isinstance(contract, str) else contract)
    reason = disagreement(spec, output_of, tensors, bound, {}, "")
    if reason is not None:
        raise AssertionError(reason.message)
    return {name: size for name, (size, *_) in bound.items()}
