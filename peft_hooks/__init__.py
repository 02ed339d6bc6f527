"""Forward hooks that make PEFT's prompt learning right in Sentence Transformers models.

``import peft_hooks`` loads neither Sentence Transformers nor PEFT nor rich.
"""

from __future__ import annotations

from ._adapters import add_prompt_adapter
from ._attach import HookHandle, prompt_mask_hooks, register_prompt_mask_hooks
from ._dimensions import AssertDimensions
from ._hook import Call, Hook
from ._invariance import PaddingReport, check_padding_invariance
from ._log import LogShapes
from ._mask import ExtendPromptMask, PreparePooling
from ._positions import AlignPositions
from ._registry import HookRegistry
from ._task import SelectTask
from ._trace import trace_shapes
from ._trace_data import ShapeTrace
from .errors import DimensionError, HookError, HookNameError, PeftHooksError, SelectorError, UnsupportedModelError

__all__ = [
    "AlignPositions",
    "AssertDimensions",
    "Call",
    "DimensionError",
    "ExtendPromptMask",
    "Hook",
    "HookError",
    "HookHandle",
    "HookNameError",
    "HookRegistry",
    "LogShapes",
    "PaddingReport",
    "PeftHooksError",
    "PreparePooling",
    "SelectTask",
    "SelectorError",
    "ShapeTrace",
    "UnsupportedModelError",
    "add_prompt_adapter",
    "check_padding_invariance",
    "prompt_mask_hooks",
    "register_prompt_mask_hooks",
    "trace_shapes",
]
