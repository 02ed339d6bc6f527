"""The expression that was running when something was raised: what it calls, and its operands."""

from __future__ import annotations

import ast
from typing import Any

from torch import Tensor

from .ghosts import Ghost, shape_of
from .operands import Names, Operand
from .parameters import PARAMETERS
from .steps import Step
from .values import UNKNOWN


class Expression:
    """An expression that was running: what it calls, and its operands by parameter.

    Args:
        names: Finds out what tensors are called.
        place: The step.
    """

    def __init__(self, names: Names, place: int) -> None:
        self.names = names
        self.place = place
        self.step: Step = names.steps[place]
        self.name = ""
        self.target: Any = None
        self.operands: dict[str, Operand] = {}
        self.node = self.step.node
        self._read(self.node)

    def operand(self, node: ast.AST) -> Operand:
        return self.names.of_expression(self.place, node)

    def value(self, parameter: str) -> Any:
        return self.operands[parameter].value if parameter in self.operands else UNKNOWN

    def tensors(self) -> list[Operand]:
        """Return the operands that are tensors, those in lists, too."""
        found = []
        for one in self.operands.values():
            parts = one.value if isinstance(one.value, (list, tuple)) else ()
            found += (
                [one]
                if one.is_tensor
                else [
                    Operand(f"{one.text}[{number}]", part)
                    for number, part in enumerate(parts)
                    if shape_of(part) is not None
                ]
            )
        return found

    def _read(self, node: ast.AST | None) -> None:
        if isinstance(node, (ast.BinOp, ast.AugAssign)):
            left = node.left if isinstance(node, ast.BinOp) else node.target
            right = node.right if isinstance(node, ast.BinOp) else node.value
            self.name = "matmul" if isinstance(node.op, ast.MatMult) else "add"
            self.operands = {"input": self.operand(left), "other": self.operand(right)}
        elif isinstance(node, ast.Compare):
            self.name = "eq"
            self.operands = {"input": self.operand(node.left), "other": self.operand(node.comparators[0])}
        elif isinstance(node, ast.Subscript):
            self.name = "getitem"
            self.operands = {"input": self.operand(node.value), "index": self.operand(node.slice)}
            statement = self.step.running[1]
            if isinstance(node.ctx, ast.Store) and isinstance(statement, (ast.Assign, ast.AugAssign)):
                self.name = "setitem"
                self.operands["value"] = self.operand(statement.value)
        elif isinstance(node, ast.Call):
            self._read_call(node)

    def _read_call(self, node: ast.Call) -> None:
        owner = None
        if isinstance(node.func, ast.Attribute):
            one = self.operand(node.func.value)
            owner = one if isinstance(one.value, (Tensor, Ghost)) else None
        self.target = None if owner is not None else self.step.values(node.func)
        self.name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if owner is None and self.target is not UNKNOWN:
            self.name = getattr(self.target, "__name__", self.name)
        given = ([] if owner is None else [owner]) + [self.operand(one) for one in node.args]
        names = PARAMETERS.get(self.name, ())
        for number, one in enumerate(given):
            self.operands[names[number] if number < len(names) else f"args.{number}"] = one
        for word in node.keywords:
            if word.arg is not None:
                self.operands[word.arg] = self.operand(word.value)
