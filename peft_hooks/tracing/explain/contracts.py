"""Explain an argument that a layer, loss or function does not take: its name, dimension, and what sets the size."""

from __future__ import annotations

import ast

from .batches import of_two_batches, without_batch
from .clashes import inputs_disagree
from .failure import Bound, Finding
from .ghosts import Operand, many
from .labels import labels_of_other_rows
from .operands import assigned
from .patterns import Mismatch, Repair, check, repairs
from .promises import Blame, blame, is_odd
from .scene import Scene
from .sites import Site, has_channels_first
from .texts import virtual_tokens


def broken_contract(site: Site) -> Finding | None:
    """Find an argument whose shape is not what the table says, and what would fit."""
    found = check(site, site.shapes)
    if found is None:
        return None
    operand = site.operands[found.parameter]
    fitting = [one for one in repairs(site, found) if _likely(site, found, one)]
    if found.dimension is None:
        return labels_of_other_rows(site, found) or _rank(site, found, operand, fitting)
    bounds = (site.scene.bound(operand, found.dimension), _other(site, found), *_parts(site.scene, operand))
    if found.fixed.dimension is not None:
        other = site.operands[found.fixed.name]
        special = virtual_tokens(site.scene, [operand, other], (found.size, found.wanted[0]), bounds)
        special = special or labels_of_other_rows(site, found)
        special = special or inputs_disagree(site.scene, (found.size, found.wanted[0]))
        if special is not None:
            return special
    first = fitting[0] if fitting else None
    cause, scene = _cause(site, found, operand), site.scene
    of_layer = found.fixed.dimension is None
    guilty = _blame(site, found, operand) if first is None or of_layer else Blame()
    if guilty.words:
        cause = f"{cause}; {guilty.words}{scene.on(guilty.path)}"
        fix = f"look at what {guilty.where} returns" if is_odd(scene, guilty) else _without_repair(site, found, operand)
        return Finding(guilty.kind or _kind(found), cause, fix, bounds, guilty.path)
    if first is None:
        special = without_batch(site, found, operand, cause, bounds) or of_two_batches(
            site, found, operand, cause, bounds
        )
        if special is not None:
            return special
        culprit = _culprit(scene, operand, found.dimension) if of_layer else guilty.path
        return Finding(_kind(found), cause + scene.on(culprit), _without_repair(site, found, operand), bounds, culprit)
    if first.kind == "batch_first":
        words, fix = _batch_first(site)
        return Finding("transposed", f"{cause}; {words}", fix, bounds, site.path)
    culprit = _culprit(scene, operand, found.dimension)
    if first.kind == "turn":
        words, fix = _turn(site, found, first)
        return Finding("transposed", f"{cause}; {words}{scene.on(culprit)}", fix, bounds, culprit)
    return Finding(_kind(found), cause, _fix_of(site, first, found.wanted[0]), bounds, culprit)


def _parts(scene: Scene, operand: Operand) -> list[Bound]:
    """Return the sizes of the tensors that an operand was joined from, in the dimension in which they were joined."""
    node, place = operand.node, operand.place
    node = assigned(scene.steps[place], node.id) or node if isinstance(node, ast.Name) else node
    given = node.args[0] if isinstance(node, ast.Call) and node.args else None
    if not isinstance(given, (ast.List, ast.Tuple)) or not operand.is_tensor:
        return []
    joined = [scene.names.of_expression(place, one) for one in given.elts]
    if not all(len(one.shape) == len(operand.shape) for one in joined):
        return []
    along = [at for at, size in enumerate(operand.shape) if any(one.shape[at] != size for one in joined)]
    return [scene.bound(one, along[0]) for one in joined] if along else []


def _blame(site: Site, found: Mismatch, operand: Operand) -> Blame:
    sides, pair = [(operand, found.dimension or 0)], [found.size, found.wanted[0]]
    if found.fixed.dimension is not None:
        sides.append((site.operands[found.fixed.name], found.fixed.dimension))
    return blame(site.scene, sides, pair)


def _kind(found: Mismatch) -> str:
    if found.meaning == "batch":
        return "batch"
    return "length" if found.meaning.startswith("length") else "width"


def _likely(site: Site, found: Mismatch, repair: Repair) -> bool:
    """Tell whether to propose a change that makes the sizes fit.

    Swapping batch and length is proposed only if the batch is then that of the forward: not if it already is, or if the
    forward's batch is unknown.
    """
    batch = site.scene.history.batch_and_length[:1]
    main = next((name for name in site.takes.patterns if name in site.shapes), None)
    if repair.kind == "batch_first" and main is not None:
        return not batch or site.shapes[main][0] == batch[0]
    if repair.kind == "turn":
        return _likely_turn(site, found, repair, batch)
    first = bool(site.takes.batch_first) and site.number(site.takes.batch_first) is False  # the length comes first
    if repair.kind == "unsqueeze" and repair.dimensions == (0,) and not first:
        # What has the forward's rows does not lack its batch.
        return site.shapes[repair.parameters[0]][:1] != batch
    return True


def _likely_turn(site: Site, found: Mismatch, repair: Repair, batch: tuple[int, ...]) -> bool:
    parameter = repair.parameters[0]
    pattern, operand = site.takes.patterns[parameter], site.operands[parameter]
    if site.name == "scaled_dot_product_attention":  # swaps heads and length
        return repair.dimensions == (1, 2)
    if found.fixed.dimension is None and not pattern.startswith("..."):
        last = len(operand.shape) - 1
        of_channels = last > 1 and found.dimension == 1 and parameter == found.parameter
        places = [(1, last), (1, 2)] if last > 3 else [(1, last)]  # in videos, the frames may come first
        unique = operand.shape.count(found.wanted[0]) == 1
        if of_channels and (repair.dimensions not in places or not unique or has_channels_first(site.scene, operand)):
            return False  # height or width may have this size, too
    letters = "(" in pattern or ("mask" in parameter and not pattern.startswith("N "))
    rows = pattern.startswith("N ") and 0 in repair.dimensions
    return (not letters or 2 in repair.dimensions) and not (rows and (not batch or operand.shape[:1] == batch))


def _cause(site: Site, found: Mismatch, operand: Operand) -> str:
    """Say what does not fit: ``"x [4, 11, 16] has 11 in dimension 1, but Conv1d 'conv' takes 16 there"``."""
    wanted, place = found.wanted[0], found.dimension or 0
    if found.fixed.dimension is None:
        short = _short(found)
        attribute = f"its {short}" if site.module is not None and "*" not in short else short
        if place == len(operand.shape) - 1:
            origin = site.scene.origin(operand)
            source = "" if origin is None else f", {origin.source},"
            return f"{operand}{source} is {found.size} wide, but {site.where} takes {wanted} ({attribute})"
        return f"{operand} has {found.size} in dimension {place}, but {site.where} takes {wanted} there ({attribute})"
    other = site.operands[found.fixed.name]
    meaning = f" (the {found.meaning})" if found.meaning else ""
    said = "" if operand.text == found.parameter else f"{found.parameter} "
    given = "" if other.text == found.fixed.name else f"{found.fixed.name} "
    return (
        f"{site.where} needs {wanted} in dimension {place}{meaning} of {said}{operand}, not {found.size}:"
        f" {given}{other} has {wanted} in dimension {found.fixed.dimension}"
    )


def _short(found: Mismatch) -> str:
    """Return the name of a layer's attribute, with the path of an inner layer, or the product that sets the size."""
    name = found.fixed.name
    return "num_layers * directions" if name == "layers" else name


def _other(site: Site, found: Mismatch) -> Bound:
    """Return what sets the size."""
    if found.fixed.dimension is None:
        path = site.path
        owner = site.where if site.module is not None else f"an argument of {site.where}"
        return Bound(found.wanted[0], f"{_short(found)} of {owner}", (), 0, "", path)
    return site.scene.bound(site.operands[found.fixed.name], found.fixed.dimension)


def _culprit(scene: Scene, operand: Operand, place: int) -> str | None:
    origin = scene.origin(operand)
    return scene.culprit(origin if origin is not None and origin.made else scene.birth(operand, place) or origin)


def _batch_first(site: Site) -> tuple[str, str]:
    main = site.operands[next(name for name in site.takes.patterns if name in site.shapes)]
    takes = f"{site.where} takes dimension 1 of {main.name} (the {main.shape[1]}) for the batch"
    words = f"without batch_first=True, {takes}, which is in dimension 0"
    return words, f"set batch_first=True in {site.where}: then everything fits"


def _turn(site: Site, found: Mismatch, repair: Repair) -> tuple[str, str]:
    one, other = repair.dimensions
    operand, place = site.operands[repair.parameters[0]], found.dimension or 0
    away, name = other if place == one else one, operand.name
    rank, of_layer = len(operand.shape), found.fixed.dimension is None
    more = [site.operands[one].name for one in repair.parameters if site.operands[one].name != name]
    words = f"{name} has {found.wanted[0]} in dimension {away}: with the two transposed, everything fits"
    call = f"{name}.transpose({one}, {other})"
    if rank > 3 and of_layer:  # of images: height and width keep their order
        order = [number for number in range(rank) if number != away]
        order.insert(place, away)
        call = f"{name}.permute({', '.join(map(str, order))})"
    call += "".join(f" and {each}.transpose({one}, {other})" for each in more)
    of_one = of_layer and rank > 2 and not more
    back = ", and back again after it if what follows expects the present order" if of_one else ""
    norm = "; or use a LayerNorm, which takes its features last" if site.name == "BatchNorm1d" else ""
    return words, f"use {call} before {site.where}{back}{norm}"


def _fix_of(site: Site, repair: Repair, wanted: int) -> str:
    name, place = site.operands[repair.parameters[0]].name, next(iter(repair.dimensions), 0)
    call = f"use {name}.{repair.kind}({', '.join(map(str, repair.dimensions))})"
    if repair.kind == "mask":
        call = f"use {name}[:, None, None, :]"
    elif repair.kind == "repeat":
        call = f"repeat or expand {name} to {wanted} in dimension {place}"
    return f"{call}: then everything fits"


def _without_repair(site: Site, found: Mismatch, operand: Operand) -> str | None:
    """Say what to do where no change makes the sizes fit; only what was compared with the actual sizes is proposed."""
    wanted, place, fixed = found.wanted[0], found.dimension or 0, found.fixed
    owner, name = site.scene.owner(operand.root), operand.name
    if owner is not None:
        return f"create {owner.name!r} of {site.scene.where(owner.module)} with {wanted} in dimension {place}"
    if fixed.dimension is not None:
        other = site.operands[fixed.name].name
        if found.meaning == "batch" and site.module is None and not site.scene.history.given:
            return f"give both the same number of rows: {other} has {wanted}, {name} {found.size}"
        return f"give {name} a size of {wanted} in dimension {place}, as {other} has in dimension {fixed.dimension}"
    if fixed.name == "layers":
        cut = (
            ", with its directions or layers summed or cut"
            if found.size > wanted
            else ", one for each layer and direction"
        )
        takes = f"set num_layers or bidirectional of {site.where} so that it takes {found.size}"
        return f"give {name} a size of {wanted} in dimension {place}{cut}; or {takes}"
    if fixed.name in ("in_features", "in_channels", "num_features", "embed_dim", "input_size"):
        linear = ", for instance with a Linear" if place == len(operand.shape) - 1 else f" in dimension {place}"
        bring = f"project {name} from {found.size} to {wanted} first{linear}"
        return f"set {fixed.name}={found.size} in {site.where}, or {bring}"
    return f"change {name} from {found.size} to {wanted} in dimension {place} before {site.where}"


def _rank(site: Site, found: Mismatch, operand: Operand, fitting: list[Repair]) -> Finding:
    """Explain an argument that has too many or too few dimensions."""
    wanted, scene = " or ".join(map(str, found.wanted)), site.scene
    own = bool(fitting) and found.parameter in fitting[0].parameters
    no_batch = own and (fitting[0].kind, fitting[0].dimensions) == ("unsqueeze", (0,))
    cause = f"{operand} has {many(found.size)}, but {site.where} takes {wanted}, {found.pattern}"
    cause += ": the batch dimension is missing" * no_batch
    fix = f"give {operand.name} {wanted} dimension{'s' * (found.wanted != (1,))}, {found.pattern}"
    fix = _fix_of(site, fitting[0], found.wanted[0]) if fitting else fix
    origin = scene.origin(operand)
    culprit = None if origin is None else origin.maker
    return Finding("rank", cause + scene.on(culprit), fix, scene.bounds(operand), culprit)
