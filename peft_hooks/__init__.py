"""Forward hooks that make PEFT's prompt learning right in Sentence Transformers models.

Where each hook sits, for ``V`` virtual tokens::

    texts
      |
      v
    tokenizer              input_ids, attention_mask [batch, seq]; padding on the left or right
      |
      v
    Transformer            model[0]            <- ExtendPromptMask: measures V, makes the mask [batch, V + seq]
      |  PeftModel         inputs_embeds [batch, V + seq, hidden], or a cache of V keys and values
      |    prompt_encoder                      <- SelectTask: multitask prompt tuning's task
      |    backbone                            <- AlignPositions: positions that padding does not move
      |                                           SharePrompt: virtual tokens once, not once for each row
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
    why a shape is wrong       trace_shapes -> ShapeTrace, assert_dimensions, contract_of, AssertDimensions, LogShapes
    hooks of your own          Hook, Call, HookRegistry; peft_hooks.testing for their tests
    the hooks one by one       ExtendPromptMask, PreparePooling, AlignPositions, SelectTask, SharePrompt
    what can be raised         PeftHooksError: HookError, HookNameError, SelectorError, UnsupportedModelError,
                               DimensionError (or DimensionWarning), LoadError, SaveError

The files, by job, from the ground up:

    errors, formats            errors _version _format _given _parameters
    hooks on any module        _torch_private _hook _dispatch _select _places _describe _registry _left _log
    what releases differ in    _releases _training _modules _pipeline _backbones _cross_encoders
    virtual tokens             _features _mask _positions _task _hidden _scores _token_modules
                               _caches _share _share_probe _sharing
    named dimensions           _dimension_spec _dimension_values _bindings _disagreement _dimensions _contracts _assert
    all of it on a model       _probe _refuse _plan _attach _peft_state _adapters _without _invariance _trainer
    saving and loading         _folder _pickles _saved _card _merge _restore _base_model _save _load
    traces                     _leaves _frames _tap _trace_model _trace_data _trace, _trace_fold _trace_stages
                               _trace_text _trace_svg _trace_style _trace_html _trace_diff
    an exception, explained    _raised _clash _origins _failure _causes_missing _causes_shapes _causes_broken
                               _causes_inputs _causes _explain
    the doctor                 _findings _evidence _suspects _examine _diagnosis _doctor _native _ribbon _doctor_report
    the command line           _console _demo_model _demo _demo_report _demo_svg _cli
    for tests of your own      _tiny _assertions testing pytest_plugin

``import peft_hooks`` loads no other library, not even torch: names are imported when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
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
    try:
        before_trainers = importlib.metadata.version("sentence-transformers").startswith("2.")
    except importlib.metadata.PackageNotFoundError:
        before_trainers = False
    # help() imports every name that it is told of, and PromptTrainer cannot be before 3.0.
    return sorted({*globals(), *__all__} - ({"PromptTrainer"} if before_trainers else set()))


# Hidden from type checkers, which would take it that every name is there.
if not TYPE_CHECKING:
    __getattr__ = _import
