"""Draw one forward as inline SVG: stages as boxes, tensors on the arrows, sequences as bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..leaves import Leaf, tensors_of
from ..records import Row
from .layout import Folded, Stage, is_new, not_reached, stages

if TYPE_CHECKING:
    from ..trace import ShapeTrace

_WIDTH, _LEFT, _RAIL, _NAME, _SIZE, _BAR, _RIGHT = 700, 12, 34, 56, 270, 440, 688
_LINE, _STEP, _HEAD, _MASK_ROW, _NAME_SIGNS = 24, 22, 40, 7, 27


class _Canvas:
    """The SVG elements so far, and the height at which the next one goes."""

    def __init__(self, trace: ShapeTrace, forward: int) -> None:
        self.parts: list[str] = []
        self.y = 6.0
        self.length = trace.text_length
        self.virtual = trace.virtual_tokens
        failure = trace.failure if trace.failure is not None and trace.failure.forward == forward else None
        self.failure = failure
        self.odd = {bound.leaf for bound in failure.finding.bounds} if failure is not None else set()
        self.longest = max(
            (length for row in trace.rows for leaf in row.came if (length := self.positions(leaf))), default=1
        )

    def positions(self, leaf: Leaf) -> int:
        """Return the number of sequence positions in a tensor; 0 if it does not look like a sequence."""
        shape, length = leaf.shape or (), self.length
        sequence = len(shape) == 3 or (len(shape) == 2 and leaf.key.endswith(("_ids", "mask")))
        if length is None or not sequence:
            return 0
        return shape[1] if shape[1] in (length, length + self.virtual) or leaf.key.endswith("mask") else 0

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, round_: float = 2) -> None:
        size = f'width="{max(width, 0.6):.2f}" height="{height:g}" rx="{round_:g}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" {size} class="{kind}"/>')

    def line(self, x: float, y: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x:g}" y1="{y:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>')


def picture(trace: ShapeTrace, forward: int) -> str:
    """Return one forward as an ``<svg>`` element."""
    canvas = _Canvas(trace, forward)
    boxes = stages(trace, forward)
    before = None
    for stage in boxes:
        _arrow(canvas, [(leaf, is_new(leaf, before)) for leaf in stage.row.came], stage.failed)
        _box(canvas, stage)
        before = stage.row
    if boxes and not boxes[-1].failed:
        _arrow(canvas, _last(boxes[-1].row), False)
    for path, kind in not_reached(trace, forward):
        _box_not_reached(canvas, path, kind)
    title = f"The flow of shapes through {trace.model}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {canvas.y + 8:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(canvas.parts)}</svg>'
    )


def _last(row: Row) -> list[tuple[Leaf, bool]]:
    """Return the outputs on the last arrow: new tensors, or an embedding that kept its shape, as after a Normalize."""
    tensors = tensors_of(row.outputs)
    named = [leaf for leaf in tensors if leaf.key == "sentence_embedding"]
    return [(leaf, True) for leaf in row.went or named or tensors]


def _box_not_reached(canvas: _Canvas, path: str, kind: str) -> None:
    """Draw a stage that the forward never reached; red if a hook on it is the reason."""
    bad = canvas.failure is not None and canvas.failure.hook is not None and canvas.failure.path == path
    canvas.y += 0 if bad else 14
    canvas.rect(_LEFT, canvas.y, _RIGHT - _LEFT, _HEAD - 4, "boxbad" if bad else "boxoff", 9)
    canvas.text(_LEFT + 18, canvas.y + 23, kind, "h badtext" if bad else "soft")
    words = f"{canvas.failure.hook} raised" if bad and canvas.failure is not None else f"{path} was not reached"
    canvas.text(_RIGHT - 18, canvas.y + 23, _cut(words, 60), "badtext" if bad else "soft", "end")
    canvas.y += _HEAD - 4


def _arrow(canvas: _Canvas, leaves: Sequence[tuple[Leaf, bool]], bad: bool) -> None:
    """Draw an arrow down, with a line for each tensor on it."""
    top = canvas.y
    canvas.y += 8
    for leaf, new in leaves[:12]:
        _tensor(canvas, leaf, new)
    if len(leaves) > 12:
        canvas.text(_NAME, canvas.y + 15, f"and {len(leaves) - 12} more", "soft")
        canvas.y += _LINE
    canvas.y += 8
    kind = " wirebad" if bad else ""
    canvas.line(_RAIL, top, _RAIL, canvas.y, f"wire{kind}")
    canvas.parts.append(f'<path d="M{_RAIL - 5} {canvas.y - 2:g} h10 l-5 8 z" class="{"tipbad" if bad else "tip"}"/>')
    canvas.y += 6


def _tensor(canvas: _Canvas, leaf: Leaf, new: bool) -> None:
    rows = leaf.stats.rows if leaf.stats is not None else ()
    height = max(_LINE, len(rows) * _MASK_ROW + 10, 38 if rows else 0)
    middle = canvas.y + height / 2 + 4
    if rows and leaf.stats is not None:
        middle -= 7
        canvas.text(_NAME, middle + 15, f"keeps {leaf.stats.kept} of {leaf.stats.total}", "small soft")
    odd = leaf.name in canvas.odd
    name = leaf.key if leaf.name.count(".") == 1 else leaf.name
    canvas.text(_NAME, middle, _cut(name, 28), "badtext" if odd else "new" if new else "soft")
    canvas.text(_SIZE, middle, _cut(leaf.size, 22), "m badtext" if odd else "m new" if new else "m soft")
    length = canvas.positions(leaf)
    if rows:
        _mask_rows(canvas, leaf, canvas.y + (height - len(rows) * _MASK_ROW) / 2)
    elif length:
        _bar(canvas, length, canvas.y + height / 2 - 5)
    canvas.y += height


def _scale(canvas: _Canvas) -> float:
    return (_RIGHT - _BAR) / max(canvas.longest, 1)


def _bar(canvas: _Canvas, length: int, y: float) -> None:
    """Draw a sequence of which only the length is known: virtual tokens and the rest."""
    virtual = canvas.virtual if canvas.length is not None and length == canvas.length + canvas.virtual else 0
    scale = _scale(canvas)
    if virtual:
        canvas.rect(_BAR, y, virtual * scale - 1, 10, "virtual")
    canvas.rect(_BAR + virtual * scale, y, (length - virtual) * scale, 10, "both")


def _mask_rows(canvas: _Canvas, leaf: Leaf, y: float) -> None:
    """Draw what a mask keeps, with one bar for each text."""
    assert leaf.stats is not None
    length = canvas.positions(leaf)
    virtual = canvas.virtual if canvas.length is not None and length == canvas.length + canvas.virtual else 0
    scale = _scale(canvas)
    for number, runs in enumerate(leaf.stats.rows):
        at, top = 0, y + number * _MASK_ROW
        for kept, count in runs:
            front = max(0, min(virtual - at, count))
            if front:
                canvas.rect(_BAR + at * scale, top, front * scale - 1, 5, "virtual" if kept else "virtualoff", 1)
            if count > front:
                x = _BAR + (at + front) * scale
                canvas.rect(x, top, (count - front) * scale, 5, "text" if kept else "padding", 1)
            at += count


def _box(canvas: _Canvas, stage: Stage) -> None:
    """Draw one stage with the calls inside it."""
    steps = stage.steps[:14]
    more = len(stage.steps) - len(steps)
    lines = len(steps) + bool(more)
    height = _HEAD + lines * _STEP + (10 if lines else 0)
    top = canvas.y
    canvas.rect(_LEFT, top, _RIGHT - _LEFT, height, "boxbad" if stage.failed else "box", 9)
    canvas.text(_LEFT + 18, top + 26, stage.row.module, "h badtext" if stage.failed else "h")
    canvas.text(_RIGHT - 18, top + 26, _cut(stage.row.path or "(model)", 48), "m soft", "end")
    canvas.y = top + _HEAD
    if lines:
        canvas.line(_RAIL, top + _HEAD - 4, _RAIL, top + height - 12, "rail")
    for step in steps:
        _step(canvas, step, stage)
    if more:
        canvas.text(_NAME, canvas.y + 13, f"and {more} more", "soft")
    if stage.failed and canvas.failure is not None and stage.culprit is stage.row:
        canvas.text(_RIGHT / 2, top + 26, f"raised {canvas.failure.error}", "badtext", "middle")
    canvas.y = top + height


def _step(canvas: _Canvas, step: Folded, stage: Stage) -> None:
    row = step.rows[0]
    bad = row is stage.culprit
    middle = canvas.y + 13
    canvas.parts.append(f'<circle cx="{_RAIL}" cy="{middle - 4:g}" r="3.5" class="{"dotbad" if bad else "dot"}"/>')
    canvas.text(_NAME, middle, _tail(row.path, stage.row.path, len(step.paths)), "badtext" if bad else "")
    kind = f"{len(step.paths)} \u00d7 {row.module}" if step.paths else row.module
    canvas.text(_SIZE, middle, _cut(kind, 24), "badtext" if bad else "soft")
    if bad and canvas.failure is not None:
        canvas.text(_RIGHT - 18, middle, f"raised {canvas.failure.error}", "badtext", "end")
    else:
        words = ", ".join(leaf.size for leaf in _shown(row.went or row.outputs))
        canvas.text(_RIGHT - 18, middle, _cut(words, 32), "m soft", "end")
    canvas.y += _STEP


def _shown(leaves: Iterable[Leaf]) -> list[Leaf]:
    return list(tensors_of(leaves)[:2])


def _tail(path: str, stage: str, layers: int) -> str:
    """Return as many of the last parts of a path as fit: ``"encoder.layer.0 to 5"``."""
    name = path.removeprefix(f"{stage}." if stage else "")
    more = f" to {int(name.rpartition('.')[2]) + layers - 1}" if layers and name.rpartition(".")[2].isdigit() else ""
    while len(name) + len(more) > _NAME_SIGNS and "." in name:
        name = name.partition(".")[2]
    return _cut(name, _NAME_SIGNS - len(more)) + more


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "\u2026"
