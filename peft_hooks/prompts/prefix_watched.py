"""Watch the modules of a backbone that return one row per token, in forwards of a few tokens."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..compat.torch_internals import has_children
from . import probes
from .prefix_record import Projection

# Rows in front of the text, and rows of the text.
FRONT, TEXT = 3, 4

Key = tuple[nn.Module, int]
"""A module, and the number of one of its calls in a forward."""


class UnknownPlacesError(Exception):
    """Keys and values cannot be put into this backbone's attention; the message says why."""


def _first(output: Any) -> Any:
    """Return the first value of a module's output."""
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return next(iter(output.values()), None) if isinstance(output, Mapping) else output


class Watched:
    """The leaf modules of a body that return one row per token, in the order of their calls."""

    def __init__(self, body: Any) -> None:
        self.body = body
        ids = probes.text_ids(body, FRONT + TEXT)
        self._text = {"input_ids": ids.unsqueeze(0), "attention_mask": torch.ones_like(ids).unsqueeze(0)}
        self._leaves = [module for module in body.modules() if not has_children(module)]
        self.given: dict[Key, Tensor] = {}  # the output of each call, detached
        self.order: list[Key] = []
        self._around: Counter[str] = Counter()

    def has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and value.shape[:-1] == (1, FRONT + TEXT)

    def forward(self, give: Callable[[Key, Any, Tensor], Tensor]) -> Tensor:
        """Run the body, replacing each output that has rows by ``give(key, input, output)``; return the text's rows."""
        counts: Counter[nn.Module] = Counter()

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            key = module, counts[module]
            counts[module] += 1
            return give(key, args[0] if args else None, output) if self.has_rows(output) else None

        with contextlib.ExitStack() as stack:
            for leaf in self._leaves:
                stack.enter_context(leaf.register_forward_hook(hook))
            rows: Any = self.body.forward(**self._text)[0]
        if not self.has_rows(rows):
            raise UnknownPlacesError(f"it returns {list(rows.shape)} for {FRONT + TEXT} tokens")
        return rows[:, FRONT:]  # type: ignore[no-any-return]

    def channels(self) -> list[tuple[Key, Tensor]]:
        """Return the calls whose first rows the other rows read directly, with a mask of the columns that they read."""
        fronts: list[Tensor] = []

        def give(key: Key, _: Any, output: Tensor) -> Tensor:
            self.order.append(key)
            self.given[key] = output.detach().clone()
            fronts.append(output[:, :FRONT].detach().clone().requires_grad_())
            return torch.cat([fronts[-1], output[:, FRONT:]], dim=1)

        with torch.enable_grad(), self._children_counted():
            rows = self.forward(give)
            weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
            gradients = torch.autograd.grad((rows * weights).sum(), fronts, allow_unused=True)
        read = [(key, None if found is None else found.ne(0).any(1)[0]) for key, found in zip(self.order, gradients)]
        return [(key, columns) for key, columns in read if columns is not None and bool(columns.any())]

    @contextlib.contextmanager
    def _children_counted(self) -> Iterator[None]:
        """Count how often each child of the body returns rows, alone or first among other outputs."""
        with contextlib.ExitStack() as stack:
            for name, child in self.body.named_children():

                def hook(_: Any, __: Any, output: Any, name: str = name) -> None:
                    self._around[name] += 1 if self.has_rows(_first(output)) else 2

                if not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                    stack.enter_context(child.register_forward_hook(hook))
            yield

    def around(self, found: tuple[Projection, ...], body: str) -> str | None:
        """Return the path of the child of the body that contains all projections and returns rows once, or None."""
        start = f"{body}." if body else ""
        children = {one.path[len(start) :].partition(".")[0] for one in found}
        name = children.pop() if len(children) == 1 else ""
        return start + name if self._around[name] == 1 else None

    def inputs(self, moved: dict[Key, Tensor]) -> dict[Key, Tensor]:
        """Return the rows that go into each call while every call returns what it did before, except those moved.

        Args:
            moved: What to add to a call's output: rows for the rows in front, or one row for all.
        """
        seen: dict[Key, Tensor] = {}

        def give(key: Key, first: Any, output: Tensor) -> Tensor:
            if self.has_rows(first):
                seen[key] = first.double()
            given = self.given[key].clone()
            if key in moved:
                by = moved[key].to(given)
                given[:, : FRONT if len(by) > 1 else None] += by
            return given

        self.forward(give)
        return seen
