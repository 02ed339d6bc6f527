"""Find out what was passed to what, under the names that users know: those in the outermost source."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from .ghosts import Operand, is_tensor, shape_of
from .tracebacks import CALLS, FUNCTIONS, Step
from .values import UNKNOWN

_LONGEST = 60


class Names:
    """Find out what tensors are called in the source.

    Args:
        steps: The steps of the traceback.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def of_expression(self, place: int, node: ast.AST) -> Operand:
        """Return an expression of a step as an operand."""
        value = self.steps[place].values(node)
        if isinstance(node, ast.Name):
            return self.outward(place, node.id, value, node)
        inner = _made_of(node, self.steps[place])
        base = None if inner is None else self.of_expression(place, inner)
        return Operand(text_of(node), value, base if base is not None and base.is_tensor else None, place, node)

    def made(self, place: int, node: ast.AST) -> ast.expr | None:
        """Return the expression that another is made from: a method's tensor, or the only tensor among the operands."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            step = self.steps[place]
            of_library = isinstance(step.values(node.func.value), ModuleType) and node.args  # F.relu(x)
            return _made_of(node, step) or (node.args[0] if of_library else node.func.value)
        return _made_of(node, self.steps[place])

    def made_of(self, operand: Operand) -> list[Operand]:
        """Return the named tensors in the expression of an operand, or in the expression assigned to its name."""
        root = operand.root
        step = self.steps[root.place]
        made = assigned(step, root.node.id) if isinstance(root.node, ast.Name) else root.node
        named = [] if made is None else [one for one in ast.walk(made) if isinstance(one, ast.Name)]
        return [one for one in (self.of_expression(root.place, part) for part in named) if one.is_tensor]

    def of_parameter(self, place: int, parameter: str, value: Any) -> Operand:
        """Return the argument for a parameter of a step's function, under its name in the calling code."""
        found = self.argument(place, parameter)
        if found is None:
            return Operand(parameter, value, None, place)
        before, node = found
        if isinstance(node, ast.Name):
            same = self.steps[before].values(node) is value
            return self.outward(before, node.id, value, node) if same else Operand(parameter, value, None, place)
        made = self.of_expression(before, node)
        if len(made.text) > _LONGEST or self.steps[before].in_torch:
            return Operand(parameter, value, made.base, place)
        return Operand(made.text, value, made.base, before, node)

    def outward(self, place: int, name: str, value: Any, node: ast.AST | None = None) -> Operand:
        """Follow a name to outer functions as long as it is a parameter that was merely passed on."""
        step, plain = self.steps[place], Operand(name, value, None, place, node)
        found = self.argument(place, name) if name in step.parameters else None
        if found is None or value is UNKNOWN or value is None:
            return plain
        before, outer = found
        if self.steps[before].in_torch and not step.in_torch:
            return plain  # the names in PyTorch's code tell no more
        if isinstance(outer, ast.Name):
            known = self.steps[before].values(outer)
            if known is value or _same_numbers(known, value):
                further = self.outward(before, outer.id, known, outer)
                base = further.base if further.shape == shape_of(value) else further
                return replace(further, value=value, base=base)
            return plain
        made = self.of_expression(before, outer)
        same = made.value is value or (made.is_tensor and made.shape == shape_of(value))
        if step.in_torch and same and len(made.text) <= _LONGEST:
            return Operand(made.text, value, made.base, before, outer)
        return plain

    def argument(self, place: int, parameter: str) -> tuple[int, ast.expr] | None:
        """Return the expression passed for a parameter of a step's function, and the index of the step that has it."""
        own = self.steps[place].positional
        callers = [before for before in range(place) if self.steps[before].file != CALLS]  # PyTorch's own say nothing
        for before in reversed(callers):
            node = self.steps[before].node
            if not isinstance(node, ast.Call):
                return None
            found = _argument_of(node, own, parameter)
            if found is not None:
                return before, found
            handed_on = self.steps[before].locals  # a wrapper: def wrapped(self, *args, **kwargs)
            if "kwargs" not in handed_on and "args" not in handed_on:
                return None
        return None


def _same_numbers(one: Any, other: Any) -> bool:
    """Tell whether two tensors are the same elements in different shapes, such as ``ids.view(-1, ids.size(-1))``."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.is_nested or other.is_nested:
        return False
    same = one.dtype == other.dtype and one.device == other.device and one.numel() == other.numel()
    return same and one.is_contiguous() and other.is_contiguous() and 0 != one.data_ptr() == other.data_ptr()


def _argument_of(call: ast.Call, own: list[str], parameter: str) -> ast.expr | None:
    for word in call.keywords:
        if word.arg == parameter:
            return word.value
    given = call.args
    if given and isinstance(given[0], ast.Name) and given[0].id == "self":
        given = given[1:]  # forward() was called as a plain function
    place = own.index(parameter) if parameter in own else len(given)
    if place < len(given) and not any(isinstance(one, ast.Starred) for one in given[: place + 1]):
        return given[place]
    return None


def _made_of(node: ast.AST, step: Step) -> ast.expr | None:
    """Return the expression that a method, index or attribute of a tensor is applied to."""
    inner: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if isinstance(step.values(node.func), nn.Module):
            return None
        owner = step.values(node.func.value)
        inner = node.func.value if is_tensor(owner) else next(iter(node.args), None)
        if inner is not node.func.value and not is_tensor(step.values(inner)):
            return None
    elif isinstance(node, (ast.Subscript, ast.Attribute)):
        owner = step.values(node.value)
        inner = node.value if is_tensor(owner) else None
    elif isinstance(node, (ast.Compare, ast.BinOp, ast.UnaryOp)):
        sides = [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr) and is_tensor(step.values(one))]
        inner = sides[0] if len(sides) == 1 else None
    return inner


def text_of(node: ast.AST) -> str:
    """Return the source of an expression, with double quotes."""
    return ast.unparse(node).replace("'", '"')


def assigned(step: Step, name: str) -> ast.expr | None:
    """Return what was last assigned to a name before the line that raised, in code that certainly ran."""
    found = assignment(step, name)
    return None if found is None else found[0]


def assignment(step: Step, name: str) -> tuple[ast.expr, int | None] | None:
    """Return what was last assigned to a name, and the index of the part if that was unpacked, else None.

    Only assignments in the blocks around the line count. None if another statement, such as an ``if``, follows.
    """
    statement, found = step.running[1], None
    while statement is not None:
        parent = getattr(statement, "parent", None)
        for block in ("body", "orelse", "finalbody"):
            before = getattr(parent, block, ())
            if isinstance(before, list) and statement in before:
                for one in reversed(before[: before.index(statement)]):
                    found = _assigned_by(one, name)
                    if found is not None:
                        return found or None
        if isinstance(parent, (*FUNCTIONS, ast.For, ast.While)):
            return None  # what earlier iterations of a loop did is unknown
        statement = parent
    return None


def assigns(step: Step, name: str) -> bool:
    """Tell whether the function assigns to a name anywhere; True if its source cannot be read."""
    node: Any = step.running[1]
    while node is not None and not isinstance(node, FUNCTIONS):
        node = getattr(node, "parent", None)
    return node is None or name in _stored(node)


def _assigned_by(statement: ast.stmt, name: str) -> Any:
    """Return what a statement assigns to a name, and which part; None if nothing, and False if that is unclear."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            names = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            value = statement.value
            for place, one in enumerate(names):
                if isinstance(one, ast.Name) and one.id == name:
                    if isinstance(value, ast.Tuple) and len(names) == len(value.elts) > 1:  # a, b = f(x), g(x)
                        return value.elts[place], None
                    return value, None if names == [target] else place
        return None
    if isinstance(statement, ast.With):  # its body ran
        return next((found for one in reversed(statement.body) if (found := _assigned_by(one, name)) is not None), None)
    return False if name in _stored(statement) else None


def _stored(node: ast.AST) -> set[str]:
    """Return the names that are assigned to anywhere inside a node."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


class ModuleCall(NamedTuple):
    """A call of a module in a traceback.

    Attributes:
        place: The index of the step of the module's own forward.
        module: The module.
        given: Its arguments, by parameter.
    """

    place: int
    module: nn.Module
    given: dict[str, Any]


def module_calls(steps: Sequence[Step]) -> list[ModuleCall]:
    """Return the calls of modules among the steps, outermost first, including direct calls of ``forward``."""
    found: list[ModuleCall] = []
    for place, step in enumerate(steps):
        module = step.module
        if module is None or step.file == CALLS or step.name != "forward":
            continue
        around = itertools.takewhile(lambda one: one.module is module, reversed(steps[:place]))  # noqa: B023
        given = next((one.locals for one in around if one.file == CALLS and "args" in one.locals), None)
        found.append(ModuleCall(place, module, step.given if given is None else _bound(step, given)))
    return found


def _bound(step: Step, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by parameter, as they were passed."""
    return {**dict(zip(step.positional, given["args"])), **given.get("kwargs", {})}
