"""The command line. Each command is a function that returns the exit status, and has one that adds its arguments."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._version import VERSION
from ..errors import PeftHooksError
from .arguments import print_json, whole_number
from .serving import export, export_arguments, merge, merge_arguments


def demo(options: argparse.Namespace) -> int:
    """Show on real weights what goes wrong without the hooks, and that it is right with them."""
    from .demo import compare, show

    without, hooked = compare()
    show(_stdout(), without, hooked)
    return 0 if hooked.run.same else 1


def doctor(options: argparse.Namespace) -> int:
    """Run a model on real sentences, and report what is wrong and how to fix it; with no model, try the releases.

    Exit status 0: healthy; 1: problems were found; 2: it could not be loaded.
    """
    if options.model is None:
        return _releases(options)
    from ..compat.quiet import quiet
    from ..doctor.report import show
    from ..doctor.run import diagnose
    from .console import saying

    model = _loaded(options)
    with quiet(), saying("Encoding sentences alone and in batches, as it is and with the hooks"):
        diagnosis = diagnose(model)
    if options.json:
        print_json({"path": options.model, **diagnosis.to_dict()})
    else:
        show(_stdout(), diagnosis, options.model)
    return 0 if diagnosis.ok else 1


def trace(options: argparse.Namespace) -> int:
    """Encode texts and print what went through every module: shapes, dtypes, and where it failed, if it did.

    A CrossEncoder scores pairs: the first text with the second, the third with the fourth.
    Exit status 0: it ran; 1: the forward raised; 2: the model could not be loaded.
    """
    from ..compat.quiet import quiet
    from ..tracing.session import trace_shapes
    from .console import saying

    model, error = _loaded(options), None
    what = f"Encoding {len(options.text)} text{'' if len(options.text) == 1 else 's'}"
    with quiet(), saying(what), trace_shapes(model, depth=options.depth, stats=True) as shapes:
        try:
            _encode(model, options.text)
        except Exception as raised:  # explained below, whatever it is
            error = raised
    _stdout().print(shapes.table())
    for path, write in ((options.html, shapes.to_html), (options.json, shapes.to_json)):
        if path is not None:
            _write(path, write)
    if error is not None:
        sys.stderr.write(f"{type(error).__name__}: {error}\n{shapes.failure or ''}\n")
        return 1
    return 0


def run(options: argparse.Namespace) -> int:
    """Run a script as Python does; an error raised by a module's forward gets a note that explains it.

    The exit status is the script's own, or 2 if there is no such script.
    """
    from .script import run_program

    return run_program(options.script, options.arguments, options.html, options.m)


def _encode(model: Any, texts: list[str]) -> None:
    """Run the model on the texts as one batch."""
    from ..compat.sentence_transformers import is_cross_encoder

    if not is_cross_encoder(model):
        model.encode(texts, batch_size=len(texts), show_progress_bar=False)
        return
    pairs = list(zip(texts[::2], texts[1::2]))
    if len(texts) % 2:
        raise ValueError(f"a CrossEncoder scores pairs: give an even number of texts, not {len(texts)}")
    model.predict(pairs, batch_size=len(pairs), show_progress_bar=False)


def _releases(options: argparse.Namespace) -> int:
    """Try every PEFT method on tiny models."""
    from .console import load_libraries, one_thread, saying

    load_libraries()
    from ..compat.quiet import quiet
    from ..compat.tested import installed
    from .stack import cells, show

    with quiet(), one_thread():
        found = list(cells(saying))
    if options.json:
        print_json({"versions": installed(), "cells": [dataclasses.asdict(cell) for cell in found]})
    else:
        show(_stdout(), found)
    return 0 if all(cell.expected for cell in found if cell.hooks) else 1


def _loaded(options: argparse.Namespace) -> Any:
    from ..checkpoints.loading import load_model
    from ..compat.quiet import quiet
    from .console import load_libraries, saying

    load_libraries()
    with quiet():
        return load_model(options.model, options.base, saying)


def _stdout() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _write(path: str, write: Any) -> None:
    try:
        write(path)
    except OSError as error:
        raise PeftHooksError(f"{path}: could not be written: {error.strerror}") from error
    sys.stderr.write(f"Wrote {Path(path)}\n")


def _doctor_arguments(command: argparse.ArgumentParser) -> None:
    what = "a directory with a model or a PEFT adapter, or a name on the Hugging Face Hub"
    command.add_argument("model", nargs="?", metavar="PATH_OR_NAME", help=what)
    command.add_argument("--base", metavar="PATH", help="an adapter's base model, if not where the adapter says")
    command.add_argument("--json", action="store_true", help="print JSON")


def _trace_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="PATH_OR_NAME", help="as for doctor")
    command.add_argument("text", nargs="+", metavar="TEXT", help="a text; all of them make one batch")
    command.add_argument("--base", metavar="PATH", help="an adapter's base model, if not where the adapter says")
    command.add_argument("--depth", type=whole_number, metavar="N", help="levels of modules to show; all by default")
    command.add_argument("--html", metavar="FILE", help="write a page with a picture of the flow")
    command.add_argument("--json", metavar="FILE", help="write everything that was recorded as JSON")


def _run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--html", metavar="FILE", help="write a page that explains the error, if there is one")
    command.add_argument("-m", action="store_true", help="SCRIPT is the name of a module, as for python -m")
    command.add_argument("script", metavar="SCRIPT", help="the script, which needs no change")
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the arguments of the script")


def _no_arguments(command: argparse.ArgumentParser) -> None:
    """Add no arguments to a command."""


COMMANDS = {
    demo: _no_arguments,
    doctor: _doctor_arguments,
    trace: _trace_arguments,
    run: _run_arguments,
    merge: merge_arguments,
    export: export_arguments,
}


def parser() -> argparse.ArgumentParser:
    """Return the parser. Each command is a subparser whose default ``run`` is the command's function."""
    about = "Forward hooks that make PEFT's prompt learning right in Sentence Transformers models."
    top = argparse.ArgumentParser(prog="peft-hooks", description=about)
    top.add_argument("--version", action="version", version=f"peft_hooks {VERSION}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for function, add_arguments in COMMANDS.items():
        sentence, _, more = (function.__doc__ or "").strip().partition("\n\n")
        command = commands.add_parser(function.__name__, help=sentence, description=sentence, epilog=more.strip())
        add_arguments(command)
        command.set_defaults(run=function)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 if it could not run at all."""
    options = parser().parse_args(arguments)
    if options.run is run:
        return int(run(options))  # whatever the script raises is its own
    try:
        return int(options.run(options))
    except PeftHooksError as error:
        sys.stderr.write(f"peft-hooks: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
