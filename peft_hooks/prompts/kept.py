"""What ``share_prompt="keep"`` keeps of a prompt between forwards, and when that is stale."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..compat.stamps import Stamp


class _Entry(NamedTuple):
    """What is kept, and what it was made from."""

    stamp: Stamp
    asked: Mapping[str, Any]
    rows: Tensor | None
    made: Any


class Kept:
    """Results computed from prompts in inference, one per key. Neither copied nor pickled with the hook.

    Thread-safe: an entry never changes, and is replaced in one step.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def get(
        self, key: Hashable, device: torch.device, asked: Mapping[str, Any], rows: Tensor | None = None
    ) -> Any | None:
        """Return what was kept, or None if there is nothing, or if anything that it was made from has changed.

        Args:
            key: The key under which it was kept.
            device: Where the modules run.
            asked: All other inputs that it depends on.
            rows: The prompt's rows that it was made from. Their values are compared if that needs no synchronization.
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
        """Keep what some modules made, if their changes can be noticed. Drop entries whose keys are not ``known``.

        For the other arguments see ``get``.
        """
        names = set(self._entries if known is None else known) - {key}
        others = {name: entry for name, entry in self._entries.items() if name in names}
        try:
            entry = _Entry(Stamp(roots, device.type), asked, None if rows is None else rows.clone(), made)
        except Exception:  # a tensor on which writes cannot be noticed: computed again each time
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
    """Tell whether a forward may use what was kept: in inference, not compiled, and not on a replica."""
    return not (torch.is_grad_enabled() or is_compiling() or getattr(module, "_is_replica", False))
