"""Exit with a clear message if Sentence Transformers is too old for the examples, which import this first.

The library itself works with 2.7 and later; the examples show names and failures of the newest releases.
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
