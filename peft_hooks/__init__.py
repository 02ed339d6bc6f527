"""Forward hooks that make PEFT's prompt learning right in Sentence Transformers models.

``import peft_hooks`` loads no other library, not even torch: names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._adapters import add_prompt_adapter, remove_prompt_adapter
    from ._assert import assert_dimensions
    from ._attach import HookHandle, prompt_mask_hooks, register_prompt_mask_hooks
    from ._contracts import contract_of
    from ._diagnosis import Diagnosis
    from ._dimensions import AssertDimensions
    from ._doctor import diagnose
    from ._findings import Finding
    from ._hook import Call, Hook
    from ._invariance import PaddingReport, check_padding_invariance
    from ._load import load
    from ._log import LogShapes
    from ._mask import ExtendPromptMask, PreparePooling
    from ._positions import AlignPositions
    from ._registry import HookRegistry
    from ._save import save
    from ._share import SharePrompt
    from ._task import SelectTask
    from ._trace import trace_shapes
    from ._trace_data import ShapeTrace
    from ._trainer import PromptTrainer
    from ._without import without_adapter
    from .errors import (
        DimensionError,
        DimensionWarning,
        HookError,
        HookNameError,
        LoadError,
        PeftHooksError,
        SaveError,
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
    "LoadError",
    "LogShapes",
    "PaddingReport",
    "PeftHooksError",
    "PreparePooling",
    "PromptTrainer",
    "SaveError",
    "SelectTask",
    "SelectorError",
    "ShapeTrace",
    "SharePrompt",
    "UnsupportedModelError",
    "add_prompt_adapter",
    "assert_dimensions",
    "check_padding_invariance",
    "contract_of",
    "diagnose",
    "load",
    "prompt_mask_hooks",
    "register_prompt_mask_hooks",
    "remove_prompt_adapter",
    "save",
    "trace_shapes",
    "without_adapter",
]

_HOMES = {
    "_adapters": (
        "add_prompt_adapter",
        "remove_prompt_adapter",
    ),
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
    "_load": ("load",),
    "_log": ("LogShapes",),
    "_mask": (
        "ExtendPromptMask",
        "PreparePooling",
    ),
    "_positions": ("AlignPositions",),
    "_registry": ("HookRegistry",),
    "_save": ("save",),
    "_share": ("SharePrompt",),
    "_task": ("SelectTask",),
    "_trace": ("trace_shapes",),
    "_trace_data": ("ShapeTrace",),
    "_trainer": ("PromptTrainer",),
    "_without": ("without_adapter",),
    "errors": (
        "DimensionError",
        "DimensionWarning",
        "HookError",
        "HookNameError",
        "LoadError",
        "PeftHooksError",
        "SaveError",
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
