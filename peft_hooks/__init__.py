"""Forward hooks that make PEFT's prompt learning right in Sentence Transformers models.

Where each hook sits, for ``V`` virtual tokens::

    texts
      |
      v
    tokenizer              input_ids, attention_mask [batch, seq]; padding on the left or right
      |
      v
    Transformer            model[0]            <- PutPaddingLast: rolls every row, so that its text comes first
      |                                           ExtendPromptMask: measures V, makes the mask [batch, V + seq]
      |  PeftModel         inputs_embeds [batch, V + seq, hidden], or a cache of V keys and values
      |    prompt_encoder                      <- SelectTask: multitask prompt tuning's task
      |    backbone                            <- SharePrompt: virtual tokens once, not once for each row
      v
    Pooling                model[1]            <- PreparePooling: cls and prompts at their real place
      |                    token_embeddings [batch, V + seq, hidden], attention_mask [batch, V + seq]
      v
    sentence_embedding     [batch, width]

    any module, any model                      <- AssertDimensions, LogShapes, a Hook of your own; trace_shapes

What you need, and the name for it:

    a model with a prompt      add_prompt_adapter, remove_prompt_adapter, without_adapter
    right embeddings           register_prompt_mask_hooks -> HookHandle, prompt_mask_hooks for a block
    a proof                    check_padding_invariance -> PaddingReport, diagnose -> Diagnosis of Finding
    to train, keep and share   PromptTrainer, save, load
    to serve it anywhere       merge_and_unload
    why a shape is wrong       trace_shapes -> ShapeTrace, assert_dimensions, contract_of, AssertDimensions, LogShapes
    hooks of your own          Hook, Call, HookRegistry; peft_hooks.testing for their tests
    the hooks one by one       ExtendPromptMask, PreparePooling, PutPaddingLast, SelectTask, SharePrompt
    what can be raised         PeftHooksError: HookError, HookNameError, SelectorError, UnsupportedModelError,
                               DimensionError (or DimensionWarning), LoadError, SaveError

The folders, each of which imports only from those above it:

    compat         what differs between releases of torch, transformers, PEFT and Sentence Transformers
    hooks          hooks on any module: the dispatcher, the registry, selectors
    dimensions     named dimensions, checked in a forward
    prompts        virtual tokens made right: the hooks one by one, what is refused, what is attached
    tracing        shapes recorded; render draws them, explain says why a forward failed
    doctor         checks of a whole model
    checkpoints    save and load
    testing        for tests of your own
    cli            the command peft-hooks

``import peft_hooks`` loads no other library, not even torch: names are imported when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoints.loading import load
    from .checkpoints.merging import merge_and_unload
    from .checkpoints.saving import save
    from .dimensions.contracts import contract_of
    from .dimensions.hook import AssertDimensions
    from .dimensions.scope import assert_dimensions
    from .doctor.diagnosis import Diagnosis
    from .doctor.findings import Finding
    from .doctor.invariance import PaddingReport, check_padding_invariance
    from .doctor.run import diagnose
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
    from .hooks.call import Call, Hook
    from .hooks.log_shapes import LogShapes
    from .hooks.registry import HookRegistry
    from .prompts.adapters import add_prompt_adapter, remove_prompt_adapter
    from .prompts.attach import HookHandle, prompt_mask_hooks, register_prompt_mask_hooks
    from .prompts.mask import ExtendPromptMask, PreparePooling
    from .prompts.padding import PutPaddingLast
    from .prompts.sharing import SharePrompt
    from .prompts.task import SelectTask
    from .prompts.without import without_adapter
    from .tracing.session import trace_shapes
    from .tracing.trace import ShapeTrace
    from .trainer import PromptTrainer

__all__ = [
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
    "PutPaddingLast",
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
    "merge_and_unload",
    "prompt_mask_hooks",
    "register_prompt_mask_hooks",
    "remove_prompt_adapter",
    "save",
    "trace_shapes",
    "without_adapter",
]

_HOMES = {
    "prompts.adapters": (
        "add_prompt_adapter",
        "remove_prompt_adapter",
    ),
    "dimensions.scope": ("assert_dimensions",),
    "prompts.attach": (
        "HookHandle",
        "prompt_mask_hooks",
        "register_prompt_mask_hooks",
    ),
    "dimensions.contracts": ("contract_of",),
    "doctor.diagnosis": ("Diagnosis",),
    "dimensions.hook": ("AssertDimensions",),
    "doctor.run": ("diagnose",),
    "doctor.findings": ("Finding",),
    "hooks.call": (
        "Call",
        "Hook",
    ),
    "doctor.invariance": (
        "PaddingReport",
        "check_padding_invariance",
    ),
    "checkpoints.loading": ("load",),
    "checkpoints.merging": ("merge_and_unload",),
    "hooks.log_shapes": ("LogShapes",),
    "prompts.mask": (
        "ExtendPromptMask",
        "PreparePooling",
    ),
    "prompts.padding": ("PutPaddingLast",),
    "hooks.registry": ("HookRegistry",),
    "checkpoints.saving": ("save",),
    "prompts.sharing": ("SharePrompt",),
    "prompts.task": ("SelectTask",),
    "tracing.session": ("trace_shapes",),
    "tracing.trace": ("ShapeTrace",),
    "trainer": ("PromptTrainer",),
    "prompts.without": ("without_adapter",),
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
    try:
        before_trainers = importlib.metadata.version("sentence-transformers").startswith("2.")
    except importlib.metadata.PackageNotFoundError:
        before_trainers = False
    # help() imports every name that it is told of, and PromptTrainer cannot be before 3.0.
    return sorted({*globals(), *__all__} - ({"PromptTrainer"} if before_trainers else set()))


# Hidden from type checkers, which would take it that every name is there.
if not TYPE_CHECKING:
    __getattr__ = _import
