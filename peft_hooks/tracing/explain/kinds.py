"""Explain operands whose dtype or device differs from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..._format import dtype_of
from .failure import Finding
from .ghosts import Operand, first
from .origins import Origin, is_float
from .scene import Scene, is_autocast, with_article
from .sites import Site, expressions


def wrong_device(site: Site) -> Finding | None:
    """Find an operand on a different device than the layer's parameters or the other operands."""
    own = _parameter(site)
    if own is not None and own.device.type == "meta" and site.module is not None:
        cause = f"the parameters of {site.where} are on the meta device and have no values"
        return Finding("device", cause, _materialise(site.scene, site.module), culprit=site.path)
    return _on_another(site.scene, [one for one in site.operands.values() if one.is_tensor], own, site.where)


def mixed_devices(scene: Scene) -> Finding | None:
    """Find operands of an expression that are not on one device."""
    outwards = reversed([*expressions(scene)])  # the names in PyTorch's code tell less than its caller's
    return first(_on_another(scene, expression.tensors()) for expression in outwards)


def _on_another(
    scene: Scene, operands: Sequence[Operand], own: Tensor | None = None, where: str = ""
) -> Finding | None:
    known = [one for one in operands if one.device is not None and (one.shape or _on_meta(one))]
    usual = own.device if own is not None else next((one.device for one in known if not _on_meta(one)), None)
    one = next((one for one in known if usual is not None and one.device != usual), None)
    if one is None:
        return None
    rest = "the rest is" if own is None else f"the parameters of {where} are"
    found = _odd(scene, one, "device", f"is on {one.device}, but {rest} on {usual}", f".to({str(usual)!r})")
    owner = scene.owner(one)
    fix = f"create {one.name} on {usual}: on meta it has no values"
    fix = fix if owner is None else _materialise(scene, owner.module)
    return replace(found, fix=fix) if _on_meta(one) else found


def _on_meta(one: Operand) -> bool:
    return one.device is not None and one.device.type == "meta"


def _materialise(scene: Scene, module: nn.Module) -> str:
    path = scene.path(module)
    name = path if path else type(module).__name__
    if not all(part.isidentifier() for part in name.split(".")):
        name = f'model.get_submodule("{path}")'
    reset = " and .reset_parameters()" if hasattr(type(module), "reset_parameters") else ""
    anew = f"call {name}.to_empty(device=...){reset}, if they are to be trained from scratch"
    return f"load the weights of {path or type(module).__name__!r}; or {anew}"


def _parameter(site: Site) -> Tensor | None:
    """Return the first parameter of a layer itself, or else of a layer inside it."""
    if site.module is None:
        return None
    return next((one for deep in (False, True) for one in site.module.parameters(recurse=deep)), None)


def wrong_dtype(site: Site) -> Finding | None:
    """Find an operand whose dtype a layer or function does not take."""
    for parameter in site.takes.integers:
        one = site.operands.get(parameter)
        if one is not None and (one.is_float or one.dtype == torch.bool):
            loss = "weight" not in site.takes.patterns and site.module is None
            what = "takes class numbers" if loss else "looks up integers"
            name = f"{site.name}()" if site.module is None else with_article(type(site.module).__name__)
            odd = _odd(site.scene, one, "dtype", f"is {one.short}, but {name} {what}", ".long()")
            if _is_whole(one.value):
                return odd
            return replace(odd, fix=f"give {one.name} whole numbers: .long() would drop their fractions")
    return _mask(site) or _one_hot(site) or (None if is_autocast() else _alike(site))


def _is_whole(value: object) -> bool:
    """Tell whether the values of a tensor are whole numbers; True if they cannot be read."""
    try:
        return not isinstance(value, Tensor) or bool((value.detach() == value.detach().round()).all())
    except Exception:  # on meta there are no values
        return True


def _mask(site: Site) -> Finding | None:
    """Find an attention mask of whole numbers, as tokenizers return it."""
    attends = any("attention" in one.lower() or "Transformer" in one for one in (site.name, type(site.module).__name__))
    for parameter, one in site.operands.items() if attends else ():
        if "mask" in parameter and one.dtype not in (None, torch.bool) and not one.is_float:
            layer = site.module is not None
            what = f"booleans there (True means {'ignored' if layer else 'attended to'}) or floats"
            cause = f"{one}, the {parameter}, is {one.short}; {site.where} takes {what}"
            fix = f"use {one.name} == 0 if 1 means attended to" if layer else f"use {one.name}.bool()"
            return Finding("dtype", cause, fix, site.scene.bounds(one))
    return None


def _one_hot(site: Site) -> Finding | None:
    """Find class probabilities of an integer dtype."""
    given, target = site.operands.get("input"), site.operands.get("target")
    if site.name != "cross_entropy" or given is None or target is None or len(given.shape) < 2:
        return None
    if target.shape != given.shape or target.dtype is None or target.is_float:
        return None
    cause = f"{target} has the shape of the logits, one number for each class, so they must be floats"
    fix = f"use {target.name}.float(), or class numbers, {target.name}.argmax(1)"
    return Finding("dtype", f"{cause}, not {target.short}", fix, site.scene.bounds(target))


def _alike(site: Site) -> Finding | None:
    """Find an operand whose dtype must equal that of the layer's weight or of the other operands, and does not."""
    alike = [site.operands[name] for name in site.takes.alike if name in site.operands]
    if site.module is None:
        return _of_one_dtype(site.scene, alike)
    own = _parameter(site)
    for one in alike:
        if own is not None and own.is_floating_point() and one.dtype not in (None, own.dtype):
            what = f"is {one.short}, but the parameters of {site.where} are {dtype_of(own.dtype)}"
            more = f"convert {site.where} instead"
            return _odd(site.scene, one, "dtype", what, f".to({own.dtype!s})", more)
    return None


def _of_one_dtype(scene: Scene, operands: Sequence[Operand]) -> Finding | None:
    known = [one for one in operands if one.dtype is not None]
    other = next((one for one in known if one.dtype != known[0].dtype), None)
    return None if other is None else _of_pair(scene, known[0], other)


def _of_pair(scene: Scene, one: Operand, other: Operand) -> Finding:
    seen = [scene.origin(each) for each in (one, other)]
    when = [-1 if origin is None else origin.when for origin in seen]
    later, rest = (one, other) if when[0] > when[1] else (other, one)
    return _odd(scene, later, "dtype", f"is {later.short}, but {rest.name} is {rest.short}", f".to({rest.dtype})")


def _odd(scene: Scene, one: Operand, kind: str, what: str, call: str, more: str = "") -> Finding:
    """Return a finding about a tensor that differs from the rest, with where it came to differ."""
    owner = scene.owner(one)
    if owner is not None:
        cause = f"the {owner.kind} {owner.name!r} of {scene.where(owner.module)} {what}"
        return Finding(kind, cause, f"convert it with {call}", culprit=scene.path(owner.module))
    origin = _became(scene, one, kind)
    made = "" if one.base is None else f" made from {one.root.name},"  # only the origin of that is known
    source = "" if origin is None else f",{made} {origin.source},"
    cause = f"{one.name}{source} {what}"
    fix = f"convert {one.name} with {call}" + (f", or {more}" if more else "")
    if origin is None or not origin.made:
        return Finding(kind, cause, fix)
    module = scene.modules.get(origin.row.path)
    held = None if module is None else next((one for one in module.parameters() if one.is_floating_point()), None)
    if kind == "dtype" and held is not None and held.dtype == one.dtype:
        cause += f": {origin.row.where} is {dtype_of(held.dtype)}"
    return Finding(kind, cause + scene.on(origin.row.path), fix, culprit=origin.row.path)


def _became(scene: Scene, one: Operand, kind: str) -> Origin | None:
    """Return where a tensor got its dtype or device: where they were first seen, if it was only passed on."""
    origin = scene.origin(one)
    earliest = scene.history.first(lambda leaf: getattr(leaf, kind) == getattr(one, kind))
    if origin is None:
        return earliest if scene.row is not None and earliest is not None and earliest.made else None
    kinds = [getattr(leaf, kind) for leaf in origin.row.came if is_float(leaf)]
    handed_on = not origin.made or getattr(one, kind) in kinds
    path = f"{origin.row.path}."
    inside = earliest is not None and earliest.when < origin.when and earliest.row.path.startswith(path)
    return earliest or origin if handed_on or inside else origin
