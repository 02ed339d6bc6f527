"""Indices out of range: what they are, how many rows there are, which is the first bad one, and whose they are."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...compat import sentence_transformers as releases
from .failure import Bound, Finding
from .ghosts import shape_of
from .operands import Operand
from .scene import Scene
from .sites import Site
from .steps import CALLS

IGNORED = -100  # what PyTorch's losses leave out among labels


class Range(NamedTuple):
    """The indices in a tensor.

    Attributes:
        low: The smallest.
        high: The largest.
        bad: The first that is out of range.
        at: Where that is.
        start: Where the rows begin, if each counts upwards by one; None if they do not.
    """

    low: int
    high: int
    bad: int
    at: tuple[int, ...]
    start: int | None


def out_of_range(site: Site) -> Finding | None:
    """Return that indices which a layer or function was given are beyond what it has."""
    for parameter, counted in site.takes.indices.items():
        operand = site.operands.get(parameter)
        rows = _rows(site, counted)
        if operand is None or rows is None:
            continue
        ignored = site.operands.get("ignore_index")
        spared = () if ignored is None or site.module is not None else (ignored.value,)
        found = read(operand.value, rows, 0, spared)
        if found is None:
            continue
        if site.name in ("cross_entropy", "nll_loss", "multi_margin_loss", "ctc_loss"):
            return _labels(site, operand, found, rows)
        return _lookup(site, operand, found, rows)
    return None


def _rows(site: Site, counted: str) -> int | None:
    for parameter, pattern in site.takes.patterns.items():
        words = pattern.partition("|")[0].split()
        shape = site.shapes.get(parameter)
        if counted in words and shape is not None and len(shape) == len(words):
            return shape[words.index(counted)]
    rows = site.number(counted)
    return rows if isinstance(rows, int) and rows > 0 else None


def read(indices: Any, rows: int, lowest: int, spared: tuple[Any, ...] = ()) -> Range | None:
    """Return what indices are, if one is below ``lowest`` or not below ``rows``."""
    if not isinstance(indices, Tensor) or indices.is_floating_point() or not shape_of(indices):
        return None
    try:
        values = indices.detach().cpu()
        bad = (values < lowest) | (values >= rows)
        for one in spared:
            bad &= values != one
        if not bool(bad.any()):
            return None
        at = tuple(bad.nonzero()[0].tolist())
        steps = values.diff(dim=-1)
        start = int(values.min()) if steps.numel() and bool((steps == 1).all()) else None
        return Range(int(values.min()), int(values.max()), int(values[at]), at, start)
    except Exception:  # after an assert on a GPU nothing can be read any more
        return None


def at(operand: Operand, found: Range) -> str:
    """Say which index is the first that is wrong, and where."""
    name = operand.text if operand.text.isidentifier() else "it"
    return f"{found.bad} (the first, at {name}[{', '.join(map(str, found.at))}])"


def _labels(site: Site, operand: Operand, found: Range, classes: int) -> Finding:
    """Labels beyond the classes of a loss."""
    name, logits = operand.text, site.operands.get("input") or site.operands.get("log_probs")
    bounds = [] if logits is None or not logits.shape else [site.scene.bound(logits, 1 if len(logits.shape) > 1 else 0)]
    cause = (
        f"the labels, {name}, go from {found.low} to {found.high}; there are {classes} classes, 0 to {classes - 1}:"
        f" {at(operand, found)} is out of range"
    )
    if found.bad < 0:
        return Finding("index", cause, f"labels from 0 to {classes - 1}, or ignore_index={found.bad}", tuple(bounds))
    known = logits is None or site.scene.origin(logits) is not None or site.scene.maker(logits) is not None
    more = "give the model" if known or logits is None else f"give {logits.name}"
    fix = f"correct the labels, {name}, or {more} {found.high + 1} classes"
    return Finding("index", cause, fix, tuple(bounds))


def _lookup(site: Site, operand: Operand, found: Range, rows: int) -> Finding:
    """Indices beyond the rows of a table."""
    table = site.module or _table(site)
    where = site.where if table is None else site.scene.where(table)
    name, shape = operand.text, list(operand.shape)
    counted = "num_classes" if site.name == "one_hot" else "num_embeddings"
    bound = Bound(rows, f"{counted} of {where}", (), 0, "", None if table is None else site.path)
    noun = "class" + "es" * (rows != 1) if site.name == "one_hot" else "row" + "s" * (rows != 1)
    cause = f"{name} {shape} goes from {found.low} to {found.high}, {where} has {rows} {noun}"
    if found.bad == IGNORED:
        cause += f": {at(operand, found)} is what losses ignore in labels, no index"
        return Finding("index", cause, _of_ignored(site.scene, operand), (bound,))
    if found.bad < 0:
        return Finding("index", f"{cause}: {at(operand, found)} is negative", f"no negative number in {name}", (bound,))
    if found.start is not None and shape[-1:] and found.high - found.start + 1 == shape[-1]:
        return positions(site.scene, operand, found, rows, where)
    cause += f", 0 to {rows - 1}: {at(operand, found)} is out of range"
    return Finding("index", cause, _of_rows(site, operand, found, rows, table), (bound,))


def _table(site: Site) -> nn.Module | None:
    weight = site.operands.get("weight")
    owner = None if weight is None else site.scene.owner(weight.value)
    return None if owner is None else owner.module


def _of_ignored(scene: Scene, operand: Operand) -> str:
    name = operand.text
    if _is_optional(scene, operand) and "labels" in {leaf.key for leaf in scene.history.given}:
        makes = hasattr(scene.model, "prepare_decoder_input_ids_from_labels")
        if makes:
            return (
                f"leave {name} out: {type(scene.model).__name__} makes it from labels; or put the pad token's id there"
            )
    return f"replace {IGNORED} in {name} by the pad token's id"


def _of_rows(site: Site, operand: Operand, found: Range, rows: int, table: nn.Module | None) -> str:
    """Return what helps against indices beyond a table."""
    scene, name = site.scene, operand.text
    counted = "num_classes" if site.name == "one_hot" else "num_embeddings"
    known = _vocabulary(scene)
    if known is not None and known[0] > rows and found.high < known[0] and _is_vocabulary(scene, table):
        return f"{known[1]}.resize_token_embeddings({known[0]}): the tokenizer has {known[0]} tokens, {rows} have a row"
    if rows == 1 and _is_optional(scene, operand):
        return f"leave {name} out, or give zeros only"
    if _is_optional(scene, operand) and not _is_vocabulary(scene, table):
        return f"give {name} from 0 to {rows - 1}, or leave it out"
    if _is_vocabulary(scene, table):
        return (
            f"if tokens were added, resize_token_embeddings(len(tokenizer)); else a tokenizer of {rows} tokens at most"
        )
    return f"{name} from 0 to {rows - 1}, or {counted}={found.high + 1} in {site.where}"


def _vocabulary(scene: Scene) -> tuple[int, str] | None:
    """Return how many tokens the pipeline's tokenizer has, and how the backbone is called."""
    transformers = releases.transformers_of(scene.model) if scene.pipeline else []
    for transformer in transformers:
        tokenizer = getattr(transformer[1] if isinstance(transformer, tuple) else transformer, "tokenizer", None)
        try:
            return len(tokenizer), "model[0].auto_model"  # type: ignore[arg-type]
        except TypeError:
            continue
    return None


def _is_vocabulary(scene: Scene, table: nn.Module | None) -> bool:
    """Tell whether a table is what a model of transformers looks its tokens up in."""
    for module in scene.modules.values():
        ask = getattr(type(module), "get_input_embeddings", None)
        if ask is None or table is None:
            continue
        try:
            if ask(module) is table:
                return True
        except Exception:  # not every model has one
            continue
    return False


def _is_optional(scene: Scene, operand: Operand) -> bool:
    """Tell whether an operand is an argument of the model's forward that can be left out."""
    name = operand.text
    if not name.isidentifier() or scene.steps[operand.place].module is not scene.model:
        return False
    for step in scene.steps:  # where nothing traced it, these begin outside the model
        if step.file == CALLS or step.name == "forward":
            break
        if step.module is scene.model:
            return False
    frame = scene.steps[0].frame.f_back
    while frame is not None:  # the model's own generate() makes such arguments
        if frame.f_locals.get("self") is scene.model and frame.f_code.co_filename != CALLS:
            return False
        frame = frame.f_back
    try:
        parameter = inspect.signature(scene.model.forward).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is None


def positions(scene: Scene, operand: Operand, found: Range, rows: int, where: str) -> Finding:
    """Positions that count beyond their table."""
    start = found.start or 0
    length, left = found.high - start + 1, rows - start
    adapter = next(iter(scene.adapters), None)
    more = f", {adapter.virtual_tokens} of them virtual tokens of {adapter}" if adapter else ""
    left -= adapter.virtual_tokens if adapter else 0
    offset = f": they begin at {start}, so that {rows - start} are left for tokens" if start else ""
    cause = f"{length} positions{more}, but {where} has {rows}{offset}"
    fix = f"model.max_seq_length = {left}" if scene.pipeline else f"truncate the texts to {left} tokens"
    if _is_optional(scene, operand) and operand.text in {leaf.key for leaf in scene.history.given}:
        fix = f"give {operand.text} from 0 to {rows - 1}, or leave it out"  # they were chosen, not counted
    bounds = (scene.bound(operand, len(operand.shape) - 1), Bound(rows, f"the positions of {where}", (), 0, "", None))
    return Finding("length", cause, fix, bounds)
