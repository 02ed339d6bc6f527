"""What expressions give that are not run on the user's tensors: PyTorch says it, and nobody else notices."""

from __future__ import annotations

import ast
import contextlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from peft_hooks import trace_shapes
from peft_hooks.tracing.explain.ghosts import Ghost
from peft_hooks.tracing.explain.values import UNKNOWN, Values

EXPRESSIONS = [
    "x.transpose(1, 2)", "x.permute(2, 0, 1).flatten(1)", "x.view(2, -1)", "x.mT", "x[:, -1]", "x[..., None, ::2]",
    "x @ w", "x + 1", "-x", "x > 0", "x.mean(dim=(0, 1), keepdim=True)", "x.to(torch.float16)", "x.half() + x",
    "x.chunk(3, -1)[1]", "x.split([1, 4], 1)[1]", "torch.cat([x, x], dim=-1)", "torch.stack([x, x])",
    "torch.einsum('bth,hd->btd', x, w)", "F.pad(x, (1, 2))", "F.softmax(x, -1)", "F.gelu(x)", "x.max(1)[1]",
    "torch.where(x > 0, x, 0.0)", "x.index_select(1, i)", "x[:, i]", "torch.zeros(x.size(0), 3)",
    "torch.arange(x.size(1)).unsqueeze(0)", "torch.ones_like(x, dtype=torch.bool)", "x.cpu()", "x.new_zeros(2)",
    "F.interpolate(x, scale_factor=2.0)", "x.unfold(1, 2, 1)", "torch.outer(w[0], w[1])", "x.masked_fill(x > 0, 0)",
    "F.scaled_dot_product_attention(x, x, x)", "x.expand(3, -1, -1, -1)", "torch.broadcast_to(x, (4, 2, 5, 8))",
    "torch.tril(torch.ones(5, 5))", "~(x > 0)", "x ** 2", "x // 2", "x.float().norm(dim=-1)",
]  # fmt: skip
UNTOLD = ["x.item()", "x.tolist()", "x.nonzero()", "x[x > 0]", "F.one_hot(i)", "x.is_contiguous()", "open('f', 'w')"]


def frame_of(**names: Any) -> Any:
    """Make a frame with these names in it."""
    scope: dict[str, Any] = {"torch": torch, "F": nn.functional, "sys": sys, **names}
    exec("frame = sys._getframe()", scope)
    return scope["frame"]


def tensors() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 5, 8), "w": torch.randn(8, 3), "i": torch.tensor([0, 3, 1])}


def evaluated(text: str, **names: Any) -> Any:
    return Values(frame_of(**names))(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_has_the_shape_and_dtype_that_pytorch_gives(expression: str) -> None:
    names = tensors()
    real = eval(expression, {"torch": torch, "F": nn.functional, **names})
    found = evaluated(expression, **names)
    assert isinstance(found, (Ghost, Tensor))
    assert (tuple(found.shape), found.dtype, found.device) == (tuple(real.shape), real.dtype, real.device)


@pytest.mark.parametrize("expression", UNTOLD)
def test_what_goes_by_numbers_or_does_anything_else_is_not_told(expression: str, tmp_path: Any) -> None:
    assert evaluated(expression, **tensors()) is UNKNOWN


class Sees(TorchDispatchMode):
    """Counts what reaches a dispatch mode, such as a counter of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).view(2, 40))  # type: ignore[no-any-return]


class Unfolds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x).unfold(1, 7, 1)  # type: ignore[no-any-return]


class Hears(TorchFunctionMode):
    """Counts what reaches a function mode, such as ``with torch.device(...)``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") != "__get__"  # of an attribute: .shape
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Sees, Hears])
def test_an_explanation_is_not_seen_by_a_mode_around_it(mode: Any) -> None:
    model, x = Heads(), torch.randn(2, 5, 8)
    counts, states = [], []
    for explained in (False, True):
        with mode() as seen, trace_shapes(model) if explained else contextlib.nullcontext():
            with pytest.raises(RuntimeError) as caught:
                model(x)
            states.append(torch.get_rng_state())
        counts.append(seen.count)
        assert hasattr(caught.value, "__notes__") is explained
    assert torch.equal(*states)
    assert counts[0] == counts[1]


def told(model: nn.Module, *inputs: Tensor) -> Any:
    with pytest.raises((RuntimeError, IndexError)), trace_shapes(model) as trace:
        model(*inputs)
    assert trace.failure is not None
    return trace.failure.finding


def test_a_view_of_memory_that_is_not_in_order_is_told_from_one_of_another_size() -> None:
    finding = told(Heads(), torch.randn(2, 5, 8))
    assert finding.kind == "view"
    assert "`x.transpose(1, 2)` [2, 8, 5]" in finding.cause
    assert "not contiguous" in finding.cause
    assert finding.fix.startswith("use `x.transpose(1, 2)`.reshape(")
    assert "not contiguous" not in told(Heads(), torch.randn(3, 5, 8)).cause


@pytest.mark.parametrize(
    ("model", "operand", "fits"),
    [
        (Unfolds(), "`self.qkv(x)` [2, 5, 30]", "7 in dimension 1"),
        (nn.Sequential(nn.Identity(), nn.PixelShuffle(2)), "input [2, 5, 8]", "4 in dimension 0"),
        (nn.Sequential(nn.Identity(), nn.Unflatten(2, (3, 4))), "input [2, 5, 8]", "12 in dimension 2"),
    ],
)
def test_what_an_operation_refuses_by_a_rule_of_its_own_is_shown_without_numbers(
    model: Any, operand: str, fits: str
) -> None:
    finding = told(model, torch.randn(2, 5, 8))
    assert finding.kind == "operation"
    assert operand in finding.cause
    assert fits in finding.fix


@pytest.mark.parametrize("work", [torch.linalg.inv, lambda x: torch.linalg.cholesky(-x), torch.multinomial])
def test_what_fails_by_its_numbers_is_not_laid_to_the_shapes(work: Any) -> None:
    class Works(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return work(x, 2) if work is torch.multinomial else work(x)  # type: ignore[no-any-return]

    assert told(Works(), torch.zeros(3, 3)).kind != "operation"


def test_a_dtype_that_is_refused_only_in_computing_is_named_with_one_that_is_taken() -> None:
    class Minus(nn.Module):
        def forward(self, mask: Tensor) -> Tensor:
            return (1 - mask) * -1e4

    finding = told(Minus(), torch.ones(2, 4, dtype=torch.bool))
    assert finding.kind == "dtype"
    assert "mask [2, 4] is bool" in finding.cause
    assert finding.fix == "use mask.float()"
