"""A trace as one self-contained page: the picture, why the forward failed, and a tree of all modules."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from ..explain.failure import Failure
from ..leaves import Leaf
from ..records import Row
from ..trace import ShapeTrace
from .style import STYLE
from .svg import picture
from .text import adapter_lines, notes_of, title

if TYPE_CHECKING:
    from ..diff import TraceDiff

_PICTURES = 4  # forwards that are drawn; the tree has them all


def page(trace: ShapeTrace) -> str:
    """Return the page."""
    return _document(f"Shapes in {trace.model}", fragment(trace))


def diff_page(diff: TraceDiff) -> str:
    """Return the page of a comparison."""
    return _document("What changed", diff_fragment(diff))


def _document(name: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}</title><style>html, body {{ margin: 0; }} body > .pht {{ min-height: 100vh; "
        f"border-radius: 0; }}</style></head><body>{body}</body></html>\n"
    )


def fragment(trace: ShapeTrace) -> str:
    """Return the page's body, for notebooks."""
    lines = [title(trace), *adapter_lines(trace)]
    head = f"<h1>Shapes in {escape(trace.model)}</h1>" + "".join(f"<p>{escape(line)}</p>" for line in lines)
    forwards = list(trace.forwards[:_PICTURES])
    if trace.failure is not None and trace.failure.forward not in forwards:
        forwards[-1:] = [trace.failure.forward]
    flows = []
    for number, forward in enumerate(forwards):
        name = f"<h2>Forward {forward}</h2>" if len(trace.forwards) > 1 else "<h2></h2>"
        side = _side(trace, forward, with_legend=not number)
        flows.append(f'{name}<div class="flow">{picture(trace, forward)}<div class="side">{side}</div></div>')
    left = len(trace.forwards) - len(forwards)
    if left > 0:
        flows.append(f"<p>{left} more forwards are in the tree below.</p>")
    body = f"{head}{''.join(flows)}<h2>All modules</h2>{_tree(trace)}"
    return f'<div class="pht"><style>{STYLE}</style><div class="in">{body}</div></div>'


def _side(trace: ShapeTrace, forward: int, with_legend: bool) -> str:
    failure = trace.failure if trace.failure is not None and trace.failure.forward == forward else None
    cards = "" if failure is None else _failure(failure)
    if with_legend:
        cards += _legend(trace)
        notes = "".join(f"<p>{escape(note)}</p>" for note in notes_of(trace))
        cards += f'<div class="card">{notes}</div>' if notes else ""
    return cards


def _legend(trace: ShapeTrace) -> str:
    kinds = [leaf.stats for row in trace.rows for leaf in row.came if leaf.stats is not None and leaf.stats.rows]
    signs = [("virtual", "virtual tokens")] if trace.virtual_tokens else []
    signs.append(("both", "text and padding"))
    if kinds:
        signs += [("text", "text that the mask keeps"), ("padding", "left out by the mask")]
    if trace.virtual_tokens and any(run[0][0] is False for stats in kinds for run in stats.rows):
        signs.append(("virtualoff", "virtual tokens, left out"))
    if trace.failure is not None:
        signs.append(("failing", "where the forward failed"))
    shown = "".join(f'<span><i class="{kind}"></i>{name}</span>' for kind, name in signs)
    more = "Bold tensors are new on their arrow." + ("" if kinds else " stats=True shows what masks keep.")
    return f'<div class="card legend">{shown}<p>{more}</p></div>'


def _failure(failure: Failure) -> str:
    parts = [f"<h3>{escape(failure.error)}</h3>", f"<p>{escape(failure.summary)}</p>"]
    if failure.message and failure.hook is None:
        parts.append(f"<p><code>{escape(failure.message.splitlines()[0])}</code></p>")
    parts += [f"<p>{escape(str(bound))}</p>" for bound in failure.finding.bounds]
    parts.append(f"<p><b>Cause</b> {escape(failure.cause)}</p>")
    if failure.cure:
        parts.append(f"<p><b>Cure</b> <code>{escape(failure.cure)}</code></p>")
    if failure.source:
        parts.append(f"<p><code>{escape(failure.source)}</code></p>")
    return f'<div class="card bad">{"".join(parts)}</div>'


def _tree(trace: ShapeTrace) -> str:
    inside: dict[int | None, list[Row]] = {}
    for row in trace.rows:
        inside.setdefault(row.parent, []).append(row)
    several = len(trace.forwards) > 1

    def node(row: Row, depth: int, around: str) -> str:
        kind = "raised" if row.state == "raised" else "done"
        children = inside.get(row.index, [])
        if not children:
            return f'<div class="leafrow {kind}">{_cells(row, several, around)}</div>'
        opened = " open" if depth < 2 or row.state == "raised" else ""
        prefix = f"{row.path}." if row.path else ""
        held = "".join(node(child, depth + 1, prefix) for child in children)
        line = _cells(row, several, around)
        return f'<details{opened}><summary class="{kind}">{line}</summary><div>{held}</div></details>'

    held = "".join(node(row, 0, "") for row in inside.get(None, []))
    count = f"{len(trace)} call{'' if len(trace) == 1 else 's'}"
    return f'<details class="all" open><summary>{count}</summary><div class="tree">{held}</div></details>'


def _cells(row: Row, several: bool, around: str) -> str:
    name = (row.path.removeprefix(around) or "(model)") + (f" #{row.call}" if row.call > 1 else "")
    if several and row.parent is None:
        name += f" (forward {row.forward})"
    flow = f"{_leaves(row.came)} <span class='to'>&rarr; {_leaves(row.went)}</span>"
    mark = " raised" if row.state == "raised" else ""
    return (
        f'<span class="row"><span title="{escape(row.path)}">{escape(name)}</span>'
        f'<span class="kind">{escape(row.module)}{mark}</span><span class="mono">{flow}</span></span>'
    )


def _leaves(leaves: Iterable[Leaf]) -> str:
    return escape(", ".join(map(str, leaves)) or "-")


def diff_fragment(diff: TraceDiff) -> str:
    """Return the page's body of a comparison, for notebooks."""
    first, *lines = str(diff).split("\n\n")[0].splitlines()
    rows = "".join(
        f'<tr class="{"first" if not number else ""}"><td>{escape(change.path or "(model)")}'
        f"{f' #{change.call}' if change.call > 1 else ''}</td><td>{escape(change.module)}</td><td>{change.side}</td>"
        f'<td>{escape(change.name)}</td><td class="mono"><del>{escape(change.before or "-")}</del></td>'
        f'<td class="mono"><ins>{escape(change.after or "-")}</ins></td></tr>'
        for number, change in enumerate(diff.changes)
    )
    names = "".join(f"<th>{name}</th>" for name in ("module", "class", "side", "tensor", "before", "after"))
    table = f'<div class="card wide"><table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table></div>'
    more = "".join(f"<p>{escape(line)}</p>" for line in lines)
    body = f'<h1>{escape(first)}</h1><div class="card">{more}</div>' if lines else f"<h1>{escape(first)}</h1>"
    return f'<div class="pht"><style>{STYLE}</style><div class="in">{body}{table if rows else ""}</div></div>'
