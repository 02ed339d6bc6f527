"""Reports progress while a command works, and limits its threads."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def saying(what: str) -> Iterator[None]:
    """Report on stderr what is being done: a spinner in a terminal, a line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"{what} ..."):
            yield
    else:
        console.print(f"{what} ...", highlight=False, markup=False, soft_wrap=True)
        yield


def load_libraries() -> None:
    """Import Sentence Transformers and PEFT, which takes seconds, and report it."""
    with saying("Loading Sentence Transformers and PEFT"):
        importlib.import_module("sentence_transformers")
        importlib.import_module("peft")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread within a block.

    With batches this small, threads that wait for each other on a busy machine take 20 s instead of 1 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
