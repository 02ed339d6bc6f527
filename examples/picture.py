"""Draw README's picture: one text's embedding, alone and in a batch, with and without hooks, as measured by the demo.

python examples/picture.py [FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from peft_hooks.cli.demo import TEXTS, VIRTUAL_TOKENS, Measured, compare

WIDTH, HEIGHT, LEFT, RIGHT = 760, 330, 24, 736
BARS, TALLEST = 48, 42
ALONE, BATCH, INK, SOFT, WRONG, FINE = "#2f6db3", "#e08a1e", "#1f2328", "#59636e", "#b42318", "#1a7f37"
_FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


def picture(without: Measured, hooked: Measured) -> str:
    """Draw the first components of the embedding of the text that moves most.

    Args:
        without: Measurements without the hooks. If ``encode`` raised, the error takes the place of the bars.
        hooked: Measurements with the hooks.

    Returns:
        A complete SVG file, with a background of its own so that it is readable in dark mode.
    """
    moved = [row.difference for row in without.run.differences] or [0.0]
    number = moved.index(max(moved))
    drawn = [measured for measured in (without, hooked) if measured.alone is not None]
    tallest = max(float(part[number, :BARS].abs().max()) for each in drawn for part in _both(each))
    release, width = version("sentence-transformers"), _both(drawn[-1])[0].size(1)
    what = f"MiniLM with {VIRTUAL_TOKENS} virtual tokens, Sentence Transformers {release}; {BARS} of {width} components"
    text = _cut(TEXTS[number], 44)
    parts = [
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10" fill="#ffffff" stroke="#d1d9e0"/>',
        _text(LEFT, 34, f"One text, two batches: \u201c{text}\u201d", INK, 17, bold=True),
        _text(LEFT, 56, what, SOFT),
        *_key(len(TEXTS)),
        *_panel(102, "Without hooks", without, number, tallest),
        *_panel(216, "With peft_hooks", hooked, number, tallest),
    ]
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join([f'{begin} role="img" aria-label="{escape(_told(without, hooked))}" {_FONT}>', *parts, "</svg>\n"])


def _both(measured: Measured) -> tuple[Tensor, Tensor]:
    assert measured.alone is not None
    assert measured.batch is not None
    return measured.alone, measured.batch


def _told(without: Measured, hooked: Measured) -> str:
    """Return the alt text."""
    words = []
    for measured in (without, hooked):
        moves = "encode raises"
        if measured.run.difference is not None:
            moves = f"components differ by up to {_digits(measured.run.difference)}"
        words.append(f"{measured.title.lower()} {moves}")
    return f"A text's embedding, alone and in a batch: {', '.join(words)}."


def _digits(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "less than 0.005"


def _key(count: int) -> Iterator[str]:
    """Draw the legend, on the right."""
    for x, colour, words in ((RIGHT - 216, ALONE, "alone"), (RIGHT - 148, BATCH, f"with {count - 1} other texts")):
        yield f'<rect x="{x}" y="24" width="11" height="11" fill="{colour}"/>'
        yield _text(x + 17, 34, words, INK)


def _panel(y: int, title: str, measured: Measured, number: int, tallest: float) -> Iterator[str]:
    """Draw one condition: a heading with the verdict, and two bars for each component."""
    colour = FINE if measured.run.same else WRONG
    yield _text(LEFT, y, title, colour, 14, bold=True)
    yield _text(RIGHT, y, _verdict(measured, number), colour, 14, anchor="end")
    if measured.alone is None:
        yield _text(LEFT, y + 40, _cut(measured.run.error or "", 96), SOFT)
        return
    middle, step = y + 12 + TALLEST, (RIGHT - LEFT) / BARS
    for place in range(BARS):
        for shift, bar, embeddings in zip((1.0, 7.0), (ALONE, BATCH), _both(measured)):
            height = TALLEST * float(embeddings[number, place]) / tallest
            top = middle - max(height, 0.0)
            x = LEFT + place * step + shift
            yield f'<rect x="{x:.1f}" y="{top:.1f}" width="6" height="{abs(height):.1f}" fill="{bar}"/>'
    yield f'<path d="M{LEFT} {middle}H{RIGHT}" stroke="{SOFT}" stroke-width="0.6"/>'


def _verdict(measured: Measured, number: int) -> str:
    if measured.alone is None:
        return "no embedding at all"
    if measured.run.same:
        return f"the same embedding, to {measured.run.tolerance:.0e}"
    alone, batch = _both(measured)
    moved, cosine = measured.run.differences[number].difference, float(alone[number] @ batch[number])
    return f"two embeddings: up to {_digits(moved)} apart, cosine {cosine:.2f}"


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}\u2026"


def _text(x: int, y: int, words: str, colour: str, size: int = 13, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{weight}>{escape(words)}</text>'


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
    where.write_text(picture(*compare()), encoding="utf-8")
    sys.stderr.write(f"Wrote {where}\n")
