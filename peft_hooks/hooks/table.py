"""The table that ``HookRegistry.describe`` returns: each hook, with the reason if it never fired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

from torch import nn

from .board import Attached
from .selectors import compiled_part


@dataclass(frozen=True)
class HookRow:
    """One hook on one module."""

    module: str
    role: str
    hook: str
    order: int
    calls: int
    note: str
    enabled: bool


@dataclass(frozen=True)
class HookTable:
    """The hooks of a registry, in the order in which they run. ``print`` shows a table with the remarks below it."""

    rows: tuple[HookRow, ...]
    remarks: tuple[str, ...] = ()

    @property
    def never_fired(self) -> tuple[HookRow, ...]:
        """The enabled hooks that were never called; ``note`` says why."""
        return tuple(row for row in self.rows if row.enabled and not row.calls)

    def __iter__(self) -> Iterator[HookRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        titles = ("module", "role", "hook", "order", "calls", "note")
        body = [(*map(str, astuple(row)[:5]), row.note if row.enabled else "disabled") for row in self.rows]
        widths = [max(map(len, column)) for column in zip(titles, *body, strict=True)]
        lines = [titles, tuple("-" * width for width in widths), *body]
        shown = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([*(line.rstrip() for line in shown), *self.remarks])


def describe(
    model: nn.Module,
    hooks: Iterable[tuple[str, Attached]],
    calls: Counter[str],
    roles: Mapping[str, Sequence[str]],
) -> HookTable:
    """Make the table of ``hooks``, given in the order in which they run.

    Args:
        model: The root.
        hooks: The hooks, with their names.
        calls: How often the hooks on each path were called.
        roles: Paths by role.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    role_of = {path: role for role, paths in roles.items() for path in paths}
    rows = []
    for name, attached in hooks:
        for path, entry in attached.entries.items():
            never = attached.enabled and not entry.calls
            note = silence(model, path, calls - attached.since) if never else ""
            module = f"{type(modules.get(path)).__name__} {path!r}"
            role = role_of.get(path, "")
            rows.append(HookRow(module, role, name, attached.order, entry.calls, note, attached.enabled))
    return HookTable(tuple(rows))


def silence(model: nn.Module, path: str, calls: Mapping[str, int]) -> str:
    """Return why the hook at ``path`` never fired, given how often each path was called since it was attached."""
    from ..compat.sentence_transformers import why_never_called

    if compiled_part(model, path) is not None:
        return "calls inside torch.compile are not counted"
    if calls.get(path):
        return "never fired: a hook that runs before it on this module raised"
    if not any(calls.values()):
        return "never fired: no hooked module ran yet"
    prefix = f"{path}." if path else ""
    inside = next(
        (other for other, count in calls.items() if count and other != path and other.startswith(prefix)), None
    )
    if inside is not None:
        return f"never fired: {inside!r} inside it ran, so its parent calls .forward() directly, which skips hooks"
    return (
        f"never fired: {why_never_called(model, path) or 'other hooked modules ran, so the forward does not pass here'}"
    )
