"""Two operands of an expression that do not go together: which sizes, where each comes from, which is the odd one."""

from __future__ import annotations

from torch import nn

from ..leaves import Leaf
from .blame import blame, changed, is_odd, kind_of, trail
from .expressions import Expression
from .failure import Bound, Finding
from .operands import Operand
from .operations import Clash, clash_of
from .origins import Owned, is_float, is_wide
from .promises import kind_of_dimension
from .scene import Scene
from .virtual import virtual_tokens


def broken_expression(scene: Scene) -> Finding | None:
    """Find what does not go together in the expression that raised, the innermost that is known first."""
    for place in scene.last_places():
        expression = Expression(scene.names, place)
        clash = clash_of(expression)
        if clash is not None:
            return of_clash(scene, clash)
    return None


def of_clash(scene: Scene, clash: Clash) -> Finding:
    """Say what a clash is."""
    if clash.kind == "view":
        return _view(scene, clash)
    if clash.kind == "few" and clash.right is not None:
        cause = f"{clash.right} selects {clash.other} places, {clash.left} has {clash.place} numbers for them"
        fix = f"as many places in {clash.right.name} as numbers in {clash.left.name}: {clash.other} and {clash.place}"
        return Finding("index", cause, fix, (scene.bound(clash.left, 0),))
    if clash.kind == "select":
        return _select(scene, clash)
    if clash.kind == "rank":
        return _rank(scene, clash)
    left, right = clash.left, clash.right
    bounds = [scene.bound(left, clash.place)]
    if right is not None:
        bounds.append(scene.bound(right, clash.other))
    pair = (left.shape[clash.place], clash.other if right is None else right.shape[clash.other])
    special = virtual_tokens(scene, [left, *([right] if right else [])], pair, tuple(bounds))
    special = special or inputs_disagree(scene, pair) or too_short(scene, clash, tuple(bounds))
    return special or _odd_one(scene, clash, pair, tuple(bounds))


def _both(clash: Clash) -> str:
    """Say what the two sizes are of: ``"x [2, 27, 16] has 27 in dimension 1, pe [1, 20, 16] has 20"``."""
    left, right = clash.left, clash.right
    first = f"{left} has {left.shape[clash.place]} in dimension {clash.place}"
    if right is None:
        return f"{first} and {clash.rule}"
    same = "" if clash.other == clash.place else f" in dimension {clash.other}"
    return f"{first}, {right} has {right.shape[clash.other]}{same}; they {clash.rule}"


_TOGETHER = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "token_embeddings")


def inputs_disagree(scene: Scene, pair: tuple[int, int]) -> Finding | None:
    """Two features that must be of one batch and length, and are not: as given to the model, or to this call."""
    rows = [event.row for event in scene.history.events[:1]] + ([] if scene.row is None else [scene.row])
    for row in rows:
        known = [leaf for leaf in row.came if leaf.key in _TOGETHER and len(leaf.shape or ()) > 1]
        for number, other in enumerate(known):
            for one in known[:number]:
                for place, (a, b) in enumerate(zip((one.shape or ())[:2], (other.shape or ())[:2])):
                    if {a, b} == set(pair) and a != b:
                        return _not_of_one(scene, row.where, (one, other), place)
    return None


def _not_of_one(scene: Scene, where: str, pair: tuple[Leaf, Leaf], place: int) -> Finding:
    kind = kind_of_dimension(place, 3)
    words = " and ".join(f"{leaf.name} {list(leaf.shape or ())}" for leaf in pair)
    origins = [scene.history.origin(leaf) for leaf in pair]
    bounds = tuple(
        Bound(
            (leaf.shape or ())[place],
            leaf.name,
            leaf.shape or (),
            place,
            "" if origin is None else origin.source(scene.history.rows),
            origin.row.path if origin is not None and origin.made else None,
        )
        for leaf, origin in zip(pair, origins)
    )
    births = [scene.history.birth(leaf.shape or (), place, is_float(leaf), is_wide(leaf)) for leaf in pair]
    odd = max((birth for birth in births if birth), key=lambda birth: birth.when, default=None)
    made = odd.row.path if odd is not None and odd.made else None
    fix = f"give the model tensors of one {kind}" if made is None else f"look at what {made!r} returns"
    cause = f"{where} was given {words}, which are not of one {kind}"
    return Finding(kind, cause + scene.on(made), fix, bounds, made)


def too_short(scene: Scene, clash: Clash, bounds: tuple[Bound, ...]) -> Finding | None:
    """A parameter or buffer that is too short for the rest."""
    sides = [(clash.left, clash.place, clash.right, clash.other)]
    if clash.right is not None:
        sides.append((clash.right, clash.other, clash.left, clash.place))
    for one, place, other, elsewhere in sides:
        owner = scene.owner_of(one, one.shape[place])
        rest = None if other is None else scene.owner(other.value) or scene.owner(other.root.value)
        if owner is not None and rest is None:
            wanted = elsewhere if other is None else other.shape[elsewhere]
            return _of_owner(scene, owner, one, place, wanted, bounds, other)
    return None


def _of_owner(
    scene: Scene, owner: Owned, one: Operand, place: int, wanted: int, bounds: tuple[Bound, ...], other: Operand | None
) -> Finding:
    size = one.shape[place]
    path = scene.paths.get(id(owner.module))
    where = f"the {owner.kind} {owner.name!r} {list(owner.tensor.shape)} of {scene.where(owner.module)}"
    same = one.text.rpartition(".")[2] == owner.name and one.shape == tuple(owner.tensor.shape)
    made = "" if one.text == f"self.{owner.name}" else f", of which {one.name} {list(one.shape)} is made,"
    named = "" if same else made
    what = "" if other is None else f" {other.name} {list(other.shape)}"
    length = _length_of(scene)
    if (wanted > size and wanted == length and place < max(len(one.shape) - 1, 1)) or (
        wanted == length and size < wanted
    ):
        left, more = size - _offset(owner, size), ""
        start = f": they begin at {size - left}, so that {left} are left for tokens" if left < size else ""
        for adapter in scene.adapters:
            left, more = (
                left - adapter.virtual_tokens,
                f", {adapter.virtual_tokens} of them virtual tokens of {adapter}",
            )
        cause = f"{where}{named} has {size} positions, the text has {wanted}{more}: it is too long{start}"
        fix = f"model.max_seq_length = {left}" if scene.pipeline else f"truncate the text to at most {left} tokens"
        return Finding("length", cause, f"{fix}, or make {owner.name!r} longer", bounds)
    asked = f"where{what} has {wanted}" if other else f"but {wanted} are asked for"
    cause = f"{where}{named} has {size} in dimension {place}, {asked}"
    fix = f"{one.name} expanded to {wanted} there" if size == 1 else f"make {owner.name!r} with {wanted} there"
    if other is not None and _is_product(scene):
        layer = f"with a Linear({wanted}, {size}) for instance"
        fix = f"project {other.name} from {wanted} to {size} first, {layer}, or {fix}"
    origin = None if other is None else scene.origin(other)
    culprit = origin.row.path if origin is not None and origin.made else path
    if other is not None:
        birth = scene.birth(other, [*other.shape].index(wanted))
        birth = trail(scene, other, [*other.shape].index(wanted), size) or birth
        if birth is not None and birth.made:
            culprit, words = birth.row.path, changed(scene, birth, other)
            cause += f"; {words}" if words else ""
    return Finding(kind_of_dimension(place, len(one.shape), True), cause + scene.on(culprit), fix, bounds, culprit)


def _offset(owner: Owned, size: int) -> int:
    """Return where positions begin: a table of as many rows with a row for padding has them behind it."""
    for module in owner.module.children():
        if isinstance(module, nn.Embedding) and module.num_embeddings == size and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _is_product(scene: Scene) -> bool:
    return Expression(scene.names, [*scene.last_places()][-1]).name in (
        "matmul",
        "mm",
        "addmm",
        "bmm",
        "linear",
        "einsum",
    )


def _length_of(scene: Scene) -> int | None:
    """Return how long the text is that the forward was called with."""
    for leaf in scene.history.given:
        if leaf.shape is not None and len(leaf.shape) > 1:
            return leaf.shape[1]
    return None


def _view(scene: Scene, clash: Clash) -> Finding:
    """A view whose sizes do not multiply to the numbers that there are."""
    one = clash.left
    origin = scene.origin(one)
    culprit = None
    for place in range(len(one.shape)):
        birth = scene.birth(one, place)
        if birth is not None and birth.made and changed(scene, birth, one):
            origin, culprit = birth, birth.row.path
            break
    source = "" if origin is None else f"; {changed(scene, origin, one)}" if culprit else ""
    bounds = (scene.bound(one, 0),) if one.shape else ()
    cause = f"{one.name} {list(one.shape)} {clash.rule}{source}"
    return Finding("view", cause + scene.on(culprit), "ask for sizes that multiply to as many", bounds, culprit)


def _select(scene: Scene, clash: Clash) -> Finding:
    values, mask = clash.left, clash.right
    assert mask is not None
    count, rows = clash.other, values.shape[0]
    cause = f"{mask.name} {list(mask.shape)} selects {count} places, but there are {rows} rows of values in {values}"
    fix = f"as many places in {mask.name} as rows of values: {count} and {rows} must be the same number"
    return Finding("index", cause, fix, (scene.bound(values, 0),))


def _rank(scene: Scene, clash: Clash) -> Finding:
    cause = f"{clash.left} has {clash.place} dimensions"
    if clash.right is not None:
        cause += f", {clash.right} has {clash.other}: they {clash.rule}"
    else:
        cause += f": {clash.rule}, {clash.other}"
    return Finding("rank", cause, f"give {clash.left.name} {clash.other} dimensions", (scene.bound(clash.left, 0),))


def _odd_one(scene: Scene, clash: Clash, pair: tuple[int, int], bounds: tuple[Bound, ...]) -> Finding:
    """Say which of two sides is the odd one, if the trace tells."""
    sides = [(clash.left, clash.place)] + ([] if clash.right is None else [(clash.right, clash.other)])
    found = blame(scene, sides, pair)
    cause = _both(clash) + (f"; {found.words}" if found.words else "")
    fix = f"look at what {found.where} returns" if is_odd(scene, found) else _fix(clash)
    kind = found.kind or _kind(clash)
    return Finding(kind, cause + scene.on(found.path), fix, bounds, found.path)


def _kind(clash: Clash) -> str:
    return kind_of(clash.left, clash.place)


def _fix(clash: Clash) -> str | None:
    if clash.right is None:
        return f"give {clash.left.name} {clash.other} in dimension {clash.place}"
    left, right = clash.left, clash.right
    last = len(right.shape) - 1
    if clash.rule.endswith("multiplied") and last > 0 and right.shape[last] == left.shape[-1]:
        return f"{right.name}.transpose({last - 1}, {last}): then they can be multiplied"
    return (
        f"bring {left.name} and {right.name} to one size there, {left.shape[clash.place]} or {right.shape[clash.other]}"
    )
