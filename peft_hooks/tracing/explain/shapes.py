"""Causes that are about shapes: which two sizes disagree, where each comes from, what happened to the odd one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .failure import Bound, Finding
from .history import Operand, Origin
from .inputs import inputs_disagree, too_many_positions
from .messages import Clash, due, kind_of_dimension, read_clash, what_changed

if TYPE_CHECKING:
    from .rules import Scene


def because_of_shapes(scene: Scene) -> Finding | None:
    """Find the cause of a disagreement of shapes."""
    history = scene.history
    wide = _wrong_width(scene)
    if wide is not None:
        return wide
    clash = read_clash(scene.message)
    if clash is None:
        return inputs_disagree(scene, None) or _rank(scene)
    operands = history.clash(clash.sizes, clash.dimension, clash.shapes)
    if not operands:
        return None
    bounds = tuple(history.bound(operand, place) for operand, place in operands)
    virtual = _virtual_tokens(scene, clash, bounds)
    special = virtual or too_many_positions(scene, clash, bounds) or inputs_disagree(scene, clash)
    if special is not None:
        return special
    if len(operands) == 1:
        own = _made_inside(scene, clash, bounds)
        if own is not None:
            return own
    turned = history.turned()
    if turned is not None and set(clash.sizes) == set(history.batch_and_length):
        operand, place = operands[-1]
        return _odd(scene, turned, operand, place, bounds)
    fits = [_is_due(scene, operand, place) for operand, place in operands]
    if all(fits) and set(clash.sizes) != set(history.batch_and_length):
        return _brought_together(scene, operands, bounds)
    births = [(history.birth(operand, place), operand, place) for operand, place in operands]
    seen = [
        ((not fit, birth.when), birth, operand, place)
        for fit, (birth, operand, place) in zip(fits, births)
        if birth is not None
    ]
    if not seen:
        return Finding(
            "unknown", "no known cause: the sizes differ, and where they come from was not recorded", None, bounds
        )
    # The size that no weight asks for, and that was seen later, is the odd one.
    _, birth, operand, place = max(seen, key=lambda one: one[0])
    return _odd(scene, birth, operand, place, bounds)


def _is_due(scene: Scene, operand: Operand, place: int) -> bool:
    """Tell whether a size is right: the length of the texts, or the width of the module that the tensor came out of."""
    length = kind_of_dimension(place, len(operand.shape), operand.is_wide) == "length"
    if length and scene.history.batch_and_length[1:] == (operand.shape[place],):
        return True
    module = None if operand.row is None else scene.modules.get(operand.row.path)
    weight = getattr(module, "weight", None)
    last = place == len(operand.shape) - 1
    return last and isinstance(weight, Tensor) and operand.shape[-1] in weight.shape[:1]


def _brought_together(scene: Scene, operands: Sequence[tuple[Operand, int]], bounds: tuple[Bound, ...]) -> Finding:
    """Both tensors are as they should be: then the module that failed made something else of one of them."""
    row = scene.row
    words = " and ".join(str(operand) for operand, _ in operands)
    cause = f"{words} are as they should be: {row.where} itself does not keep them so"
    return Finding("length", cause + scene.on(row.path), f"look at the forward of {row.where}", bounds, row.path)


def _made_inside(scene: Scene, clash: Clash, bounds: tuple[Bound, ...]) -> Finding | None:
    """Find that one of the sizes is in nothing that the module was given, has, or got from the modules inside."""
    odd = next((size for size in clash.sizes if size != bounds[0].size), None)
    own = (*scene.module.parameters(), *scene.module.buffers())
    if odd is None or odd == 1 or any(odd in tensor.shape for tensor in own):
        return None
    row = scene.row
    cause = f"{row.where} was given no tensor with a dimension of {odd}, and has none: it made it of {bounds[0].size}"
    return Finding("length", cause + scene.on(row.path), f"look at the forward of {row.where}", bounds, row.path)


def clash_bounds(scene: Scene) -> tuple[Bound, ...]:
    """Return what the message says disagrees, and who bound it."""
    clash = read_clash(scene.message)
    if clash is None:
        return ()
    operands = scene.history.clash(clash.sizes, clash.dimension, clash.shapes)
    return tuple(scene.history.bound(operand, place) for operand, place in operands)


def _virtual_tokens(scene: Scene, clash: Clash, bounds: tuple[Bound, ...]) -> Finding | None:
    short, long = min(clash.sizes), max(clash.sizes)
    adapter = next((adapter for adapter in scene.adapters if adapter.virtual_tokens == long - short), None)
    if adapter is None:
        return None
    cause = f"{long} - {short} = {long - short} = num_virtual_tokens of {adapter}"
    for bound in bounds:
        if "mask" in bound.leaf:
            covers = "does not cover the" if bound.size == short else "covers"
            cause += f": {bound.leaf} {covers} virtual tokens" + ("" if bound.size == short else " that are not there")
            break
    if scene.pipeline:
        cure = "peft_hooks.register_prompt_mask_hooks(model)"
    else:
        cure = f"make the attention_mask {long - short} positions longer or shorter, on the left"
    return Finding("virtual tokens", cause, cure, bounds)


def _wrong_width(scene: Scene) -> Finding | None:
    """Compare what went into a Linear or a norm with what its weight takes."""
    module, leaf = scene.module, next(iter(scene.row.came), None)
    if isinstance(module, nn.Linear):
        wanted, says = module.in_features, "in_features"
    elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        wanted, says = module.normalized_shape[0], "normalized_shape"
    elif type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), Tensor):
        wanted, says = int(module.weight.shape[-1]), "the weight"  # type: ignore[index]
    else:
        return None
    if leaf is None or not leaf.shape or leaf.shape[-1] == wanted:
        return None
    history, operand = scene.history, Operand(leaf, leaf.name, None)
    weight = Bound(wanted, f"{says} of {scene.row.where}", (wanted,), 0, "", scene.row.path)
    bounds = (history.bound(operand, -1), weight)
    origin = history.origin(leaf)
    if wanted in leaf.shape[:-1]:
        why = f"its width {wanted} is dimension {leaf.shape.index(wanted)}, not the last"
        culprit = origin.event.row.path if origin is not None and origin.made else None
        cure = f"look at what {origin.event.row.where} returns" if culprit is not None and origin is not None else None
        return Finding("transposed", f"{operand} is transposed: {why}{scene.on(culprit)}", cure, bounds, culprit)
    if origin is None:
        return Finding("width", f"{operand} does not fit", None, bounds)
    what = f"is {leaf.shape[-1]} wide, but {scene.row.where} takes {wanted}"
    place = len(leaf.shape) - 1
    return _odd(scene, origin if origin.made else history.birth(operand, place) or origin, operand, place, bounds, what)


def _odd(
    scene: Scene, origin: Origin, operand: Operand, place: int, bounds: tuple[Bound, ...], what: str = ""
) -> Finding:
    """Say what happened to the tensor with the odd size where it was seen first."""
    row = origin.event.row
    module = scene.modules.get(row.path)
    if origin.made and module is not None and due(module, ()) is None:  # the others did what they must
        made = origin.leaf.shape or ()
        for other in (other for other in row.came if other.dtype == operand.leaf.dtype):
            change = what_changed(other.shape or (), made, operand.is_wide)
            if change is not None and change[0] != "rank":
                cause = f"{row.where} turned {other.name} {list(other.shape or ())} into {list(made)}: {change[1]}"
                return Finding(
                    change[0], cause + scene.on(row.path), f"look at what {row.where} returns", bounds, row.path
                )
    kind = kind_of_dimension(place, len(operand.shape), operand.is_wide)
    culprit = origin.culprit(scene.history.rows, bool(scene.on(row.path)))
    what = what or f"does not fit the rest in its {kind}"
    source = origin.source(scene.history.rows)
    if origin.leaf.shape != operand.shape:
        source = source.replace("which", f"whose {operand.shape[place]} first", 1)
    given = f"{operand}, {source}, {what}"
    return Finding(kind, given + scene.on(row.path), f"check the {kind} of {operand.label}", bounds, culprit)


def _rank(scene: Scene) -> Finding | None:
    """Errors about how many dimensions a tensor has."""
    words = (
        r"values to unpack|Dimension out of range|too many indices|number of dimensions|must be .*D|-D |expected .*dim"
    )
    if not re.search(words, scene.message):
        return None
    given = ", ".join(f"{leaf.name} {list(leaf.shape or ())}" for leaf in scene.row.came)
    return Finding("rank", f"a tensor has another number of dimensions than the code takes; given: {given or 'none'}")
