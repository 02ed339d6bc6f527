"""The picture of the demo, as SVG: one text's embedding, alone and in a batch, without the hooks and with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING

from torch import Tensor

from .demo_model import VIRTUAL_TOKENS

if TYPE_CHECKING:
    from .demo import Findings

WIDTH, HEIGHT, LEFT, RIGHT = 760, 330, 24, 736
BARS, TALLEST = 48, 42
ALONE, BATCH, INK, SOFT, WRONG, FINE = "#2f6db3", "#e08a1e", "#1f2328", "#59636e", "#b42318", "#1a7f37"
_FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


def picture(texts: Sequence[str], without: Findings, hooked: Findings, tolerance: float) -> str:
    """Draw the first components of the embedding of the text that moves most.

    Args:
        texts: What was encoded.
        without: What was found without the hooks. Where ``encode`` raised there is an error in place of bars.
        hooked: What was found with them.
        tolerance: The largest difference that counts as rounding.

    Returns:
        A whole SVG file. Its background is its own, so that it can be read in the dark.
    """
    number = int(without.moved.argmax()) if without.alone is not None else 0
    drawn = [found for found in (without, hooked) if found.alone is not None and found.batch is not None]
    tallest = max(float(part[number, :BARS].abs().max()) for each in drawn for part in _both(each))
    release, width = version("sentence-transformers"), _both(drawn[-1])[0].size(1)
    what = f"MiniLM with {VIRTUAL_TOKENS} virtual tokens, Sentence Transformers {release}; {BARS} of {width} components"
    text = _cut(texts[number], 44)
    parts = [
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10" fill="#ffffff" stroke="#d1d9e0"/>',
        _text(LEFT, 34, f"One text, two batches: \u201c{text}\u201d", INK, 17, bold=True),
        _text(LEFT, 56, what, SOFT),
        *_key(len(texts)),
        *_panel(102, "Without hooks", without, number, tallest, tolerance),
        *_panel(216, "With peft_hooks", hooked, number, tallest, tolerance),
    ]
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join([f'{begin} role="img" aria-label="{escape(_told(without, hooked))}" {_FONT}>', *parts, "</svg>\n"])


def _both(found: Findings) -> tuple[Tensor, Tensor]:
    assert found.alone is not None
    assert found.batch is not None
    return found.alone, found.batch


def _told(without: Findings, hooked: Findings) -> str:
    """Say what is seen, for who does not see it."""
    words = []
    for title, found in (("without hooks", without), ("with hooks", hooked)):
        moves = found.alone is not None and f"components differ by up to {_digits(float(found.moved.max()))}"
        words.append(f"{title} {moves or 'encode raises'}")
    return f"A text's embedding, alone and in a batch: {', '.join(words)}."


def _digits(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "less than 0.005"


def _key(count: int) -> Iterator[str]:
    """Say which bar is which, on the right."""
    for x, colour, words in ((RIGHT - 216, ALONE, "alone"), (RIGHT - 148, BATCH, f"with {count - 1} other texts")):
        yield f'<rect x="{x}" y="24" width="11" height="11" fill="{colour}"/>'
        yield _text(x + 17, 34, words, INK)


def _panel(y: int, title: str, found: Findings, number: int, tallest: float, tolerance: float) -> Iterator[str]:
    """Draw one condition: a heading with the verdict, and a pair of bars for each component."""
    right = found.alone is not None and float(found.moved[number]) <= tolerance
    yield _text(LEFT, y, title, FINE if right else WRONG, 14, bold=True)
    yield _text(RIGHT, y, _verdict(found, number, tolerance), FINE if right else WRONG, 14, anchor="end")
    if found.alone is None:
        yield _text(LEFT, y + 40, _cut(found.error or "", 96), SOFT)
        return
    middle, step = y + 12 + TALLEST, (RIGHT - LEFT) / BARS
    for place in range(BARS):
        for shift, colour, embeddings in zip((1.0, 7.0), (ALONE, BATCH), _both(found)):
            height = TALLEST * float(embeddings[number, place]) / tallest
            top = middle - max(height, 0.0)
            x = LEFT + place * step + shift
            yield f'<rect x="{x:.1f}" y="{top:.1f}" width="6" height="{abs(height):.1f}" fill="{colour}"/>'
    yield f'<path d="M{LEFT} {middle}H{RIGHT}" stroke="{SOFT}" stroke-width="0.6"/>'


def _verdict(found: Findings, number: int, tolerance: float) -> str:
    if found.alone is None:
        return "no embedding at all"
    moved = float(found.moved[number])
    if moved <= tolerance:
        return f"the same embedding, to {tolerance:.0e}"
    alone, batch = _both(found)
    return f"two embeddings: up to {_digits(moved)} apart, cosine {float(alone[number] @ batch[number]):.2f}"


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}\u2026"


def _text(x: int, y: int, words: str, colour: str, size: int = 13, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{weight}>{escape(words)}</text>'
