"""The expression that was running when something was raised: what it calls, its operands, and its parameters in C++."""

from __future__ import annotations

import ast
from typing import Any

from torch import Tensor

from .ghosts import Ghost, shape_of
from .operands import Names, Operand
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


_ARITHMETIC = (
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or",
)  # fmt: skip
BROADCAST = {
    "mse_loss": ("input", "target"),
    "l1_loss": ("input", "target"),
    "smooth_l1_loss": ("input", "target"),
    "huber_loss": ("input", "target"),
    "kl_div": ("input", "target"),
    "soft_margin_loss": ("input", "target"),
    "gaussian_nll_loss": ("input", "target"),
    "triplet_margin_loss": ("anchor", "positive", "negative"),
    "margin_ranking_loss": ("input1", "input2", "target"),
    "pairwise_distance": ("x1", "x2"),
    "cosine_similarity": ("x1", "x2"),
    "where": ("condition", "input", "other"),
    "lerp": ("input", "end", "weight"),
    "masked_fill": ("input", "mask"),
    "masked_fill_": ("input", "mask"),
    "addcmul": ("input", "tensor1", "tensor2"),
    **dict.fromkeys(_ARITHMETIC, ("input", "other")),
    **dict.fromkeys(["add_", "sub_", "mul_", "div_"], ("input", "other")),
}
"""Functions whose arguments are broadcast against each other."""


PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "bilinear": ("input1", "input2", "weight", "bias"),
    "embedding": ("weight", "input"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "conv1d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
    "bmm": ("input", "mat2"),
    "mm": ("input", "mat2"),
    "mv": ("input", "vec"),
    "dot": ("input", "tensor"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "cdist": ("x1", "x2"),
    "one_hot": ("tensor", "num_classes"),
    "cat": ("tensors", "dim"),
    "concat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "matmul": ("input", "other"),
    "gather": ("input", "dim", "index"),
    "take_along_dim": ("input", "index", "dim"),
    "index_select": ("input", "dim", "index"),
    "scatter": ("input", "dim", "index", "src"),
    "scatter_": ("input", "dim", "index", "src"),
    "scatter_add": ("input", "dim", "index", "src"),
    "scatter_add_": ("input", "dim", "index", "src"),
    "index_add": ("input", "dim", "index", "source"),
    "index_copy": ("input", "dim", "index", "source"),
    "masked_scatter": ("input", "mask", "source"),
    "masked_scatter_": ("input", "mask", "source"),
    "masked_select": ("input", "mask"),
    **BROADCAST,
}
"""The parameters of functions that are written in C++, in their order; a method's own tensor comes first."""


EQUAL = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss"})
"""Losses whose ``input`` and ``target`` must be of one shape."""


BY_INDEX = frozenset((
    "gather", "index_select", "scatter", "scatter_", "scatter_add", "scatter_add_", "index_add", "index_copy",
    "take_along_dim",
))  # fmt: skip
"""Functions that are given an index along a dimension."""
