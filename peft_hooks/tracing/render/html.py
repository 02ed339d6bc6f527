"""Render a trace as one self-contained page: the picture, why the forward failed, and a tree of all modules.

This module prepares the data for ``trace.html.j2``, which with ``trace.css`` determines the look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..records import Row
from .svg import picture
from .text import adapter_lines, notes_of, title

if TYPE_CHECKING:
    from ..diff import TraceDiff
    from ..explain.failure import Failure
    from ..trace import ShapeTrace

_PICTURES = 4  # the most forwards that are drawn; the tree has all of them
_TEMPLATES = Environment(
    loader=PackageLoader(__package__, ""),
    autoescape=True,
    lstrip_blocks=True,
    trim_blocks=True,
    undefined=StrictUndefined,
)


def page(trace: ShapeTrace) -> str:
    """Return the page of a trace."""
    return _rendered(whole=True, **_trace(trace))


def fragment(trace: ShapeTrace) -> str:
    """Return the body of a trace's page, for notebooks."""
    return _rendered(whole=False, **_trace(trace))


def failure_page(failure: Failure) -> str:
    """Return the page of a failure that no trace has seen."""
    return _rendered(whole=True, title=f"Why {failure.where} failed", failure=failure)


def diff_page(diff: TraceDiff) -> str:
    """Return the page of a comparison."""
    return _rendered(whole=True, **_diff(diff))


def diff_fragment(diff: TraceDiff) -> str:
    """Return the body of a comparison's page, for notebooks."""
    return _rendered(whole=False, **_diff(diff))


def _rendered(**given: Any) -> str:
    return _TEMPLATES.get_template("trace.html.j2").render(given).strip() + "\n"


def _diff(diff: TraceDiff) -> dict[str, Any]:
    """Return what the template needs for a comparison."""
    summary = str(diff).split("\n\n")[0]
    return {"title": "What changed", "lines": summary.splitlines(), "changes": diff.changes}


def _trace(trace: ShapeTrace) -> dict[str, Any]:
    """Return what the template needs for a trace."""
    drawn = list(trace.forwards[:_PICTURES])
    if trace.failure is not None and trace.failure.forward not in drawn:
        drawn[-1:] = [trace.failure.forward]
    inside: dict[int | None, list[Row]] = {}
    for row in trace.rows:
        inside.setdefault(row.parent, []).append(row)
    masks = _masks(trace)
    return {
        "title": f"Shapes in {trace.model}",
        "lines": [title(trace), *adapter_lines(trace)],
        "forwards": trace.forwards,
        "pictures": [(forward, picture(trace, forward)) for forward in drawn],
        "failure": trace.failure,
        "signs": _signs(trace, masks),
        "masks": masks,
        "notes": list(notes_of(trace)),
        "calls": len(trace),
        "inside": inside,
    }


def _masks(trace: ShapeTrace) -> list[Any]:
    """Return what was read from masks."""
    stats = [leaf.stats for row in trace.rows for leaf in row.came]
    return [one for one in stats if one is not None and one.rows]


def _signs(trace: ShapeTrace, masks: list[Any]) -> list[tuple[str, str]]:
    """Return the signs in the pictures, with their meanings."""
    signs = [("virtual", "virtual tokens")] if trace.virtual_tokens else []
    signs.append(("both", "text and padding"))
    if masks:
        signs += [("text", "text that the mask keeps"), ("padding", "left out by the mask")]
    if trace.virtual_tokens and any(run[0][0] is False for stats in masks for run in stats.rows):
        signs.append(("virtualoff", "virtual tokens, left out"))
    if trace.failure is not None:
        signs.append(("failing", "where the forward failed"))
    return signs
