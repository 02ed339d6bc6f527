"""Explain something other than a tensor (None, a tuple, a str, a model's output), and missing keys."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from types import BuiltinFunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..leaves import identity_of, tensors_of
from ..records import Row
from .failure import Finding
from .ghosts import Ghost, Operand, many
from .operations import parts
from .origins import returned_none
from .scene import Scene, with_article
from .sites import Expression, Site
from .table import PARAMETERS
from .values import UNKNOWN

_KEYED = (nn.ModuleDict, nn.ParameterDict)


def wrong_object(site: Site) -> Finding | None:
    """Find an argument that is not a tensor where a layer or function takes one."""
    for parameter in site.takes.patterns:
        one = site.operands.get(parameter)
        pair = site.operands.get(parameter.partition(".")[0])
        if one is None and pair is not None and isinstance(pair.value, Tensor):
            cause = f"{pair} is a tensor, but {site.where} takes a pair of tensors, (h_0, c_0)"
            fix = f"pass ({pair.name}, torch.zeros_like({pair.name})), or no state: then both are zeros"
            return Finding("object", cause, fix, site.scene.bounds(pair))
        if one is not None and one.value is not None and _is_other(one.value):
            return _other(site.scene, one, f", but {site.where} takes a tensor")
        if one is not None and one.value is None and parameter in ("input", "query", "src", "weight", "target"):
            return is_none(site.scene, one, site.where)
    return None


def _is_other(value: Any) -> bool:
    foreign = isinstance(value, (str, tuple, list, Mapping)) or hasattr(type(value), "__array__")
    return foreign and not isinstance(value, (Tensor, Ghost))


def wrong_operand(scene: Scene) -> Finding | None:
    """Find an operand that is not a tensor in the expression that raised."""
    step = scene.steps[-1]
    if isinstance(step.module, _KEYED) and isinstance(scene.error, KeyError):
        return _missing_key(scene, Operand("", step.module), scene.error.args[0])
    asked = step.raises and step.name in ("__getattr__", "__getattribute__", "__getitem__")
    for place in [len(scene.steps) - 2] if asked and len(scene.steps) > 1 else scene.last_places():
        node = scene.steps[place].node
        access = isinstance(node, (ast.Attribute, ast.Subscript))
        found = _of_access(scene, place, node) if access else _of_operands(scene, Expression(scene.names, place))
        if found is not None:
            return found
    return None


def _of_operands(scene: Scene, expression: Expression) -> Finding | None:
    node, operands = expression.node, list(expression.operands.values())
    is_builtin = isinstance(expression.target, BuiltinFunctionType)
    torch_takes_it = expression.step.in_torch or is_builtin or any(one.is_tensor for one in operands)
    if not isinstance(scene.error, TypeError) or not torch_takes_it:
        return None
    binary = isinstance(node, ast.BinOp)
    needed = operands if binary or expression.name in PARAMETERS else operands[:1]
    for one in (*parts(expression), *needed):
        if one.value is None:
            return is_none(scene, one, "" if node is None else ast.unparse(node))
    for one in operands:
        if isinstance(one.value, (str, Mapping)) or (_is_other(one.value) and expression.name == "add"):
            what = "arithmetic with a tensor" if binary else f"{expression.name}()"
            return _other(scene, one, f", but {what} takes a tensor")
    return None


def _of_access(scene: Scene, place: int, node: Any) -> Finding | None:
    """Find an object that lacks the attribute or key that is read, or takes no such index."""
    one = scene.names.of_expression(place, node.value)
    value, error = one.value, scene.error
    if value is None:
        return is_none(scene, one, ast.unparse(node))
    if isinstance(node, ast.Subscript):
        if isinstance(node.slice, ast.Tuple) and _is_other(value) and not isinstance(value, str):
            return _other(scene, one, f", but `{ast.unparse(node)}` needs a tensor")
        if isinstance(error, KeyError) and isinstance(value, (Mapping, *_KEYED)):
            key = error.args[0] if error.args else scene.steps[place].values(node.slice)
            return _missing_key(scene, one, key)
        return None
    if not isinstance(error, AttributeError) or value is UNKNOWN:
        return None
    if _is_other(value):
        return _other(scene, one, f", which has no {node.attr!r}")
    kind = scene.where(value) if isinstance(value, nn.Module) else f"a {type(value).__name__}"
    return Finding("object", f"{one if one.is_tensor else one.name} is {kind}, which has no {node.attr!r}")


def is_none(scene: Scene, one: Operand, where: str) -> Finding | None:
    """Explain a None: which module returned it, or that it was not given."""
    row = _returned_none(scene, scene.maker(one))
    if row is not None:
        cause = f"{row.where} returned None{scene.on(row.path)}"
        return Finding("none", cause, f"look at what {row.where} returns", culprit=row.path)
    if one.node is None and not one.text.isidentifier():
        return None
    if isinstance(one.node, ast.Constant):
        return Finding("none", f"there is a None in `{where}`, where a tensor is needed")
    step, option = scene.steps[one.place], f"output_{one.text.rpartition('.')[2]}"
    owner = "" if step.module is None else f" in {scene.where(step.module)}"
    fix = None
    if one.text == "task_ids" and scene.transformers:
        fix = "peft_hooks.register_prompt_mask_hooks(model, task_id=0), with the number of the task"
    elif one.node is None or isinstance(one.node, ast.Name):
        fix = f"pass a tensor for {one.text!r}"
    elif hasattr(getattr(scene.model, "config", None), option):  # a transformers model left it out
        fix = f"call the model with {option}=True"
    return Finding("none", f"{one.name} is None{owner}, where a tensor is needed", fix)


def _returned_none(scene: Scene, module: nn.Module | None) -> Row | None:
    """Return the last call, of one module or of any, that returned None; the innermost of nested ones."""
    for row in scene.history.ended():
        if returned_none(row) and (module is None or scene.modules.get(row.path) is module):
            last: Row | None = row
            while last is not None and returned_none(last):
                row = last  # a module usually returns what its last part returned
                inside = [one for one in scene.history.rows if one.parent == row.index and one.state == "done"]
                last = inside[-1] if inside else None
            return row
    return None


def _other(scene: Scene, one: Operand, but: str) -> Finding:
    """Explain an object that is not a tensor, and say which module returned it."""
    value, name = one.value, one.name
    kind = with_article(type(value).__name__)
    shown = f", {value!r}" if isinstance(value, str) and len(value) < 50 else ""
    what = f"{name} is {kind}{shown}{but}"
    row = _returned(scene, one)
    if row is None:
        return Finding("object", what, _by_name(scene, one) or _tensor_in(one))
    plain = type(value) in (tuple, list) and all(isinstance(part, Tensor) for part in value)
    held = {identity_of(part) for part in value} if plain else set()
    own = [leaf.name for leaf in tensors_of(row.outputs) if leaf.identity in held]
    outputs = [leaf.name for leaf in tensors_of(row.outputs)]
    if plain and len(held) <= len(own) < len(outputs):  # only a part of its output, such as the hidden states
        cause = f"{what}: it has {many(len(value), 'tensor')} that {row.where} returned, {', '.join(own[:4])}"
        return Finding("object", cause, f"take one of them, for instance {name}[0] or {name}[-1]", culprit=row.path)
    names = ", ".join(outputs[:4]) + (", ..." if len(outputs) > 4 else "")
    cause = f"returned {kind} of {many(len(outputs), 'tensor')}, {names}"
    fix = f"take one of them, such as the first: [0] of what {row.where} returns"
    if isinstance(value, str):
        cause = f"returned a dict-like output of {names}; unpacking or iterating over it gives these names"
        fix = f"read it by name, .{value} or [{value!r}], or pass return_dict=False"
    elif isinstance(value, PackedSequence):
        cause = "was given a packed sequence and returned one"
        fix = f"pass torch.nn.utils.rnn.pad_packed_sequence({name}, batch_first=...)[0]"
    elif isinstance(value, Mapping):
        fix = f"take one by name, .{outputs[0] if outputs else '...'}"
    return Finding("object", f"{what}: {row.where} {cause}", fix, culprit=row.path)


def _by_name(scene: Scene, one: Operand) -> str | None:
    """Say to pass a mapping to the model by name, if the model takes these names; otherwise return None."""
    names = [*one.value] if isinstance(one.value, Mapping) else []
    takes = inspect.signature(scene.model.forward).parameters
    fits = bool(names) and {*names} <= {*takes}
    return f"pass **{one.text}: the model takes {' and '.join(map(repr, names))} by name" if fits else None


def _tensor_in(one: Operand) -> str | None:
    """Say how to get a tensor from an object that no module of the model returned."""
    value = one.value
    if isinstance(value, str):
        return None
    if isinstance(value, Mapping):
        return f"pass one of its values: {', '.join(map(repr, [*value][:5]))}"
    if hasattr(type(value), "__array__"):
        return f"pass torch.from_numpy({one.name})" + ".float()" * (str(value.dtype) == "float64")
    flat = [*value]
    while flat and all(isinstance(part, (list, tuple)) for part in flat):
        flat = [inner for part in flat for inner in part]
    if flat and all(isinstance(part, (int, float)) for part in flat):
        return f"pass torch.tensor({one.name})"
    has_some = any(isinstance(part, Tensor) for part in flat)
    return f"pass one of the tensors in {one.name}, or torch.stack or torch.cat them" if has_some else None


def _returned(scene: Scene, one: Operand) -> Row | None:
    """Return the call that returned an object: the one in the source, or the one that returned its tensors."""
    maker, value = scene.maker(one), one.value
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    tensors = {identity_of(part) for part in held if isinstance(part, Tensor)}
    for row in scene.history.ended():
        # A call that returned a bare tensor did not return the object, which the code made from it.
        bare = [leaf.name for leaf in tensors_of(row.outputs)] == ["output"]
        if maker is not None and scene.modules.get(row.path) is maker:
            return None if bare else row
        has_all = bool(tensors) and not bare and tensors <= {leaf.identity for leaf in row.outputs}
        named = isinstance(value, str) and value in {leaf.name for leaf in row.outputs}
        if maker is None and (has_all or named):
            return row
    return None


def _missing_key(scene: Scene, one: Operand, key: Any) -> Finding | None:
    """Say which keys there are, and which module returned the mapping that lacks one."""
    value = one.value
    if isinstance(value, _KEYED):
        keys, path = ", ".join(map(repr, value.keys())), scene.path(value)
        name = one.text if path is None else f"{type(value).__name__} {path!r}"
        cause = f"{name} has the keys {keys}, not {key!r}"
        return Finding("key", cause, f"use one of {keys}, or add {key!r} to it", culprit=path)
    maker, own = scene.maker(one), {str(name) for name in value}
    given = set() if scene.row is None else {leaf.key for leaf in scene.row.inputs}
    if maker is None and (not own or own & given):
        return missing_feature(scene, str(key))
    keys = ", ".join(sorted(map(repr, own))[:8]) or "nothing"
    made = "" if maker is None else f"; {scene.where(maker)} returned it"
    cause = f"{one.name} has the keys {keys}, but {key!r} is missing{made}"
    return Finding("key", cause, f"use one of {keys}", culprit=scene.path(maker))


def missing_feature(scene: Scene, key: str) -> Finding | None:
    """Explain a missing feature: which module returned it, or should have."""
    failing = scene.row
    if failing is None or key in {leaf.key for leaf in failing.inputs}:
        return None
    before = [row for row in reversed(scene.history.own) if row.index < failing.index]
    given = ", ".join(sorted({leaf.key for leaf in failing.inputs})) or "nothing"
    cause = f"{key!r} is missing: it is not among what {failing.where} was given ({given})"
    had = next((row for row in before if key in {leaf.key for leaf in row.outputs}), None)
    if had is not None:
        fix = f"look at what happens to {key!r} after {had.where}"
        return Finding("key", f"{cause}; {had.where} returned it", fix, culprit=had.path)
    # The previous step of a pipeline: a sibling call that ended before it and returned several features.
    beside = (row for row in before if row.parent == failing.parent and row.state == "done" and len(row.outputs) > 1)
    step = next(beside, None)
    if step is None:
        return Finding("key", cause, f"give {key!r} with the rest of the input")
    cause += f"; {step.where}, which ran before it, returned {', '.join(leaf.key for leaf in step.outputs)}"
    fix = f"make {step.where} set {key!r}, or insert a module that does between it and {failing.where}"
    return Finding("key", cause + scene.on(step.path), fix, culprit=step.path)
