"""Operands of another dtype or device than the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..._format import dtype_of
from .expressions import Expression
from .failure import Finding
from .operands import Operand
from .origins import is_float
from .scene import Scene
from .sites import Site


def wrong_device(scene: Scene, site: Site | None = None) -> Finding | None:
    """Return that an operand is on another device than the layer's parameters, or than the rest."""
    operands, own = _involved(scene, site)
    module = None if site is None else site.module
    if own is not None and own.device.type == "meta" and module is not None:
        cause = f"the parameters of {scene.where(module)} are on the meta device and have no values"
        return Finding("device", cause, _materialise(scene, module), culprit=scene.paths.get(id(module)))
    known = [one for one in operands if one.device is not None and (one.shape or _on_meta(one))]
    usual = own.device if own is not None else next((one.device for one in known if not _on_meta(one)), None)
    for one in known:
        if usual is None or one.device == usual:
            continue
        owner = scene.owner(one.value)
        if owner is not None:
            cause = f"the {owner.kind} {owner.name!r} of {scene.where(owner.module)}"
            cause += f" is on {one.device}, the rest on {usual}"
            fix = _materialise(scene, owner.module) if _on_meta(one) else f"move it with .to({str(usual)!r})"
            return Finding("device", cause, fix, culprit=scene.paths.get(id(owner.module)))
        rest = "the rest is" if own is None or module is None else f"the parameters of {scene.where(module)} are"
        found = _odd(scene, one, "device", f"is on {one.device}, but {rest} on {usual}", f".to({str(usual)!r})")
        return replace(found, fix=f"make {one.name} on {usual}: on meta it has no values") if _on_meta(one) else found
    return None


def _on_meta(one: Operand) -> bool:
    return one.device is not None and one.device.type == "meta"


def _materialise(scene: Scene, module: nn.Module) -> str:
    path = scene.paths.get(id(module))
    name = path if path else type(module).__name__
    if not all(part.isidentifier() for part in name.split(".")):
        name = f'model.get_submodule("{path}")'
    reset = " and .reset_parameters()" if hasattr(type(module), "reset_parameters") else ""
    anew = f"{name}.to_empty(device=...){reset}, if they are to be trained anew"
    return f"load the weights of {path or type(module).__name__!r}; or {anew}"


def _involved(scene: Scene, site: Site | None) -> tuple[list[Operand], Tensor | None]:
    """Return the operands of a site or of the innermost expression, and the layer's first parameter."""
    if site is not None:
        own = None if site.module is None else next(iter(site.module.parameters(recurse=False)), None)
        if own is None and site.module is not None:
            own = next(iter(site.module.parameters()), None)
        return [one for one in site.operands.values() if one.is_tensor], own
    for place in reversed([*scene.last_places()]):
        operands = Expression(scene.names, place).tensors()
        if len({one.device for one in operands}) > 1:
            return operands, None
    return [], None


def wrong_dtype(site: Site) -> Finding | None:
    """Return that an operand is not of the dtype that a layer or function takes."""
    for parameter in site.takes.integers:
        one = site.operands.get(parameter)
        if one is not None and one.dtype is not None and (one.dtype.is_floating_point or one.dtype == torch.bool):
            loss = "weight" not in site.takes.patterns and site.module is None
            what = "takes class numbers" if loss else "looks up integers"
            name = f"a {site.module.__class__.__name__}" if site.module is not None else f"{site.name}()"
            name = name.replace("a E", "an E")
            odd = _odd(site.scene, one, "dtype", f"is {one.short}, but {name} {what}", ".long()")
            if _is_whole(one.value):
                return odd
            return replace(odd, fix=f"whole numbers for {one.name}: .long() would cut off what follows the point")
    found = _mask(site) or _one_hot(site)
    if found is not None:
        return found
    if torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    return _alike(site)


def _is_whole(value: object) -> bool:
    """Tell whether the numbers of a tensor are whole, as far as it is at hand."""
    try:
        return not isinstance(value, Tensor) or bool((value.detach() == value.detach().round()).all())
    except Exception:  # on meta there are none
        return True


def _mask(site: Site) -> Finding | None:
    """Return that a mask of attention is of whole numbers, as tokenizers give it."""
    attends = any("attention" in one.lower() or "Transformer" in one for one in (site.name, type(site.module).__name__))
    for parameter, one in site.operands.items() if attends else ():
        if (
            "mask" in parameter
            and one.dtype is not None
            and not one.dtype.is_floating_point
            and one.dtype != torch.bool
        ):
            leaves_out = "True leaves out" if site.module is not None else "True takes part"
            cause = (
                f"{one}, the {parameter}, is {one.short}; {site.where} takes booleans there, {leaves_out}, or floats"
            )
            keeps = f"{one.name} == 0 if 1 marks what takes part" if site.module is not None else f"{one.name}.bool()"
            return Finding("dtype", cause, keeps, (site.scene.bound(one, 0),) if one.shape else ())
    return None


def _one_hot(site: Site) -> Finding | None:
    """Return that probabilities of classes are whole numbers."""
    given, target = site.operands.get("input"), site.operands.get("target")
    if site.name != "cross_entropy" or given is None or target is None or len(given.shape) < 2:
        return None
    if target.shape != given.shape or target.dtype is None or target.dtype.is_floating_point:
        return None
    cause = (
        f"{target} has the shape of the logits, one number for each class: then they must be floats, not {target.short}"
    )
    fix = f"{target.name}.float(), or the numbers of the classes, {target.name}.argmax(1)"
    return Finding("dtype", cause, fix, (site.scene.bound(target, 0),))


def _alike(site: Site) -> Finding | None:
    """Compare the dtypes of those that must be of one, with the layer's weight."""
    scene, alike = site.scene, [site.operands[name] for name in site.takes.alike if name in site.operands]
    if site.module is not None:
        own = next((one.dtype for one in site.module.parameters(recurse=False)), None)
        own = own or next((one.dtype for one in site.module.parameters()), None)
        for one in alike:
            if own is not None and own.is_floating_point and one.dtype is not None and one.dtype != own:
                what = f"is {one.short}, but the parameters of {site.where} are {dtype_of(own)}"
                return _odd(scene, one, "dtype", what, f".to({own!s})", f"bring {site.where} and it to one dtype")
        return None
    known = [one for one in alike if one.dtype is not None]
    for one in known[1:]:
        if one.dtype != known[0].dtype:
            return _of_pair(scene, known[0], one)
    return None


def mixed_dtypes(scene: Scene) -> Finding | None:
    """Find operands of a product that are not of one dtype."""
    for place in scene.last_places():
        expression = Expression(scene.names, place)
        if expression.name not in ("matmul", "einsum", "addmm", "mm", "bmm", "baddbmm"):
            continue
        floats = [one for one in expression.tensors() if one.dtype is not None]
        for one in floats[1:]:
            if one.dtype != floats[0].dtype:
                return _of_pair(scene, floats[0], one)
    return None


def _of_pair(scene: Scene, one: Operand, other: Operand) -> Finding:
    seen = [scene.origin(each) for each in (one, other)]
    when = [-1 if origin is None else origin.when for origin in seen]
    later, rest = (one, other) if when[0] > when[1] else (other, one)
    return _odd(scene, later, "dtype", f"is {later.short}, but {rest.name} is {rest.short}", f".to({rest.dtype})")


def _odd(scene: Scene, one: Operand, kind: str, what: str, call: str, more: str = "") -> Finding:
    """Return a finding about a tensor that is not like the rest, with where it became so."""
    origin = scene.origin(one)
    kinds = [] if origin is None else [getattr(leaf, kind) for leaf in origin.row.came if is_float(leaf)]
    first = scene.history.first(lambda leaf: getattr(leaf, kind) == getattr(one, kind))
    inside = (
        first is not None
        and origin is not None
        and first.when < origin.when
        and (first.row.path.startswith(f"{origin.row.path}."))
    )
    if origin is None:
        origin = first if scene.row is not None and first is not None and first.made else None
    elif not origin.made or getattr(one, kind) in kinds or inside:  # it was only handed on there
        origin = first or origin
    owner = scene.owner(one.value)
    if owner is not None:
        cause = f"the {owner.kind} {owner.name!r} of {scene.where(owner.module)} {what}"
        return Finding(kind, cause, f"convert it with {call}", culprit=scene.paths.get(id(owner.module)))
    source = "" if origin is None else f", {origin.source(scene.history.rows)},"
    cause = f"{one.name}{source} {what}"
    fix = f"convert {one.name} with {call}" + (f", or {more}" if more else "")
    if origin is None or not origin.made:
        return Finding(kind, cause, fix)
    row = origin.row
    module = scene.modules.get(row.path)
    held = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None) if module else None
    if kind == "dtype" and held is not None and held.dtype == one.dtype:
        cause += f": {row.where} is {dtype_of(held.dtype)}"
    return Finding(kind, cause + scene.on(row.path), fix, culprit=row.path)
