"""``ShapeTrace``: what ``trace_shapes`` recorded, as data. ``render`` displays it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .._public import public
from .records import Adapter, Gap, Row, find_adapters, find_gaps, row_of, text_length

if TYPE_CHECKING:
    from rich.table import Table

    from .diff import TraceDiff
    from .explain.failure import Failure

_TOKENS = ("token_embeddings", "last_hidden_state")


@public
class ShapeTrace(Sequence[Row]):
    """What went through a model's modules. ``print`` shows it as text, a notebook as a picture.

    Attributes:
        model: The model's class name.
        skipped: The number of calls beyond ``max_calls`` that were not kept, by path.
        stats: Whether values were read.
        failure: Why the last failed forward failed, or None.
        adapters: The model's active prompt-learning adapters. Known once the block has ended or a forward has failed.

    Example:
        >>> import torch
        >>> from peft_hooks import trace_shapes
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> with trace_shapes(model) as trace:
        ...     _ = model(torch.zeros(4, 2))
        >>> print(trace)
        Sequential: 1 forward, 2 calls of 2 modules
        <BLANKLINE>
        (model)  Sequential  input f32[4,2] -> output f32[4,3]
        0        Linear      input f32[4,2] -> output f32[4,3]
    """

    def __init__(self, model: str, frames: Sequence[Any], skipped: Mapping[str, int], stats: bool) -> None:
        self.model = model
        self.skipped = skipped
        self.stats = stats
        self.failure: Failure | None = None
        self.adapters: tuple[Adapter, ...] = ()
        self._frames: Sequence[Any] = frames
        self._taps: Sequence[Any] = ()
        self._over = False
        self._rows: tuple[Row, ...] | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every recorded call, in the order in which they began."""
        if self._rows is not None:
            return self._rows
        rows = tuple(row_of(frame) for frame in sorted(self._frames, key=lambda frame: frame.index))
        if self._over:
            self._rows, self._frames = rows, rows
        return rows

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The modules whose ``forward`` was run directly, so that PyTorch ran no hooks. Known after the block."""
        return find_gaps(self._taps, {row.path for row in self.rows})

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have rows instead of frames, which refer to the tensors themselves."""
        return {**self.__dict__, "_frames": self.rows, "_rows": self.rows, "_taps": ()}

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def forwards(self) -> tuple[int, ...]:
        """The numbers of the forwards that were seen."""
        return tuple(sorted({row.forward for row in self.rows}))

    def calls(self, path: str) -> tuple[Row, ...]:
        """Return the calls of the module at ``path``."""
        return tuple(row for row in self.rows if row.path == path or path in row.also)

    @property
    def text_length(self) -> int | None:
        """The number of positions in the text of the first forward, padding included, or None if unknown."""
        return text_length(self.rows)

    @property
    def virtual_tokens(self) -> int:
        """The number of rows that an adapter put in front of the text, measured as output length minus input length."""
        rows = self.rows
        length = text_length(rows)
        if length is None:
            return 0
        longer = [
            leaf.shape[1] - length
            for row in rows
            for leaf in (*row.outputs, *row.came)
            if leaf.shape is not None
            and len(leaf.shape) == 3
            and leaf.shape[1] > length
            and (leaf.key in _TOKENS or (leaf.key == "inputs_embeds" and self.adapters))
        ]
        known = {adapter.virtual_tokens for adapter in self.adapters}
        return next((extra for extra in longer if extra in known or not known), 0)

    def diff(self, other: ShapeTrace) -> TraceDiff:
        """Compare with another trace, module by module and call by call.

        Wrappers that PEFT puts into paths (``base_model``) are ignored: an adapted model can be compared with its base.
        """
        from .diff import compare

        return compare(self, other)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-serializable data."""
        return {
            "model": self.model,
            "virtual_tokens": self.virtual_tokens,
            "adapters": [adapter._asdict() for adapter in self.adapters],
            "gaps": [gap._asdict() for gap in self.gaps],
            "skipped": dict(self.skipped),
            "failure": None if self.failure is None else self.failure.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_json(self, path: str | Path) -> None:
        """Write ``to_dict()`` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: the flow of shapes as a picture, and a table of all modules."""
        from .render.html import page

        Path(path).write_text(page(self), encoding="utf-8")

    def table(self, *, fold: bool = True) -> Table:
        """Return a rich table of the calls; ``fold`` shows layers that did the same only once."""
        from .render.text import table

        return table(self, fold)

    def __str__(self) -> str:
        from .render.text import text

        return text(self)

    def __repr__(self) -> str:
        failed = "" if self.failure is None else f", failed in {self.failure.where}"
        return f"ShapeTrace({self.model}, {len(self)} calls{failed})"

    def _repr_html_(self) -> str:
        from .render.html import fragment

        return fragment(self)

    def _end(self, peft_models: Sequence[tuple[str, nn.Module]], taps: Sequence[Any]) -> None:
        """Record what is known only at the end of the block. Rows are made from frames on demand."""
        self.adapters = find_adapters(peft_models)
        self._taps = taps
        self._over = True
