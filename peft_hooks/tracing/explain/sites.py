"""The places in a traceback where something was called that the table knows: layers, losses, functions, expressions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .expressions import Expression
from .ghosts import Shape, shape_of
from .operands import Operand
from .scene import Scene
from .table import ANY_TENSOR, FUNCTIONS, LAYERS, Takes
from .values import UNKNOWN, attribute

_LETTERS = ["N", "C", "A", "B", "D", "F"]
_CLASSIFY = ("cross_entropy", "nll_loss", "multi_margin_loss")


@dataclass(frozen=True)
class Site:
    """One call of something that the table knows.

    Attributes:
        scene: What is known beside it.
        place: The step that called it.
        name: Its name in the table.
        takes: What it takes.
        module: The layer, or None of a function.
        operands: What it was given, by parameter.
        inside: Whether the step is inside of it: then what it was given may have been changed since.
    """

    scene: Scene
    place: int
    name: str
    takes: Takes
    module: nn.Module | None
    operands: dict[str, Operand]

    @property
    def where(self) -> str:
        """The layer or function, as text."""
        return f"{self.name}()" if self.module is None else self.scene.where(self.module)

    @property
    def path(self) -> str | None:
        """The layer's path."""
        return None if self.module is None else self.scene.paths.get(id(self.module))

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the arguments that are tensors."""
        return {name: one.shape for name, one in self.operands.items() if one.is_tensor}

    def number(self, name: str) -> Any:
        """Return an attribute of the layer, or an argument that is a number."""
        if self.module is None:
            given = self.operands[name].value if name in self.operands else 1 if name == "groups" else None
            return given if isinstance(given, (int, tuple, list)) else None
        return number_of(self.module, name)

    def same(self, parameter: str) -> tuple[str, ...]:
        """Return the parameters that were given the very tensor that a parameter was given."""
        value = self.operands[parameter].value
        return tuple(name for name, one in self.operands.items() if one.value is value)


def number_of(module: Any, name: str) -> Any:
    """Return an attribute of a layer, or of one inside; ``layers`` and ``state_size`` are worked out."""
    if name == "layers":
        return module.num_layers * (2 if module.bidirectional else 1)
    if name == "state_size":
        return getattr(module, "proj_size", 0) or module.hidden_size
    value: Any = module
    for part in name.split("."):
        value = next(iter(value._modules.values()), None) if part.isdigit() else attribute(value, part)
    return None if value is UNKNOWN else value


def takes_of(module: nn.Module) -> tuple[str, Takes] | None:
    """Return what a layer takes, by the first class of PyTorch's that it is of."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules") and kind.__name__ in LAYERS:
            return kind.__name__, LAYERS[kind.__name__]
    name = type(module).__name__
    container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return (name, ANY_TENSOR) if type(module).__module__.startswith("torch.nn.modules") and not container else None


def sites(scene: Scene) -> Iterator[Site]:
    """Yield what the traceback went through and the table knows, outermost first."""
    calls = {call.place: call for call in scene.calls}
    for place, step in enumerate(scene.steps):
        call = calls.get(place)
        known = None if call is None else takes_of(call.module)
        if call is not None and known is not None and type(call.module).forward.__code__ is step.frame.f_code:
            given = {name: scene.names.of_parameter(place, name, value) for name, value in call.given.items()}
            yield Site(scene, place, *known, call.module, _flat(given, known[1]))
        if step.in_torch and step.name in FUNCTIONS and step.module is None:
            code = step.frame.f_code
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            given = {
                name: scene.names.of_parameter(place, name, step.locals[name]) for name in names if name in step.locals
            }
            yield _function(scene, place, step.name, given)
    for place in range(len(scene.steps) - 1, -1, -1):
        expression = Expression(scene.names, place)
        if expression.name in FUNCTIONS and not hasattr(expression.target, "__code__"):
            yield _function(scene, place, expression.name, expression.operands)
        if not scene.steps[place].in_torch:
            return


def _function(scene: Scene, place: int, name: str, given: dict[str, Operand]) -> Site:
    takes = FUNCTIONS[name]
    for parameter, one in given.items():  # a list of numbers will do where a tensor of one dimension does
        if isinstance(one.value, list) and one.value and all(type(number) is int for number in one.value):
            given = {**given, parameter: replace(one, value=torch.tensor(one.value))}
    if name in _CLASSIFY and given.get("input") is not None:
        takes = _for_classes(takes, given)
    return Site(scene, place, name, takes, None, given)


def _for_classes(takes: Takes, given: dict[str, Operand]) -> Takes:
    """Return what a loss over classes takes: a target with the classes' dimension left out, or probabilities."""
    rank, target = len(given["input"].shape), given.get("target")
    if target is not None and target.shape == given["input"].shape and target.dtype and target.dtype.is_floating_point:
        return Takes({"input": takes.patterns["input"]})
    if rank < 2 or rank > len(_LETTERS):
        return takes
    letters = _LETTERS[:rank]
    patterns = {"input": " ".join(letters), "target": " ".join([letters[0], *letters[2:]])}
    if given.get("weight") is not None and given["weight"].is_tensor:
        patterns["weight"] = "C"
    return replace(takes, patterns=patterns)


def _flat(given: dict[str, Operand], takes: Takes) -> dict[str, Operand]:
    """Lay out the pair of states of an LSTM, and a packed sequence."""
    flat: dict[str, Operand] = {}
    for name, one in given.items():
        if isinstance(one.value, PackedSequence):
            flat[name] = replace(one, value=one.value.data)
        elif isinstance(one.value, (tuple, list)) and f"{name}.0" in takes.patterns:
            for number, part in enumerate(one.value):
                text = f"{one.text}[{number}]"
                flat[f"{name}.{number}"] = Operand(text, part, None, one.place) if shape_of(part) else one
        else:
            flat[name] = one
    if any(isinstance(one.value, PackedSequence) for one in given.values()):
        return {name: one for name, one in flat.items() if not name.startswith("hx")}
    return flat
