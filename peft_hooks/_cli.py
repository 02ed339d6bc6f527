"""The command line: ``peft-hooks demo``. Each command is one function that returns the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._version import VERSION
from .errors import PeftHooksError


def demo(options: argparse.Namespace) -> int:
    """Show on real weights what goes wrong without the hooks, and that it is right with them."""
    from ._demo import run

    return run()


def parser() -> argparse.ArgumentParser:
    """Return the parser. A command is a subparser whose default ``run`` is its function."""
    about = "Forward hooks that make PEFT's prompt learning right in Sentence Transformers models."
    top = argparse.ArgumentParser(prog="peft-hooks", description=about)
    top.add_argument("--version", action="version", version=f"peft_hooks {VERSION}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for function in (demo,):
        sentence = (function.__doc__ or "").strip()
        command = commands.add_parser(function.__name__, help=sentence, description=sentence)
        command.set_defaults(run=function)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 where it could not run at all."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except PeftHooksError as error:
        sys.stderr.write(f"peft-hooks: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
