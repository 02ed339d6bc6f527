"""Forward hooks that make PEFT's prompt learning right in Sentence Transformers models.

Where each hook sits, for ``V`` virtual tokens::

    texts
      |
      v
    tokenizer              input_ids, attention_mask [batch, seq]; padding on the left or right
      |
      v
    Transformer            model[0]            <- PutPaddingLast: rolls each row so that its text comes first
      |                                           ExtendPromptMask: measures V, makes the mask [batch, V + seq]
      |  PeftModel         inputs_embeds [batch, V + seq, hidden], or a cache of V keys and values
      |    prompt_encoder                      <- SelectTask: the task of multitask prompt tuning
      |    backbone                            <- SharePrompt: runs virtual tokens once, not once per row
      |                                           PutPrefixInAttention: a prefix where there is no cache
      v
    Pooling                model[1]            <- PreparePooling: cls and prompts at their real positions
      |                    token_embeddings [batch, V + seq, hidden], attention_mask [batch, V + seq]
      v
    sentence_embedding     [batch, width]

    any module, any model                      <- AssertDimensions, LogShapes, your own Hook; trace_shapes

What you need, and what it is called:

    a model with a prompt      add_prompt_adapter, remove_prompt_adapter, without_adapter
    correct embeddings         register_prompt_mask_hooks -> HookHandle, prompt_mask_hooks for a block
    proof                      check_padding_invariance -> PaddingReport, diagnose -> Diagnosis of Finding
    to train, save and share   PromptTrainer, save, load
    to serve anywhere          merge_and_unload, export_onnx -> OnnxReport
    why a shape is wrong       trace_shapes -> ShapeTrace, assert_dimensions, contract_of, AssertDimensions, LogShapes
    hooks of your own          Hook, Call, HookRegistry; peft_hooks.testing for their tests
    the individual hooks       ExtendPromptMask, PreparePooling, PutPaddingLast, PutPrefixInAttention, SelectTask,
                               SharePrompt
    what can be raised         PeftHooksError: HookError, HookNameError, SelectorError, UnsupportedModelError,
                               DimensionError (or DimensionWarning), LoadError, SaveError, MissingExtraError

The folders; each imports only from those above it:

    compat         what differs between releases of torch, transformers, PEFT and Sentence Transformers
    hooks          hooks on any module: the dispatcher, the registry, selectors
    dimensions     named dimensions, checked during a forward
    prompts        correct handling of virtual tokens: the individual hooks, what is refused, what is attached
    tracing        records shapes; render draws them, explain says why a forward failed
    doctor         checks of a whole model
    checkpoints    save, load, merge and export
    testing        helpers for your own tests
    cli            the peft-hooks command

``import peft_hooks`` loads no other library, not even torch: each name is imported on first use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from ._version import VERSION

if TYPE_CHECKING:
    # isort: off
    # `as` tells type checkers that a name is re-exported; isort would split each into its own statement.
    from .checkpoints.exporting import export_onnx as export_onnx
    from .checkpoints.loading import load as load
    from .checkpoints.merging import merge_and_unload as merge_and_unload
    from .checkpoints.onnx_compare import OnnxReport as OnnxReport
    from .checkpoints.saving import save as save
    from .dimensions.contracts import contract_of as contract_of
    from .dimensions.hook import AssertDimensions as AssertDimensions
    from .dimensions.scope import assert_dimensions as assert_dimensions
    from .doctor.diagnosis import Diagnosis as Diagnosis
    from .doctor.findings import Finding as Finding
    from .doctor.invariance import (
        PaddingReport as PaddingReport,
        check_padding_invariance as check_padding_invariance,
    )
    from .doctor.run import diagnose as diagnose
    from .errors import (
        DimensionError as DimensionError,
        DimensionWarning as DimensionWarning,
        HookError as HookError,
        HookNameError as HookNameError,
        LoadError as LoadError,
        MissingExtraError as MissingExtraError,
        PeftHooksError as PeftHooksError,
        SaveError as SaveError,
        SelectorError as SelectorError,
        UnsupportedModelError as UnsupportedModelError,
    )
    from .hooks.call import (
        Call as Call,
        Hook as Hook,
    )
    from .hooks.log_shapes import LogShapes as LogShapes
    from .hooks.registry import HookRegistry as HookRegistry
    from .prompts.adapters import (
        add_prompt_adapter as add_prompt_adapter,
        remove_prompt_adapter as remove_prompt_adapter,
    )
    from .prompts.attach import (
        prompt_mask_hooks as prompt_mask_hooks,
        register_prompt_mask_hooks as register_prompt_mask_hooks,
    )
    from .prompts.handle import HookHandle as HookHandle
    from .prompts.mask import (
        ExtendPromptMask as ExtendPromptMask,
        PreparePooling as PreparePooling,
    )
    from .prompts.padding import PutPaddingLast as PutPaddingLast
    from .prompts.prefix import PutPrefixInAttention as PutPrefixInAttention
    from .prompts.sharing import SharePrompt as SharePrompt
    from .prompts.task import SelectTask as SelectTask
    from .prompts.without import without_adapter as without_adapter
    from .tracing.session import trace_shapes as trace_shapes
    from .tracing.trace import ShapeTrace as ShapeTrace
    from .trainer import PromptTrainer as PromptTrainer
    # isort: on

__version__ = VERSION

# Every public name, once, with the module that defines it, which is imported on first use.
_HOMES = {
    "AssertDimensions": "dimensions.hook",
    "Call": "hooks.call",
    "Diagnosis": "doctor.diagnosis",
    "DimensionError": "errors",
    "DimensionWarning": "errors",
    "ExtendPromptMask": "prompts.mask",
    "Finding": "doctor.findings",
    "Hook": "hooks.call",
    "HookError": "errors",
    "HookHandle": "prompts.handle",
    "HookNameError": "errors",
    "HookRegistry": "hooks.registry",
    "LoadError": "errors",
    "LogShapes": "hooks.log_shapes",
    "MissingExtraError": "errors",
    "OnnxReport": "checkpoints.onnx_compare",
    "PaddingReport": "doctor.invariance",
    "PeftHooksError": "errors",
    "PreparePooling": "prompts.mask",
    "PromptTrainer": "trainer",
    "PutPaddingLast": "prompts.padding",
    "PutPrefixInAttention": "prompts.prefix",
    "SaveError": "errors",
    "SelectTask": "prompts.task",
    "SelectorError": "errors",
    "ShapeTrace": "tracing.trace",
    "SharePrompt": "prompts.sharing",
    "UnsupportedModelError": "errors",
    "add_prompt_adapter": "prompts.adapters",
    "assert_dimensions": "dimensions.scope",
    "check_padding_invariance": "doctor.invariance",
    "contract_of": "dimensions.contracts",
    "diagnose": "doctor.run",
    "export_onnx": "checkpoints.exporting",
    "load": "checkpoints.loading",
    "merge_and_unload": "checkpoints.merging",
    "prompt_mask_hooks": "prompts.attach",
    "register_prompt_mask_hooks": "prompts.attach",
    "remove_prompt_adapter": "prompts.adapters",
    "save": "checkpoints.saving",
    "trace_shapes": "tracing.session",
    "without_adapter": "prompts.without",
}

__all__ = [*_HOMES]

_SUBMODULES = ("errors", "testing")


def _import(name: str) -> object:
    if name in _HOMES:
        globals()[name] = found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        return found
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """Explain the errors of every cell from now on. IPython calls this for ``%load_ext peft_hooks``."""
    from .cli.notebook import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Stop explaining the errors of cells. IPython calls this for ``%unload_ext peft_hooks``."""
    from .cli.notebook import unload

    unload(shell)


def __dir__() -> list[str]:
    try:
        before_trainers = importlib.metadata.version("sentence-transformers").startswith("2.")
    except importlib.metadata.PackageNotFoundError:
        before_trainers = False
    # help() imports every name listed here, and PromptTrainer cannot be imported before 3.0.
    return sorted({*globals(), *__all__, *_SUBMODULES} - ({"PromptTrainer"} if before_trainers else set()))


# Hidden from type checkers, which would otherwise assume that every name exists.
if not TYPE_CHECKING:
    __getattr__ = _import
