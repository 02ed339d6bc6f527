"""Forward hooks that make PEFT's prompt learning right in Sentence Transformers models.

``import peft_hooks`` loads no other library, not even torch: names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._adapters import add_prompt_adapter
    from ._assert import assert_dimensions
    from ._attach import HookHandle, prompt_mask_hooks, register_prompt_mask_hooks
    from ._contracts import contract_of
    from ._diagnosis import Diagnosis
    from ._dimensions import AssertDimensions
    from ._doctor import diagnose
    from ._findings import Finding
    from ._hook import Call, Hook
    from ._invariance import PaddingReport, check_padding_invariance
    from ._log import LogShapes
    from ._mask import ExtendPromptMask, PreparePooling
    from ._positions import AlignPositions
    from ._registry import HookRegistry
    from ._task import SelectTask
    from ._trace import trace_shapes
    from ._trace_data import ShapeTrace
    from ._trainer import PromptTrainer
    from .errors import (
        DimensionError,
        DimensionWarning,
        HookError,
        HookNameError,
        PeftHooksError,
        SelectorError,
        UnsupportedModelError,
    )

__all__ = [
    "AlignPositions",
    "AssertDimensions",
    "Call",
    "Diagnosis",
    "DimensionError",
    "DimensionWarning",
    "ExtendPromptMask",
    "Finding",
    "Hook",
    "HookError",
    "HookHandle",
    "HookNameError",
    "HookRegistry",
    "LogShapes",
    "PaddingReport",
    "PeftHooksError",
    "PreparePooling",
    "PromptTrainer",
    "SelectTask",
    "SelectorError",
    "ShapeTrace",
    "UnsupportedModelError",
    "add_prompt_adapter",
    "assert_dimensions",
    "check_padding_invariance",
    "contract_of",
    "diagnose",
    "prompt_mask_hooks",
    "register_prompt_mask_hooks",
    "trace_shapes",
]

_HOMES = {
    "_adapters": ("add_prompt_adapter",),
    "_assert": ("assert_dimensions",),
    "_attach": (
        "HookHandle",
        "prompt_mask_hooks",
        "register_prompt_mask_hooks",
    ),
    "_contracts": ("contract_of",),
    "_diagnosis": ("Diagnosis",),
    "_dimensions": ("AssertDimensions",),
    "_doctor": ("diagnose",),
    "_findings": ("Finding",),
    "_hook": (
        "Call",
        "Hook",
    ),
    "_invariance": (
        "PaddingReport",
        "check_padding_invariance",
    ),
    "_log": ("LogShapes",),
    "_mask": (
        "ExtendPromptMask",
        "PreparePooling",
    ),
    "_positions": ("AlignPositions",),
    "_registry": ("HookRegistry",),
    "_task": ("SelectTask",),
    "_trace": ("trace_shapes",),
    "_trace_data": ("ShapeTrace",),
    "_trainer": ("PromptTrainer",),
    "errors": (
        "DimensionError",
        "DimensionWarning",
        "HookError",
        "HookNameError",
        "PeftHooksError",
        "SelectorError",
        "UnsupportedModelError",
    ),
}


def _import(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = found = getattr(importlib.import_module(f".{home}", __name__), name)
            return found
        if name == home:
            return importlib.import_module(f".{home}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Hidden from type checkers, which would take it that every name is there.
if not TYPE_CHECKING:
    __getattr__ = _import
