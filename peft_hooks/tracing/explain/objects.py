"""Something else where a tensor goes: None, a tuple, a str, a model's output; a key or argument that is not there."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import BuiltinFunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..leaves import identity_of
from ..records import Row
from .expressions import PARAMETERS, Expression
from .failure import Finding
from .ghosts import Ghost
from .missing import missing_key
from .operands import Operand
from .operations import parts
from .scene import Scene
from .sites import Site
from .values import UNKNOWN


def wrong_object(site: Site) -> Finding | None:
    """Return that a layer or function was given something else where it takes a tensor."""
    for parameter in site.takes.patterns:
        one = site.operands.get(parameter)
        whole = parameter.partition(".")[0]
        if one is None and whole != parameter and isinstance(getattr(site.operands.get(whole), "value", 0), Tensor):
            return _no_pair(site, site.operands[whole])
        if one is not None and one.value is not None and _is_other(one.value):
            return _other(site.scene, one, site.where)
        first = parameter in ("input", "query", "src", "weight", "target")
        if one is not None and one.value is None and first:
            return is_none(site.scene, one, site.where)
    return None


def _no_pair(site: Site, one: Operand) -> Finding:
    cause = f"{one} is a tensor, where {site.where} takes a pair of them, (h_0, c_0)"
    bounds = (site.scene.bound(one, 0),) if one.shape else ()
    return Finding(
        "object", cause, f"({one.name}, torch.zeros_like({one.name})), or none at all: then both are zeros", bounds
    )


def _is_other(value: Any) -> bool:
    foreign = isinstance(value, (str, tuple, list, Mapping)) or hasattr(type(value), "__array__")
    return foreign and not isinstance(value, (Tensor, Ghost))


def wrong_operand(scene: Scene) -> Finding | None:
    """Find that the expression that raised works on something that is no tensor."""
    step = scene.steps[-1]
    if isinstance(step.module, (nn.ModuleDict, nn.ParameterDict)) and isinstance(scene.error, KeyError):
        return missing_key(scene, Operand("", step.module), scene.error.args[0])
    asked = step.raises and step.name in ("__getattr__", "__getattribute__", "__getitem__")
    for place in [len(scene.steps) - 2] if asked and len(scene.steps) > 1 else scene.last_places():
        found = _wrong_at(scene, place)
        if found is not None:
            return found
    return None


def _wrong_at(scene: Scene, place: int) -> Finding | None:
    node = scene.steps[place].node
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        one = scene.names.of_expression(place, node.value)
        return _of_access(scene, place, node, one)
    expression = Expression(scene.names, place)
    operands = list(expression.operands.values())
    is_builtin = isinstance(expression.target, BuiltinFunctionType)
    torch_takes_it = scene.steps[place].in_torch or is_builtin or any(one.is_tensor for one in operands)
    if not isinstance(scene.error, TypeError) or not torch_takes_it:
        return None
    for one in parts(expression):
        if one.value is None:
            return is_none(scene, one, ast.unparse(node) if node is not None else "")
    for number, one in enumerate(operands):
        if one.value is None and (number == 0 or isinstance(node, ast.BinOp) or expression.name in PARAMETERS):
            return is_none(scene, one, ast.unparse(node) if node is not None else "")
        if isinstance(one.value, (str, Mapping)) or (_is_other(one.value) and expression.name == "add"):
            what = "arithmetic with a tensor" if isinstance(node, ast.BinOp) else f"{expression.name}()"
            return _other(scene, one, what)
    return None


def _of_access(scene: Scene, place: int, node: ast.Attribute | ast.Subscript, one: Operand) -> Finding | None:
    value = one.value
    if value is None:
        return is_none(scene, one, ast.unparse(node))
    if isinstance(node, ast.Subscript):
        key = scene.steps[place].values(node.slice)
        if isinstance(node.slice, ast.Tuple) and _is_other(value) and not isinstance(value, str):
            return _other(scene, one, f"`{ast.unparse(node)}`")
        if isinstance(scene.error, KeyError) and isinstance(value, (Mapping, nn.ModuleDict, nn.ParameterDict)):
            return missing_key(scene, one, scene.error.args[0] if scene.error.args else key)
        return None
    if not isinstance(scene.error, AttributeError) or value is UNKNOWN:
        return None
    if _is_other(value):
        return _other(scene, one, None, node.attr)
    kind = scene.where(value) if isinstance(value, nn.Module) else f"a {type(value).__name__}"
    return Finding("object", f"{one if one.is_tensor else one.name} is {kind}, which has no {node.attr!r}")


def is_none(scene: Scene, one: Operand, where: str) -> Finding | None:
    """Say that something is None, and who returned it or did not give it."""
    maker = scene.maker(one)
    row = _returned_none(scene, maker)
    if row is None and maker is None:
        row = _returned_none(scene, None)
    if row is not None:
        cause = f"{row.where} returned None{scene.on(row.path)}"
        return Finding("none", cause, f"look at what {row.where} returns", culprit=row.path)
    if one.node is None and not one.text.isidentifier():
        return None
    if isinstance(one.node, ast.Constant):
        return Finding("none", f"there is a None in `{where}`, where a tensor is needed")
    step = scene.steps[one.place]
    owner = "" if step.module is None else f" in {scene.where(step.module)}"
    fix = f"give it a tensor for {one.text!r}" if _is_name(one) else _asked_for(scene, one)
    if one.text == "task_ids" and scene.pipeline:
        fix = "peft_hooks.register_prompt_mask_hooks(model, task_id=0), with the number of the task"
    return Finding("none", f"{one.name} is None{owner}, where a tensor is needed", fix)


def _is_name(one: Operand) -> bool:
    return one.node is None or isinstance(one.node, ast.Name)


def _asked_for(scene: Scene, one: Operand) -> str | None:
    """Say what makes a model of transformers return what it left out."""
    name, config = one.text.rpartition(".")[2], getattr(scene.model, "config", None)
    if hasattr(config, f"output_{name}"):
        return f"call the model with output_{name}=True"
    return None


def _returned_none(scene: Scene, module: nn.Module | None) -> Row | None:
    """Return the last call that returned None: of a module, or of any."""
    for row in scene.history.ended():
        same = module is None or scene.modules.get(row.path) is module
        if same and [leaf.text for leaf in row.outputs] == ["None"]:
            return _innermost(scene, row)
    return None


def _innermost(scene: Scene, row: Row) -> Row:
    """Return the call inside that a None came from: a module mostly returns what its last part returned."""
    inside = [other for other in scene.history.rows if other.parent == row.index and other.state == "done"]
    if inside and [leaf.text for leaf in inside[-1].outputs] == ["None"]:
        return _innermost(scene, inside[-1])
    return row


def _other(scene: Scene, one: Operand, where: str | None, attribute: str = "") -> Finding:
    """Say what something is that is no tensor, and which module returned it."""
    value = one.value
    kind = type(value).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    what = f"{one.name} is {article} {kind}"
    if isinstance(value, str) and len(value) < 50:
        what += f", {value!r}"
    what += f", where {where} takes a tensor" if where else f", which has no {attribute!r}"
    row = _returned(scene, one)
    if row is None:
        return Finding("object", what, _tensor_in(one))
    outputs = [leaf.name for leaf in row.outputs if leaf.shape is not None]
    names = ", ".join(outputs[:4]) + (", ..." if len(outputs) > 4 else "")
    if isinstance(value, str):
        cause = (
            f"{what}: {row.where} returned a dict-like output of {names}, and unpacking or iterating it gives the names"
        )
        return Finding(
            "object", cause, f"read it by name, .{value} or [{value!r}], or return_dict=False", culprit=row.path
        )
    if isinstance(value, PackedSequence):
        cause, fix = (
            f"{what}: {row.where} was given packed rows, and packed they are returned",
            (f"torch.nn.utils.rnn.pad_packed_sequence({one.name}, batch_first=...)[0] before it"),
        )
        return Finding("object", cause, fix, culprit=row.path)
    cause = f"{what}: {row.where} returned {article} {kind} of {len(outputs)} tensors, {names}"
    if isinstance(value, Mapping):
        return Finding("object", cause, f"take one by name, .{outputs[0] if outputs else '...'}", culprit=row.path)
    return Finding(
        "object",
        cause,
        f"take one of them, as the first: [0] of what {row.where} returns",
        culprit=row.path,
    )


def _tensor_in(one: Operand) -> str | None:
    """Say how to come to a tensor from an object that no module of the model returned."""
    value = one.value
    if isinstance(value, str):
        return None
    if isinstance(value, Mapping):
        return f"one of its values: {', '.join(map(repr, [*value][:5]))}"
    if hasattr(type(value), "__array__"):
        return f"torch.from_numpy({one.name})" + ".float()" * (str(value.dtype) == "float64")
    flat = [*value]
    while flat and all(isinstance(part, (list, tuple)) for part in flat):
        flat = [inner for part in flat for inner in part]
    if flat and all(isinstance(part, (int, float)) for part in flat):
        return f"torch.tensor({one.name})"
    if not any(isinstance(part, Tensor) for part in flat):
        return None
    return f"one of the tensors in {one.name}, or torch.stack or torch.cat of them"


def _returned(scene: Scene, one: Operand) -> Row | None:
    """Return the call that returned an object: that the source names, or whose tensors are in it."""
    maker = scene.maker(one)
    value = one.value
    tensors: list[Any] = []
    if isinstance(value, (tuple, list, Mapping)):
        tensors = [
            part for part in (value.values() if isinstance(value, Mapping) else value) if isinstance(part, Tensor)
        ]
    for row in scene.history.ended():
        if maker is not None and scene.modules.get(row.path) is maker:
            return row
        if (
            maker is None
            and tensors
            and {identity_of(one) for one in tensors} <= {leaf.identity for leaf in row.outputs}
        ):
            return row
        if maker is None and isinstance(value, str) and value in {leaf.name for leaf in row.outputs}:
            return row
    return None
