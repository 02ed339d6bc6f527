"""List what a traceback passed through: running expressions, and layers and functions that are in the table."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .ghosts import Operand, Shape, is_tensor, shape_of
from .operands import Names
from .scene import Scene
from .table import ANY_TENSOR, CLASSIFY, FUNCTIONS, LAYERS, PARAMETERS, Takes
from .values import UNKNOWN, attribute

_CHANNELS = ("in_channels", "num_features", "num_channels", "C_")
_LETTERS = ["N", "C", "A", "B", "D", "F"]


class Expression:
    """An expression that was running: what it calls, and its operands by parameter.

    Args:
        names: Finds out what tensors are called.
        place: The index of the step.
    """

    def __init__(self, names: Names, place: int) -> None:
        self.names = names
        self.place = place
        self.step = names.steps[place]
        self.name = ""
        self.target: Any = None
        self.operands: dict[str, Operand] = {}
        self.node = self.step.node
        self._read(self.node)

    def operand(self, node: ast.AST) -> Operand:
        """Return a part of the expression as an operand."""
        return self.names.of_expression(self.place, node)

    def value(self, parameter: str) -> Any:
        """Return the value of a parameter, or ``UNKNOWN``."""
        return self.operands[parameter].value if parameter in self.operands else UNKNOWN

    @property
    def arguments(self) -> list[Operand]:
        """The operands after the first: what a method of a tensor is given."""
        return [*self.operands.values()][1:]

    def tensors(self) -> list[Operand]:
        """Return the operands that are tensors, including those in lists."""
        found = []
        for one in self.operands.values():
            parts = one.value if isinstance(one.value, (list, tuple)) else ()
            found += [one, *(Operand(f"{one.text}[{number}]", part) for number, part in enumerate(parts))]
        return [one for one in found if one.is_tensor]

    def _read(self, node: ast.AST | None) -> None:
        if isinstance(node, (ast.BinOp, ast.AugAssign)):
            left, right = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
            self._set("matmul" if isinstance(node.op, ast.MatMult) else "add", input=left, other=right)
        elif isinstance(node, ast.Compare):
            self._set("eq", input=node.left, other=node.comparators[0])
        elif isinstance(node, ast.Subscript):
            statement = self.step.running[1]
            if isinstance(node.ctx, ast.Store) and isinstance(statement, (ast.Assign, ast.AugAssign)):
                self._set("setitem", input=node.value, index=node.slice, value=statement.value)
            else:
                self._set("getitem", input=node.value, index=node.slice)
        elif isinstance(node, ast.Call):
            self._read_call(node)

    def _set(self, name: str, **parts: ast.expr) -> None:
        self.name, self.operands = name, {parameter: self.operand(part) for parameter, part in parts.items()}

    def _laid_out(self, arg: ast.expr) -> list[ast.expr]:
        """Return the arguments that ``*args`` stands for, or the argument itself."""
        value = self.step.values(arg.value) if isinstance(arg, ast.Starred) else None
        if not isinstance(arg, ast.Starred) or not isinstance(value, (tuple, list)):
            return [arg]
        return [ast.Subscript(arg.value, ast.Constant(number), ast.Load()) for number in range(len(value))]

    def _read_call(self, node: ast.Call) -> None:
        given = [self.operand(one) for arg in node.args for one in self._laid_out(arg)]
        owner = self.operand(node.func.value) if isinstance(node.func, ast.Attribute) else None
        self.name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if owner is not None and is_tensor(owner.value):
            given = [owner, *given]
        else:
            self.target = self.step.values(node.func)
            # The call of a module goes by its class: ``self.linear(x)`` is not ``linear()``.
            named = type(self.target) if isinstance(self.target, nn.Module) else self.target
            self.name = self.name if self.target is UNKNOWN else getattr(named, "__name__", self.name)
        names = PARAMETERS.get(self.name, ())
        for number, one in enumerate(given):
            self.operands[names[number] if number < len(names) else f"args.{number}"] = one
        for word in node.keywords:
            if word.arg is not None:
                self.operands[word.arg] = self.operand(word.value)


def expressions(scene: Scene) -> Iterator[Expression]:
    """Yield the expressions that were running, innermost first, up to the first in code that is not PyTorch's."""
    return (Expression(scene.names, place) for place in scene.last_places())


@dataclass(frozen=True)
class Site:
    """One call of a layer or function in the table.

    Attributes:
        scene: Everything else that is known.
        name: Its name in the table.
        takes: What it takes.
        module: The layer, or None for a function.
        operands: Its arguments, by parameter.
    """

    scene: Scene
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
        """The layer's path, or None."""
        return self.scene.path(self.module)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the arguments that are tensors."""
        return {name: one.shape for name, one in self.operands.items() if one.is_tensor}

    def number(self, name: str) -> Any:
        """Return an attribute of the layer, or an argument that is a number or a list of them."""
        if self.module is None:
            given = self.operands[name].value if name in self.operands else 1 if name == "groups" else None
            return given if isinstance(given, (int, tuple, list)) else None
        return number_of(self.module, name)

    def same(self, parameter: str) -> tuple[str, ...]:
        """Return all parameters that were given the same object as ``parameter``."""
        value = self.operands[parameter].value
        return tuple(name for name, one in self.operands.items() if one.value is value)


def number_of(module: Any, name: str) -> Any:
    """Return an attribute of a layer or of one inside it; ``layers`` and ``state_size`` are computed."""
    if name == "layers":
        return module.num_layers * (2 if module.bidirectional else 1)
    if name == "state_size":
        return getattr(module, "proj_size", 0) or module.hidden_size
    value: Any = module
    for part in name.split("."):
        value = next(iter(value._modules.values()), None) if part.isdigit() else attribute(value, part)
    return None if value is UNKNOWN else value


def takes_of(module: nn.Module) -> tuple[str, Takes] | None:
    """Return the name and the entry of a layer in the table, by the first PyTorch class that it inherits from."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules") and kind.__name__ in LAYERS:
            return kind.__name__, LAYERS[kind.__name__]
    name = type(module).__name__
    container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return (name, ANY_TENSOR) if type(module).__module__.startswith("torch.nn.modules") and not container else None


def has_channels_first(scene: Scene, operand: Operand) -> bool:
    """Tell whether an operand, or what it was made from, is the output of a layer that puts the channels first."""
    made = [operand, *scene.names.made_of(operand)]
    seen = [scene.origin(one) for one in made]
    makers = [*map(scene.maker, made), *(scene.modules[one.row.path] for one in seen if one is not None and one.made)]
    parts = [part for maker in makers if maker is not None for part in maker.modules()]
    patterns = [known[1].patterns.get("input", "") for part in parts if (known := takes_of(part)) is not None]
    wanted = len(operand.shape)
    return any(len(one.partition("|")[0].split()) == wanted and one.split()[1] in _CHANNELS for one in patterns)


def sites(scene: Scene) -> Iterator[Site]:
    """Yield the calls in the traceback of layers and functions that are in the table, outermost first."""
    calls = {call.place: call for call in scene.calls}
    for place, step in enumerate(scene.steps):
        call = calls.get(place)
        known = None if call is None else takes_of(call.module)
        if call is not None and known is not None and type(call.module).forward.__code__ is step.frame.f_code:
            given = _flat(_operands(scene, place, call.given), known[1])
            yield Site(scene, *known, call.module, given)
        if step.in_torch and step.name in FUNCTIONS and step.module is None:
            yield _function(scene, step.name, _operands(scene, place, step.given))
    for expression in expressions(scene):
        if expression.name in FUNCTIONS and not hasattr(expression.target, "__code__"):
            yield _function(scene, expression.name, expression.operands)


def _operands(scene: Scene, place: int, given: Mapping[str, Any]) -> dict[str, Operand]:
    return {name: scene.names.of_parameter(place, name, value) for name, value in given.items()}


def _function(scene: Scene, name: str, given: dict[str, Operand]) -> Site:
    takes = FUNCTIONS[name]
    for parameter, one in given.items():  # a list of numbers may stand for a tensor with one dimension
        if isinstance(one.value, list) and one.value and all(type(number) is int for number in one.value):
            given = {**given, parameter: replace(one, value=torch.tensor(one.value))}
    if name in CLASSIFY and given.get("input") is not None:
        takes = _for_classes(takes, given)
    return Site(scene, name, takes, None, given)


def _for_classes(takes: Takes, given: dict[str, Operand]) -> Takes:
    """Return what a loss over classes takes: a target without the class dimension, or class probabilities."""
    rank, target = len(given["input"].shape), given.get("target")
    if target is not None and target.shape == given["input"].shape and target.is_float:
        return Takes({"input": takes.patterns["input"]})
    if rank < 2 or rank > len(_LETTERS):
        return takes
    letters = _LETTERS[:rank]
    patterns = {"input": " ".join(letters), "target": " ".join([letters[0], *letters[2:]])}
    if given.get("weight") is not None and given["weight"].is_tensor:
        patterns["weight"] = "C"
    return replace(takes, patterns=patterns)


def _flat(given: dict[str, Operand], takes: Takes) -> dict[str, Operand]:
    """Replace an LSTM's pair of states with its parts, and a packed sequence with its data."""
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
