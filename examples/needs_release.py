"""The examples import this first: it ends them with a sentence where Sentence Transformers is too old for them.

The library itself works with 2.7 and later; the examples show the newest releases' own names and failures.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

OLDEST = (5, 4)

installed = version("sentence-transformers")
if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST:
    raise SystemExit(
        f"{sys.argv[0]} needs Sentence Transformers 5.4 or later, and {installed} is installed: run "
        f"`pip install --upgrade sentence-transformers peft transformers`. (peft_hooks itself needs 2.7 or later.)"
    )
