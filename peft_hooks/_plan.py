"""Which hooks a model needs, for the options that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from . import _backbones as backbones
from . import _releases as releases
from ._dimensions import AssertDimensions, Bindings
from ._hook import Hook
from ._log import LogShapes
from ._mask import ExtendPromptMask, PreparePooling, VirtualTokens, check_policy
from ._positions import AlignPositions, RefuseLeftPadding
from ._refuse import refuse_left_padding
from ._task import SelectTask

# Lower runs first: what is right is made, then checked, then logged.
MAKE, CHECK, LOG = 0, 100, 200


@dataclass(frozen=True)
class Options:
    """What ``register_prompt_mask_hooks`` was asked for. The hooks on a model are marked with it."""

    virtual_tokens: VirtualTokens = "auto"
    task_id: int | None = None
    check: bool = True
    log: bool = False

    def __post_init__(self) -> None:
        check_policy(self.virtual_tokens)
        if self.task_id is not None:
            SelectTask(self.task_id)


class Planned(NamedTuple):
    """A hook that is to be attached."""

    name: str
    hook: Hook
    to: nn.Module
    order: int


def plan(model: nn.Module, options: Options) -> Iterator[Planned]:
    """Yield the hooks that ``model`` needs, for every Transformer and Pooling of it."""
    bindings, poolings = Bindings(), releases.poolings_of(model)
    policy: VirtualTokens = "strip" if options.virtual_tokens == "auto" and not poolings else options.virtual_tokens
    causes: dict[int, str] = {}
    missing = releases.missing_in_prompt_length(model)
    for path, transformer in releases.transformers_of(model):
        if not releases.has_adapter(transformer):
            continue
        for name, config in releases.prompt_configs(transformer).items():
            what = f"num_virtual_tokens of the {releases.method_of(config)} adapter {name!r}"
            causes.setdefault(config.num_virtual_tokens, what)
        yield Planned(f"mask:{path}", ExtendPromptMask(policy), transformer, MAKE)
        yield from _plan_backbone(path, transformer, options)
        if options.check:
            hook = AssertDimensions(outputs=TRANSFORMER_OUTPUT, bindings=bindings, starts=True, causes=causes)
            yield Planned(f"check:{path}", hook, transformer, CHECK)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), transformer, LOG)
    for path, pooling in poolings:
        yield Planned(f"pooling:{path}", PreparePooling(options.virtual_tokens, missing), pooling, MAKE)
        if options.check:
            yield Planned(f"check:{path}", pooling_contract(pooling, bindings, causes), pooling, CHECK)
        if options.log:
            yield Planned(f"log:{path}", LogShapes(), pooling, LOG)


TRANSFORMER_OUTPUT = {"token_embeddings": "batch seq hidden", "attention_mask": "batch seq"}


def pooling_contract(pooling: nn.Module, bindings: Bindings, causes: dict[int, str]) -> AssertDimensions:
    """Return the contract of a Pooling module, its declared widths included."""
    width, pooled = releases.pooling_widths(pooling)
    return AssertDimensions(
        inputs={"token_embeddings": f"batch seq width={width}", "attention_mask": "batch seq"},
        outputs={"sentence_embedding": f"batch {pooled}"},
        bindings=bindings,
        ends=True,
        causes=causes,
    )


def _plan_backbone(path: str, transformer: Any, options: Options) -> Iterator[Planned]:
    """Yield what the adapter's own modules need: positions, a task, and right padding where nothing else helps."""
    outer = releases.backbone_of(transformer)
    distance = refuse_left_padding(path, transformer)
    if distance is not None:
        yield Planned(f"padding:{path}", RefuseLeftPadding(distance), transformer, MAKE - 1)
    if hasattr(outer, "active_peft_config") and backbones.accepts(releases.plain_backbone(transformer), "position_ids"):
        hook = AlignPositions(backbones.position_offset(transformer))
        yield Planned(f"positions:{path}", hook, outer.base_model, MAKE)
    for number, encoder in enumerate(releases.prompt_encoders(transformer, "MULTITASK_PROMPT_TUNING")):
        yield Planned(f"task:{path}:{number}", SelectTask(options.task_id), encoder, MAKE)
