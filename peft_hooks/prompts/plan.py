"""Which hooks a model needs, for the options that were asked for."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import nn

from ..compat import cross_encoders as cross
from ..compat import sentence_transformers as releases
from ..dimensions.contracts import causes_of, checks
from ..errors import close_matches
from ..hooks.call import Hook
from ..hooks.log_shapes import LogShapes
from .checkpointing import RefuseCheckpointing
from .classifier import NoteTextLength, hooks_of_head
from .hidden_states import KeepHiddenStates, ReplayLayers
from .mask import ExtendPromptMask, PreparePooling, VirtualTokens, check_policy
from .padding import PutPaddingLast
from .sharing_plan import Share, check_share, hooks_of_sharing
from .task import SelectTask, TaskId, plain_task
from .token_modules import hooks_of_token_modules

# Lower runs first: what is right is made, then checked, then logged.
MAKE, CHECK, LOG, LAST = 0, 100, 200, 300


@dataclass(frozen=True)
class Options:
    """What ``register_prompt_mask_hooks`` was asked for. The hooks on a model are marked with it."""

    virtual_tokens: VirtualTokens = "auto"
    task_id: TaskId = None
    check: bool = True
    log: bool = False
    share_prompt: Share = "auto"

    def __post_init__(self) -> None:
        check_policy(self.virtual_tokens)
        check_share(self.share_prompt)
        object.__setattr__(self, "task_id", plain_task(self.task_id))
        for name in ("check", "log"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False")


def options_of(given: Mapping[str, Any]) -> Options:
    """Return options by name.

    Raises:
        TypeError: If one is unknown.
        ValueError: If one is wrong.
    """
    known = [field.name for field in fields(Options)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise TypeError(f"no option is named {unknown!r}{close_matches(unknown, known)}")
    return Options(**given)


class Planned(NamedTuple):
    """A hook that is to be attached."""

    name: str
    hook: Hook
    to: nn.Module
    order: int


def plan(model: nn.Module, options: Options, proven: Container[str] | None = None) -> Iterator[Planned]:
    """Yield the hooks that ``model`` needs; those in ``proven`` that share a prompt need no proof."""
    poolings, missing = releases.poolings_of(model), releases.missing_in_prompt_length(model)
    for path, transformer in releases.transformers_of(model):
        yield Planned(f"padding:{path}", PutPaddingLast(), transformer, MAKE - 1)
        if not releases.has_adapter(transformer):
            continue
        tokens_only = options.virtual_tokens == "auto" and not any(_in_reach(path, pooling) for pooling, _ in poolings)
        policy: VirtualTokens = "strip" if tokens_only else options.virtual_tokens
        yield Planned(f"mask:{path}", ExtendPromptMask(policy), transformer, MAKE)
        yield Planned(f"layers:{path}", ReplayLayers(), transformer, MAKE)
        yield from _plan_backbone(path, transformer, transformer, options)
        for name, hook, module in hooks_of_sharing(path, transformer, options.share_prompt, proven):
            yield Planned(name, hook, module, LAST if module is transformer else MAKE)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), transformer, LOG)
    for path, holder in cross.holders_of(model):
        yield Planned(f"padding:{path}", PutPaddingLast(restore=False), holder.model, MAKE - 1)
        yield from _plan_backbone(path, holder, holder.model, options)
    for path, hook, module in hooks_of_token_modules(model):
        yield Planned(f"tokens:{path}", hook, module, MAKE)
    for path, pooling in poolings:
        yield Planned(f"pooling:{path}", PreparePooling(options.virtual_tokens, missing), pooling, MAKE)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), pooling, LOG)
    for path, module, check in checks(model, causes=causes_of(model)) if options.check else ():
        yield Planned(f"check:{path}", check, module, CHECK)


def _in_reach(path: str, pooling: str) -> bool:
    """Tell whether the Pooling comes in the same route of a Router as the Transformer, or in one around it."""
    route = pooling.rpartition(".")[0]
    return not route or path.startswith(route + ".")


def _plan_backbone(path: str, transformer: Any, entry: nn.Module, options: Options) -> Iterator[Planned]:
    """Yield what the adapter's own modules need: hidden states, a head that reads the text, a task.

    ``entry`` is the module that the text goes into.
    """
    outer = releases.backbone_of(transformer)
    config = releases.active_config(transformer)
    if config is not None and releases.method_of(config) in releases.PREFIX_METHODS:
        yield Planned(f"checkpointing:{path}", RefuseCheckpointing(), entry, MAKE - 1)
    if hasattr(outer, "active_peft_config"):
        yield Planned(f"hidden:{path}", KeepHiddenStates(), outer.base_model, MAKE)
    for name, head_hook, module in hooks_of_head(transformer, options.virtual_tokens):
        yield Planned(f"text:{path}", NoteTextLength(), entry, MAKE)
        yield Planned(f"{name}:{path}", head_hook, module, MAKE)
    for number, encoder in enumerate(releases.prompt_encoders(transformer, "MULTITASK_PROMPT_TUNING")):
        yield Planned(f"task:{path}:{number}", SelectTask(options.task_id), encoder, MAKE - 1)
