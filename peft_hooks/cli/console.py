"""How the command line behaves: what it says while it works, and what it keeps the libraries from saying."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..compat.quiet import quiet

__all__ = ["one_thread", "quiet", "saying"]


@contextlib.contextmanager
def saying(what: str) -> Iterator[None]:
    """Say on stderr what is being done: a spinner in a terminal, a line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"{what} ..."):
            yield
    else:
        console.print(f"{what} ...", highlight=False, markup=False, soft_wrap=True)
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread for the length of a block.

    With batches this small, threads that wait for each other on a busy machine take 20 s in place of 1 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
