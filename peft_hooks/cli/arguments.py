"""What the commands share: arguments that are numbers, and results as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any


def whole_number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
