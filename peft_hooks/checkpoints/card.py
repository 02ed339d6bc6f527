"""The note in the model card on how to load a model that ``SentenceTransformer(path)`` cannot load."""

from __future__ import annotations

import re
from pathlib import Path

_BEGIN, _END = "<!-- peft_hooks: how to load -->", "<!-- peft_hooks: end -->"

_POINTER = f"""{_BEGIN}
> `SentenceTransformer(...)` cannot load this model as it was saved: it has a PEFT adapter and hooks. To load it with
> both:
>
> ```python
> # pip install peft_hooks
> import peft_hooks
>
> model = peft_hooks.load("path/to/this/folder")
> ```
{_END}
"""

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_FORMER = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END) + r"\n*", re.DOTALL)


def point_to_load(folder: Path) -> None:
    """Put the note at the top of the model card, replacing an earlier one; create the card if there is none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = _FORMER.sub("", text)
    front = _FRONT_MATTER.match(text)
    end = front.end() if front else 0
    card.write_text(f"{text[:end]}{_POINTER}\n{text[end:]}", encoding="utf-8")
