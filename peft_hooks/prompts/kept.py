"""What ``share_prompt="keep"`` keeps of a prompt from one forward to the next, and when it may not be used."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..compat.stamps import Stamp


class _Entry(NamedTuple):
    """What is kept, and what it was made of."""

    stamp: Stamp
    asked: Mapping[str, Any]
    rows: Tensor | None
    made: Any


class Kept:
    """What was made of prompts in inference, one thing for each key. Neither copied nor pickled with its hook.

    Threads may use it at once: an entry never changes, and another takes its place in one step.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def get(
        self, key: Hashable, device: torch.device, asked: Mapping[str, Any], rows: Tensor | None = None
    ) -> Any | None:
        """Return what was kept, or None if there is nothing, or anything that it was made of is not as it was.

        Args:
            key: What it was kept under.
            device: Where the modules run.
            asked: Everything else that it was made for.
            rows: The prompt's rows that it was made of. Where that takes no synchronisation, their values are compared.
        """
        entry = self._entries.get(key)
        if entry is None or entry.asked != asked or not entry.stamp.holds(device.type):
            return None
        if rows is not None and device.type == "cpu" and not _equal(rows, entry.rows):
            return None
        return entry.made

    def put(
        self,
        key: Hashable,
        made: Any,
        roots: Iterable[nn.Module],
        device: torch.device,
        asked: Mapping[str, Any],
        rows: Tensor | None = None,
        known: Iterable[Hashable] | None = None,
    ) -> None:
        """Keep what was made by some modules, if they tell enough of themselves. Of keys not known any more, nothing.

        ``get`` has the other arguments.
        """
        names = set(self._entries if known is None else known) - {key}
        others = {name: entry for name, entry in self._entries.items() if name in names}
        try:
            entry = _Entry(Stamp(roots, device.type), asked, None if rows is None else rows.clone(), made)
        except Exception:  # a tensor that does not tell whether it was written to: made anew each time
            self._entries = others
        else:
            self._entries = {**others, key: entry}

    def clear(self) -> None:
        """Keep nothing."""
        self._entries = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _equal(rows: Tensor, kept: Tensor | None) -> bool:
    return kept is not None and torch.equal(rows, kept)


def is_keeping(module: nn.Module) -> bool:
    """Tell whether a forward of a module may use what was kept: in inference, not compiled, and not on a replica."""
    return not (torch.is_grad_enabled() or is_compiling() or getattr(module, "_is_replica", False))
