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
_SIGNS = {
    "virtual": "virtual tokens",
    "both": "text and padding",
    "text": "text that the mask keeps",
    "padding": "left out by the mask",
    "virtualoff": "virtual tokens, left out",
    "boxbad": "where the forward failed",
}
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
    pictures = [(forward, picture(trace, forward)) for forward in drawn]
    return {
        "title": f"Shapes in {trace.model}",
        "lines": [title(trace), *adapter_lines(trace)],
        "forwards": trace.forwards,
        "pictures": pictures,
        "failure": trace.failure,
        "signs": _signs(pictures),
        "notes": list(notes_of(trace)),
        "calls": len(trace),
        "inside": inside,
    }


def _signs(pictures: list[tuple[int, str]]) -> list[tuple[str, str]]:
    """Return the signs in the pictures, with their meanings."""
    return [(kind, name) for kind, name in _SIGNS.items() if any(f'class="{kind}"' in svg for _, svg in pictures)]
