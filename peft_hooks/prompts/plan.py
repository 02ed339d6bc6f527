"""Plan which hooks a model needs for the given options."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypedDict

from torch import nn

from ..compat import sentence_transformers as releases
from ..compat.pipeline import Encoder, Pipeline
from ..dimensions.contracts import causes_of, checks
from ..errors import close_matches
from ..hooks.call import Hook
from ..hooks.log_shapes import LogShapes
from .checkpointing import RefuseCheckpointing
from .classifier import hooks_of_head
from .hidden_states import KeepHiddenStates, ReplayLayers
from .mask import ExtendPromptMask, PreparePooling, VirtualTokens, check_policy
from .padding import PutPaddingLast
from .prefix_probe import places_of_prefix
from .prefix_proof import hooks_of_places
from .sharing_plan import Share, check_share, hooks_of_sharing
from .task import SelectTask, TaskId, plain_task
from .text import NoteText
from .token_modules import hooks_of_token_modules

# Lower runs first: hooks that make the model correct, then those that check it, then those that log it.
MAKE, CHECK, LOG = 0, 100, 200


@dataclass(frozen=True)
class Options:
    """The options of ``register_prompt_mask_hooks``. They mark the hooks on a model."""

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


class HookOptions(TypedDict, total=False):
    """The same options as optional keywords, for ``**options: Unpack[HookOptions]``."""

    virtual_tokens: VirtualTokens
    task_id: TaskId
    check: bool
    log: bool
    share_prompt: Share


def given_options(task_id: TaskId, virtual_tokens: VirtualTokens | None) -> HookOptions:
    """Return as options those of the two that are given, that is, not None."""
    given: HookOptions = {} if task_id is None else {"task_id": task_id}
    if virtual_tokens is not None:
        given["virtual_tokens"] = virtual_tokens
    return given


def options_of(given: Mapping[str, Any]) -> Options:
    """Make options from keywords.

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
    """A hook to be attached."""

    name: str
    hook: Hook
    to: nn.Module
    order: int


def plan(pipeline: Pipeline, options: Options, proven: Container[str] | None = None) -> Iterator[Planned]:
    """Yield the hooks that a model needs; hooks in ``proven`` that share a prompt need no new proof."""
    missing = releases.missing_in_prompt_length(pipeline.root)
    for encoder in pipeline.encoders:
        padding = PutPaddingLast() if encoder.is_transformer else PutPaddingLast(restore=False)
        yield Planned(f"padding:{encoder.path}", padding, encoder.entry, MAKE - 1)
        if encoder.is_transformer and encoder.adapted:
            yield from _plan_transformer(encoder, pipeline, options, proven)
        elif not encoder.is_transformer:
            yield from _plan_backbone(encoder, options, proven)
    for path, hook, module in hooks_of_token_modules(pipeline):
        yield Planned(f"tokens:{path}", hook, module, MAKE)
    for path, pooling in pipeline.poolings:
        yield Planned(f"pooling:{path}", PreparePooling(options.virtual_tokens, missing), pooling, MAKE)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), pooling, LOG)
    if options.check:
        root, named = pipeline.root, pipeline.modules
        for path, module, check in checks(root, causes=causes_of(root, named), named=named):
            yield Planned(f"check:{path}", check, module, CHECK)


def _plan_transformer(
    encoder: Encoder, pipeline: Pipeline, options: Options, proven: Container[str] | None
) -> Iterator[Planned]:
    """Yield what a Transformer module with an adapter needs."""
    path, transformer = encoder.path, encoder.entry
    in_reach = any(_in_reach(path, pooling) for pooling, _ in pipeline.poolings)
    tokens_only = options.virtual_tokens == "auto" and not in_reach
    policy: VirtualTokens = "strip" if tokens_only else options.virtual_tokens
    yield Planned(f"mask:{path}", ExtendPromptMask(policy), transformer, MAKE)
    yield Planned(f"layers:{path}", ReplayLayers(), transformer, MAKE)
    yield from _plan_backbone(encoder, options, proven)
    if options.log:
        yield Planned(f"log:{path}", LogShapes(), transformer, LOG)


def _in_reach(path: str, pooling: str) -> bool:
    """Tell whether the Pooling is in the same route of a Router as the Transformer, or further out."""
    route = pooling.rpartition(".")[0]
    return not route or path.startswith(route + ".")


def _plan_backbone(encoder: Encoder, options: Options, proven: Container[str] | None) -> Iterator[Planned]:
    """Yield what the adapter's own modules need: hidden states, a head that reads the text, a shared prompt, a task."""
    path, entry = encoder.path, encoder.entry
    config = releases.active_config(encoder.module)
    if config is not None and releases.method_of(config) in releases.PREFIX_METHODS:
        places = places_of_prefix(encoder.module)
        yield Planned(f"checkpointing:{path}", RefuseCheckpointing(places is not None), entry, MAKE - 1)
        for name, hook, module in () if places is None else hooks_of_places(places, encoder.outer.base_model):
            yield Planned(f"prefix:{path}{name}", hook, module, MAKE)
    if hasattr(encoder.outer, "active_peft_config"):
        yield Planned(f"hidden:{path}", KeepHiddenStates(), encoder.outer.base_model, MAKE)
    tell_text_apart = [
        *hooks_of_head(encoder, options.virtual_tokens),
        *hooks_of_sharing(encoder, options.share_prompt, proven),
    ]
    if tell_text_apart:
        yield Planned(f"text:{path}", NoteText(), entry, MAKE)
    for name, hook, module in tell_text_apart:
        yield Planned(f"{name}:{path}", hook, module, MAKE)
    for number, prompts in enumerate(releases.prompt_encoders(encoder.module, "MULTITASK_PROMPT_TUNING")):
        yield Planned(f"task:{path}:{number}", SelectTask(options.task_id), prompts, MAKE - 1)
