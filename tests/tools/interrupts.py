"""Press Ctrl-C at every line of the library: ``python -m tests.tools.interrupts [STRIDE] [NAME]`` prints the outcomes.

A trial runs one call and raises a KeyboardInterrupt before the n-th line executed inside ``peft_hooks/``: at the first
and last execution of each line, or at every STRIDE-th of those. Afterwards the model must be as it was before the call
or as it is after it: the embedding, the hooks on every module, the adapters, what is frozen, ``max_seq_length``. Then
registering, refreshing and removing must work and leave nothing behind.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

import peft_hooks
from peft_hooks import (
    Call,
    Hook,
    HookRegistry,
    add_prompt_adapter,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    remove_prompt_adapter,
    without_adapter,
)
from peft_hooks.compat.quiet import quiet
from peft_hooks.prompts.handle import adopt_handle
from peft_hooks.testing import TEXTS, assert_no_hooks_left
from peft_hooks.testing.leftovers import hooks_on

from .matrix import pipeline
from .methods import METHODS, backbone_of, fill_adapter, put_adapter

HOME = str(Path(peft_hooks.__file__).parent)


class Interrupt:
    """Raise a KeyboardInterrupt before the n-th line of the library executed in the block; 0 only counts lines."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.lines: list[str] = []

    def __enter__(self) -> Interrupt:
        self._former = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._former)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(HOME) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.append(f"{frame.f_code.co_filename[len(HOME) + 1 :]}:{frame.f_lineno}")
            if len(self.lines) == self.at:
                raise KeyboardInterrupt
        return self._line


class Scenario(NamedTuple):
    """A call to interrupt.

    Attributes:
        make: Returns a model that is copied for each trial.
        prepare: Prepares the copy for the call; its return value is passed to the call.
        call: The call to interrupt.
    """

    make: Callable[[], Any]
    prepare: Callable[[Any], Any]
    call: Callable[[Any, Any], Any]


# --- pipelines


@functools.cache
def adapted(architecture: str = "bert", method: str | None = "prompt_tuning", **options: Any) -> Any:
    from peft_hooks.testing import tiny_model

    side = "left" if architecture == "llama" else "right"
    model = tiny_model(architecture, padding_side=side, **options)
    if method is not None:
        put_adapter(model, method)
    return pipeline(model[0], "cls" if architecture == "bert" else "lasttoken")


def config(model: Any, method: str = "prompt_tuning", **more: Any) -> Any:
    return METHODS[method](model, **more)


def two_adapters() -> Any:
    model = copy.deepcopy(adapted())
    backbone_of(model).add_adapter("second", config(model, num_virtual_tokens=7))
    with torch.no_grad():
        fill_adapter(backbone_of(model), "second", 5, 0.7)
    return model


def short() -> Any:
    return adapted("bert", "prompt_tuning", max_seq_length=28, max_position_embeddings=30)


def two_prefixes() -> Any:
    model = copy.deepcopy(adapted("bert", "prefix_tuning"))
    backbone_of(model).add_adapter("second", config(model, "prefix_tuning", num_virtual_tokens=7))
    return model


def train(model: Any) -> None:
    model.train()
    model[0].eval()  # no dropout, so that a forward is comparable


def nothing(model: Any) -> None:
    return None


def register(model: Any) -> Any:
    return register_prompt_mask_hooks(model)


def pool_anew(model: Any) -> Any:
    handle = register(model)
    model[1] = pipeline(model[0], "cls")[1]
    return handle


def block(model: Any, **options: Any) -> None:
    with prompt_mask_hooks(model, **options):
        pass


def switch(model: Any, handle: Any) -> None:
    with handle.switched(virtual_tokens="strip", share_prompt=False):
        pass


def nested(model: Any, handle: Any) -> None:
    with prompt_mask_hooks(model, virtual_tokens="strip"), prompt_mask_hooks(model, log=True):
        pass


def bare(model: Any, handle: Any) -> None:
    with without_adapter(model):
        pass


# --- plain modules


class Add(Hook):
    """Add to the output, so that it shows which hooks ran."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def after(self, call: Call, output: Any) -> Any:
        return output * 2 + self.amount


def plain() -> Any:
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()), nn.Identity())


def registry(model: Any) -> HookRegistry:
    made = HookRegistry(model, owner="mine")
    made.attach(Add(1), to="*", name="one")
    made.attach(Add(2), to="1.0", name="two", order=-1)
    return made


def attached(model: Any, made: HookRegistry) -> None:
    with made.attached(Add(3), to="**"):
        pass


def disabled(model: Any, made: HookRegistry) -> None:
    with made.disabled():
        pass


def replaced(model: Any, made: HookRegistry) -> None:
    with made.replaced("other"):
        made.attach(Add(4), to="**")


SCENARIOS: dict[str, Scenario] = {
    "register": Scenario(adapted, nothing, lambda model, _: register(model)),
    "register, texts cut": Scenario(short, nothing, lambda model, _: register(model)),
    "register, a decoder": Scenario(lambda: adapted("llama"), nothing, lambda model, _: register(model)),
    "register, a prefix": Scenario(lambda: adapted("bert", "prefix_tuning"), nothing, lambda model, _: register(model)),
    "register, two prefixes": Scenario(two_prefixes, nothing, lambda model, _: register(model)),
    "register, in training": Scenario(lambda: adapted("llama"), train, lambda model, _: register(model)),
    "register again, another Pooling": Scenario(adapted, pool_anew, lambda model, _: register(model)),
    "block": Scenario(adapted, nothing, lambda model, _: block(model)),
    "block, a decoder": Scenario(lambda: adapted("llama"), nothing, lambda model, _: block(model)),
    "block, texts cut": Scenario(short, nothing, lambda model, _: block(model)),
    "block in hooks": Scenario(adapted, register, lambda model, _: block(model, virtual_tokens="ignore")),
    "blocks in hooks": Scenario(lambda: adapted("llama"), register, nested),
    "block, another Pooling": Scenario(adapted, pool_anew, lambda model, _: block(model, log=True)),
    "switched": Scenario(lambda: adapted("llama"), register, switch),
    "refresh": Scenario(adapted, register, lambda model, handle: handle.refresh()),
    "refresh, texts cut": Scenario(short, register, lambda model, handle: handle.refresh()),
    "refresh, another Pooling": Scenario(adapted, pool_anew, lambda model, handle: handle.refresh()),
    "remove": Scenario(adapted, register, lambda model, handle: handle.remove()),
    "remove, texts cut": Scenario(short, register, lambda model, handle: handle.remove()),
    "add_prompt_adapter": Scenario(
        lambda: adapted("bert", None), nothing, lambda model, _: add_prompt_adapter(model, config(model))
    ),
    "add_prompt_adapter, LoRA": Scenario(
        lambda: adapted("bert", None), nothing, lambda model, _: add_prompt_adapter(model, config(model, "lora"))
    ),
    "add_prompt_adapter, a second": Scenario(
        adapted, register, lambda model, _: add_prompt_adapter(model, config(model, num_virtual_tokens=7), "second")
    ),
    "remove_prompt_adapter": Scenario(adapted, register, lambda model, _: remove_prompt_adapter(model)),
    "remove_prompt_adapter, LoRA": Scenario(
        lambda: adapted("bert", "lora"), register, lambda model, _: remove_prompt_adapter(model)
    ),
    "remove_prompt_adapter, of two": Scenario(two_adapters, register, lambda model, _: remove_prompt_adapter(model)),
    "without_adapter": Scenario(adapted, register, bare),
    "without_adapter, LoRA": Scenario(lambda: adapted("bert", "lora"), register, bare),
    "registry.attach": Scenario(plain, registry, lambda model, made: made.attach(Add(3), to="**")),
    "registry.detach": Scenario(plain, registry, lambda model, made: made.detach("one")),
    "registry.clear": Scenario(plain, registry, lambda model, made: made.clear()),
    "registry.disable": Scenario(plain, registry, lambda model, made: made.disable("two")),
    "registry.attached": Scenario(plain, registry, attached),
    "registry.disabled": Scenario(plain, registry, disabled),
    "registry.replaced": Scenario(plain, registry, replaced),
}


# --- trials


class Picture(NamedTuple):
    """The state of a model as seen from outside.

    Attributes:
        output: The result of a forward, or the error that refuses it.
        hooks: The library's hooks on each module.
        rest: Adapters, what is frozen, ``max_seq_length``, options.
    """

    output: Any
    hooks: list[Any]
    rest: list[Any]

    def same(self, other: Picture) -> str | None:
        """Return what differs, or None."""
        if type(self.output) is not type(other.output):
            return f"the output is {self.output!r}, not {other.output!r}"[:200]
        if isinstance(self.output, torch.Tensor):
            apart = float((self.output - other.output).abs().max())
            if not apart <= 1e-6:
                return f"the output is off by {apart:.2g}"
        if self.hooks != other.hooks:
            return f"hooks: {[hook for hook in self.hooks if hook not in other.hooks]}"[:300]
        return None if self.rest == other.rest else f"{self.rest} is not {other.rest}"[:300]


def is_pipeline(model: Any) -> bool:
    return hasattr(model, "encode")


def output_of(model: Any) -> Any:
    with torch.no_grad():
        if not is_pipeline(model):
            return model(torch.ones(1))
        features = {key: value for key, value in model.tokenize(list(TEXTS)).items() if torch.is_tensor(value)}
        try:
            return model(features)["sentence_embedding"]
        except RuntimeError as error:  # a HookError, or what Pooling raises on 2.7 for a model without hooks
            return type(error).__name__


def picture(model: Any) -> Picture:
    """Return the state of a model."""
    hooks = [(left.path, left.hook, left.kind) for left in hooks_on(model)]
    rest: list[Any] = [[(type(module).__name__, module.training) for module in model.modules()]]
    if is_pipeline(model):
        backbone = backbone_of(model)
        handle = adopt_handle(model)
        names = list(getattr(backbone, "peft_config", ())), getattr(backbone, "active_adapter", None)
        frozen = [parameter.requires_grad for parameter in model.parameters()]
        options = None if handle is None else handle.options
        rest += [names if hasattr(backbone, "active_peft_config") else None, model.max_seq_length, frozen, options]
    return Picture(output_of(model), hooks, rest)


def works_later(model: Any, prepared: Any) -> None:
    """Raise unless later calls work and leave nothing behind."""
    if not is_pipeline(model):
        prepared.reset()
        assert_no_hooks_left(model)
        return
    handle = adopt_handle(model)
    if hasattr(backbone_of(model), "active_peft_config"):
        handle = register_prompt_mask_hooks(model)
        handle.refresh()
        truth = output_of(model)
        assert isinstance(truth, torch.Tensor), "refused after refresh"
        handle.remove()
        with register_prompt_mask_hooks(model):
            assert float((output_of(model) - truth).abs().max()) <= 1e-6
    elif handle is not None:
        handle.remove()
    assert_no_hooks_left(model)


def first_and_last(lines: list[str]) -> list[int]:
    """Return the numbers of the first and last execution of each line: a walk repeats the same lines."""
    numbers = {line: number for number, line in enumerate(lines, 1)}
    first = {line: number for number, line in reversed(list(enumerate(lines, 1)))}
    return sorted({*numbers.values(), *first.values()})


def trials(scenario: Scenario, chosen: Callable[[list[str]], Iterable[int]]) -> Iterator[tuple[str, str]]:
    """Yield the outcome of each interrupt, ``"before"``, ``"after"`` or what is wrong, and where it was."""
    pristine = scenario.make()

    def start() -> tuple[Any, Any]:
        model = copy.deepcopy(pristine)
        torch.manual_seed(0)  # PEFT initializes new adapters randomly
        return model, scenario.prepare(model)

    scenario.call(*start())  # first-time imports and lookups do not count
    model, prepared = start()
    before = picture(model)
    with Interrupt() as counted:
        scenario.call(model, prepared)
    after = picture(model)
    for number in chosen(counted.lines):
        model, prepared = start()
        try:
            with Interrupt(number) as interrupt:
                scenario.call(model, prepared)
            if len(interrupt.lines) < number:
                continue  # fewer lines than counted: the handles of earlier models have been collected
            came = "the call continued"
        except KeyboardInterrupt:
            found = picture(model)
            differences = found.same(before), found.same(after)
            came = "before" if differences[0] is None else "after" if differences[1] is None else str(differences)
        try:
            works_later(model, prepared)
        except Exception as error:
            came = f"later, {type(error).__name__}: {error}"
        yield came, f"{counted.lines[number - 1]} (line {number} of {len(counted.lines)})"


def main(stride: int = 1, only: str = "") -> int:
    """Run all trials, print counts, and return how many went wrong."""
    wrong = total = 0
    print(f"{'interrupted':34} {'lines':>6} {'as before':>10} {'as after':>9} {'wrong':>6}")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, scenario in SCENARIOS.items():
            if only not in name:
                continue
            came = list(trials(scenario, lambda lines: first_and_last(lines)[::stride]))
            counts = Counter(result for result, _ in came)
            bad = [(result, where) for result, where in came if result not in ("before", "after")]
            print(f"{name:34} {len(came):6} {counts['before']:10} {counts['after']:9} {len(bad):6}", flush=True)
            for result, where in bad[:5]:
                print(f"    {where}: {result}")
            wrong, total = wrong + len(bad), total + len(came)
    print(f"{total} interrupts, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:2]), *sys.argv[2:3]), 1))
