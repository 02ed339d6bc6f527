"""A task with real data that every machine has: find a function in Python's standard library by what it does.

A query is the first sentence of a function's docstring; the matching document is the function's qualified name:
"Recursively delete a directory tree." matches ``shutil.rmtree``. The sources are parsed with ``ast``, and nothing is
imported.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sentence_transformers import SentenceTransformer
from torch import Tensor

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Pair(NamedTuple):
    """A sentence that says what a function does, and the function's qualified name."""

    query: str
    document: str


class Splits(NamedTuple):
    """Pairs to train with, to choose settings with, and to report on. No module is in more than one split."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def read_splits() -> Splits:
    """Read the installed standard library. The same Python gives the same splits, on every machine."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = [(module, pair) for module, path in _modules(folder) for pair in _pairs(module, path)]
    # A sentence that describes two functions has no single answer, and could end up in two splits.
    queries = Counter(pair.query.casefold() for _, pair in found)
    documents = Counter(pair.document.casefold() for _, pair in found)
    splits = Splits([], [], [])
    for module, pair in found:
        if queries[pair.query.casefold()] == documents[pair.document.casefold()] == 1:
            splits[_side(module)].append(pair)
    return splits


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if not LEFT_OUT.intersection(parts) and not parts[-1].startswith("test_"):
            yield ".".join(part for part in parts if part != "__init__"), path


def _pairs(module: str, path: Path) -> Iterator[Pair]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # some files are invalid on purpose
        return
    for name, function in _functions(tree, module):
        query = first_sentence(ast.get_docstring(function) or "")
        private = any(part.startswith("_") for part in name.split("."))
        if len(query.split()) >= 3 and not private:
            yield Pair(query, name)


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}.{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}.{node.name}")


def first_sentence(docstring: str) -> str:
    """Return the first sentence of the first paragraph, on one line.

    >>> first_sentence("Remove a tree. Like rm -r.")
    'Remove a tree.'
    """
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`'\"][.!?])\s", paragraph, maxsplit=1)[0]


def _side(module: str) -> int:
    """Return 0, 1 or 2 for train, validation or test, from the name alone: the same on every machine."""
    drawn = hashlib.sha256(module.encode()).digest()[0] / 256
    return 0 if drawn < 0.55 else 1 if drawn < 0.8 else 2


@dataclass(frozen=True)
class Found:
    """Scores per query: the reciprocal rank of the right function, or 0 if it is not among the first ten.

    The mean is MRR@10; the share that is not 0 is recall@10.
    """

    reciprocal_ranks: Tensor

    @property
    def mrr(self) -> float:
        return self.reciprocal_ranks.mean().item()

    @property
    def recall(self) -> float:
        return (self.reciprocal_ranks > 0).double().mean().item()


def evaluate(model: SentenceTransformer, pairs: Sequence[Pair], batch_size: int = 64) -> Found:
    """Rank all pairs' documents for every query, by cosine similarity."""
    queries, documents = (
        model.encode(list(texts), batch_size=batch_size, convert_to_tensor=True, normalize_embeddings=True)
        for texts in zip(*pairs)
    )
    scores = (queries @ documents.T).cpu()
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(dim=1).double()
    return Found((ranks <= 10) / ranks)
