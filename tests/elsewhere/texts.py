"""Texts that the hooked model and all that serve it are given."""

from __future__ import annotations

import random

FEW = (
    "a cat",
    "The old captain sails a small red boat over the cold sea.",
    "",
    "naïve café, 中文, жук: 3 x 4 = 12 <|virtual_0|> [CLS]",
    "Łódź — 東京 42 😀 👩‍👩‍👧 e\u0301",
    "Refunds take FIVE days; see page 3.",
    "  leading,\ttrailing \n",
    "how do birds find the way home in winter? " * 60,
    "the moon and the stars above the dark and quiet town",
    "漢字かな交じり文" * 80,
    "مرحبا بالعالم שלום עולם",
    "rain falls",
)
"""Short, empty, of several alphabets, longer than the model takes."""

_WORDS = ("captain", "boat", "sea", "winter", "bird", "home", "moon", "refund", "page", "café", "東京", "жук", "42")
_BLOCKS = (
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),  # combining marks
    (0x370, 0x5FF),
    (0x620, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x2000, 0x206F),  # spaces of all widths, joiners, marks of direction
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xFF00, 0xFFEF),
    (0x1F300, 0x1FAFF),
)


def corpus(count: int) -> list[str]:
    """Return sentences of different lengths; every hundredth is longer than the model takes."""
    chance = random.Random(17)
    sizes = (300 if number % 100 == 50 else chance.randint(1, 20) for number in range(count))
    return [f"{number}: {' '.join(chance.choices(_WORDS, k=size))}." for number, size in enumerate(sizes)]


def strange(count: int) -> list[str]:
    """Return lines of characters of one block or of all, some of them very long."""
    chance = random.Random(23)
    found = []
    for number in range(count):
        blocks = _BLOCKS if number % 3 == 0 else (chance.choice(_BLOCKS),)
        size = 3000 if number % 50 == 49 else chance.randint(1, 60)
        characters = (chr(chance.randint(*chance.choice(blocks))) for _ in range(size))
        found.append("".join(character + " " * (chance.random() < 0.2) for character in characters))
    return found
