"""One examination of a model: every check of ``diagnose``, with the hooks as they are at that moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..compat import sentence_transformers as releases
from ..prompts.handle import options_on
from ..tracing.session import trace_shapes
from .blame import blamed
from .checks import check_adapters, check_hooks, check_positions, paths_to_count, room_for_text
from .diagnosis import Run
from .findings import LOOK, PAD_RIGHT, Finding, Seen, check_seen, text_rows_moved
from .invariance import check_padding_invariance, encoder
from .ribbon import Kind, Row
from .watch import counting, hooked_paths, padded, seen_in, tokenizers_of, watching

LONGEST_TRIED = 1024  # tokens; a longer forward takes too long on a CPU


@dataclass(frozen=True)
class Examination:
    """The result of every check, with the hooks as they were.

    Attributes:
        findings: What is wrong.
        runs: The results of encoding alone and in batches; the first run pads as the model's tokenizer does.
        tolerance: The largest difference of any component that counts as the same.
        seen: What each Transformer passed on to the module after it, in one batch of all texts.
    """

    findings: tuple[Finding, ...]
    runs: tuple[Run, ...]
    tolerance: float
    seen: tuple[Seen, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """What is at each position of the batch and what Pooling counted; empty if that was not measured."""
        return rows_of(self.seen)

    @property
    def stopped(self) -> bool:
        """Whether the forward raised, so that the remaining checks could not run."""
        return any(run.own and run.error is not None for run in self.runs)


def examine(model: nn.Module, texts: Sequence[str], tolerance: float | None) -> Examination:
    """Run every check on the model as it is now; for a Router, on each route."""
    routes = [{"task": route} for route in releases.routes_of(model)] or [{}]
    return merged([Examiner(model, texts, tolerance, route).run() for route in routes])


def merged(found: Sequence[Examination]) -> Examination:
    """Join the findings of all routes; a hook counts as silent only if it is silent on every route."""
    silent = [{(f.code, f.place) for f in one.findings if f.code == "PH008"} for one in found]
    everywhere = set.intersection(*silent)
    findings = {(f.code, f.place): f for one in found for f in one.findings}
    kept = [f for key, f in sorted(findings.items()) if key[0] != "PH008" or key in everywhere]
    sides = dict.fromkeys(run.padding for one in found for run in one.runs)
    runs = [
        max((r for one in found for r in one.runs if r.padding == side), key=lambda run: run.badness) for side in sides
    ]
    worst = max(found, key=lambda one: len(one.findings))
    return Examination(tuple(kept), tuple(runs), max(one.tolerance for one in found), worst.seen)


class Examiner:
    """Run every check on one model, or on one route of it.

    Args:
        model: The model.
        texts: The texts to encode.
        tolerance: The largest difference that counts as the same; None for 1e-4, or for the rounding error if larger.
        route: Options of ``encode`` that select the route.
    """

    def __init__(self, model: nn.Module, texts: Sequence[str], tolerance: float | None, route: dict[str, Any]) -> None:
        self.model = model
        self.texts = texts
        self.tolerance = tolerance
        self.route = route
        sides = {tokenizer.padding_side for tokenizer in tokenizers_of(model)}
        self.own = sides.pop() if len(sides) == 1 else "right"
        other = "left" if self.own == "right" else "right"
        self.sides = (self.own, other) if tokenizers_of(model) else (self.own,)

    def run(self) -> Examination:
        """Run every check."""
        findings, seen, error = self._first_batch()
        if error is None:
            runs = tuple(self._run(side) for side in self.sides)
            findings += self._moved(findings, runs, seen)
            findings = _padding_fix(findings, runs)
        else:
            runs = (Run(self.own, True, False, None, self.tolerance or 0.0, f"{type(error).__name__}: {error}"),)
        for path, transformer in releases.transformers_of(self.model):
            findings += check_positions(path, transformer, self._try_long(transformer))
        return Examination(tuple(findings), runs, max(run.tolerance for run in runs), tuple(seen))

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of ``texts`` as one batch."""
        return torch.stack(encoder(self.model, self.route)(list(texts)))

    def _first_batch(self) -> tuple[list[Finding], list[Seen], Exception | None]:
        """Encode all texts at once and check what was seen. An error becomes a finding; what was seen before counts."""
        model, options, error = self.model, options_on(self.model), None
        hooked, position_0 = hooked_paths(model), options is not None and options.virtual_tokens == "pool"
        with counting(model, paths_to_count(model)) as calls, watching(model) as events:
            try:
                self.encode(self.texts)
            except Exception as raised:  # any error of a library becomes a finding
                error = raised
        seen = list(seen_in(events, gradients=error is None))
        findings = [found for one in seen for found in check_seen(one, position_0)]
        findings += check_adapters(model, {one.transformer.split("'")[1]: one.virtual for one in seen})
        if error is None:
            findings += check_hooks(model, hooked, calls)
        else:
            findings.append(self._raised(error))
        return findings, seen, error

    def _raised(self, error: Exception) -> Finding:
        """PH012: encode again under a trace, which knows where it failed and why."""
        where, cause, fix = "encode()", "", None
        with trace_shapes(self.model) as trace:
            try:
                self.encode(self.texts)
            except Exception as again:
                error = again
        if trace.failure is not None:
            where, cause, fix = trace.failure.where, trace.failure.cause, trace.failure.fix
        first = (str(error).strip().splitlines() or [""])[0]
        sentence = f"The forward stops: {cause}" if cause else "The forward stops."
        return Finding("PH012", where, sentence, f"{type(error).__name__}: {first}", fix or LOOK)

    def _run(self, side: str) -> Run:
        """Encode the texts alone and in batches, padded on one side."""
        own = side == self.own
        try:
            with padded(self.model, side):
                report = check_padding_invariance(self.model, self.texts, tolerance=self.tolerance, **self.route)
        except Exception as error:  # such as the hooks' own refusal of left padding
            return Run(side, own, False, None, self.tolerance or 0.0, error=f"{type(error).__name__}: {error}")
        measured = (report.largest_difference, report.allowed)
        return Run(side, own, False, *measured, judged_by=report.judged_by, differences=report.differences)

    def _moved(self, findings: list[Finding], runs: Sequence[Run], seen: Sequence[Seen]) -> list[Finding]:
        """PH007 and PH011: the embedding moves with its batch, because of the positions or of what a module does."""
        if runs[0].same:
            return []
        alone = [self._watched([text]) for text in self.texts]
        moved = any(
            text_rows_moved(one, each) > _allowed_for_rows(runs[0], size, each)
            for one in seen
            for size, found in alone
            for each in found
        )
        place = seen[0].transformer if seen else "encode()"
        if moved and self.own == "left":
            return [_positions(runs, place)]
        if any(found.code in ("PH001", "PH002") for found in findings):
            return []
        return list(blamed(self.model, lambda: self.encode(self.texts), movement(runs))) or [
            _unknown(runs, moved, place)
        ]

    def _try_long(self, transformer: Any) -> str:
        found = room_for_text(transformer)
        if found is None:
            return ""
        tokens = min(transformer.max_seq_length or found[0], found[0])
        if tokens > LONGEST_TRIED:
            return f"a text of {tokens} tokens was not tried"
        try:
            self.encode(["so " * tokens])
        except Exception as error:
            return f"a text of {tokens} tokens raises {type(error).__name__}"
        return f"a text of {tokens} tokens goes through, beyond what the backbone was trained on"

    def _watched(self, texts: list[str]) -> tuple[float, list[Seen]]:
        """Return the largest component of the embeddings, and what each Transformer passed on."""
        with watching(self.model) as events:
            found = self.encode(texts)
        return float(found.abs().nan_to_num(nan=0.0).max()), list(seen_in(events))


def rows_of(seen: Sequence[Seen]) -> tuple[Row, ...]:
    """Return the rows of a ribbon: what is at each position of the first batch, and what Pooling counted."""
    if not seen or seen[0].counted is None or seen[0].counted.shape != seen[0].rows.shape[:2] or seen[0].virtual < 0:
        return ()
    rows = []
    for number, (mask, counted) in enumerate(zip(seen[0].text_mask.tolist(), seen[0].counted.tolist())):
        kinds: list[Kind] = ["virtual"] * seen[0].virtual
        kinds += ["text" if kept else "padding" for kept in mask]
        rows.append(Row(chr(ord("A") + number % 26), kinds, counted))
    return tuple(rows)


def _padding_fix(findings: list[Finding], runs: Sequence[Run]) -> list[Finding]:
    """Make padding on the right the fix of what is wrong only when padded on the left."""
    if len(runs) < 2 or runs[0].padding != "left" or not runs[1].same or runs[0].same:
        return findings
    moved = ("PH002", "PH007", "PH011")
    return [replace(f, fix=PAD_RIGHT, fixed=True) if f.code in moved else f for f in findings]


def movement(runs: Sequence[Run]) -> str:
    """Return how far an embedding moves, padded on either side, as text."""
    own, *others = runs
    moves = f"moves by {own.shown} between alone and in batches padded on the {own.padding}"
    return "; ".join([moves, *(f"by {other.shown} padded on the {other.padding}" for other in others)])


def _positions(runs: Sequence[Run], place: str) -> Finding:
    """PH007."""
    sentence = (
        "Padding on the left shifts the positions of the text, so its embedding depends on how long the other texts "
        "in the batch are."
    )
    return Finding("PH007", place, sentence, movement(runs), LOOK)


def _unknown(runs: Sequence[Run], moved: bool, place: str) -> Finding:
    """PH011, if no module was found to cause it."""
    at = place if moved else f"after {place}"
    tokens = "the token embeddings of a text move as well" if moved else "the token embeddings of a text stay the same"
    sentence = f"An embedding depends on what else is in its batch, for an unknown reason: {tokens}."
    return Finding("PH011", at, sentence, movement(runs), LOOK)


def _allowed_for_rows(run: Run, size: float, seen: Seen) -> float:
    """Return how far token embeddings may move: the run's tolerance, scaled up if they are larger than embeddings."""
    largest = float(seen.rows.double().abs().nan_to_num(nan=0.0).max())
    return run.tolerance * max(1.0, largest / max(size, 1e-12))
