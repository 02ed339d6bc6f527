"""``peft-hooks merge`` and ``peft-hooks export``: write a tuned model for places without this library."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PeftHooksError
from .arguments import print_json, whole_number


def merge(options: argparse.Namespace) -> int:
    """Write a model with its prompt merged as a plain model, and report how far it is from the hooked one.

    Exit status 0: written; 2: no plain model equals it, or it could not be loaded or written.
    """
    from ..checkpoints.merge_folder import write_merged
    from ..compat.quiet import quiet
    from .console import saying

    read = _read(options)
    asked = {"task_id": options.task_id, "virtual_tokens": options.virtual_tokens}
    known = {name: (read.saved.options or {}).get(name) for name in asked}
    given = {name: known[name] if value is None else value for name, value in asked.items()}
    with quiet(), _plain_words(), saying("Merging the prompt, and comparing the plain model with the hooked one"):
        written = write_merged(read.model, Path(options.out), **given)
    if options.json:
        print_json({"path": options.out, **written.to_dict()})
    else:
        sys.stdout.write(f"{options.out}: a plain model; load it with {written.kind}({options.out!r})\n{written}\n")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a tuned model as one ONNX graph with its tokenizer, and report how far it is from the hooked model.

    A name that ends in .onnx is a file, with tokenizer.json next to it; any other is a folder, which Sentence
    Transformers loads with backend="onnx". Exit status 0: it was written; 2: it could not be, and nothing was written.
    """
    from ..checkpoints.exporting import export_onnx
    from ..compat.quiet import quiet
    from .console import saying

    model = _hooked(options)
    with quiet(), saying("Exporting, and comparing with the hooked model"):
        report = export_onnx(model, options.out)
    sys.stdout.write(f"Compared {report}\n")
    for file in report.files:
        sys.stderr.write(f"Wrote {file}\n")
    return 0


def _read(options: argparse.Namespace) -> Any:
    """Load a tuned model without hooks, with what is recorded about it."""
    from ..checkpoints.base_model import ReadOptions
    from ..checkpoints.loading import read_model
    from ..compat.quiet import quiet
    from .console import load_libraries, saying

    load_libraries()
    with quiet():
        return read_model(options.model, ReadOptions(options.base, "--base PATH", device="cpu", say=saying))


def _hooked(options: argparse.Namespace) -> Any:
    """Load a tuned model with the hooks that it was saved with, or with the given options."""
    from ..compat.quiet import quiet
    from ..prompts.attach import register_prompt_mask_hooks
    from ..prompts.plan import given_options

    read = _read(options)
    given = given_options(options.task_id, options.virtual_tokens)
    with quiet():
        register_prompt_mask_hooks(read.model, **{**(read.saved.options or {}), **given})
    return read.model


@contextlib.contextmanager
def _plain_words() -> Iterator[None]:
    """Turn a wrong option into an error that the command line reports without a traceback."""
    try:
        yield
    except PeftHooksError:
        raise
    except ValueError as error:
        raise PeftHooksError(str(error)) from error


def merge_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``peft-hooks merge``."""
    _serving_arguments(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def export_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``peft-hooks export``."""
    _serving_arguments(command)


def _serving_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="PATH_OR_NAME", help="as for doctor")
    command.add_argument("out", metavar="OUT", help="the folder to write; for export, also a file, OUT.onnx")
    command.add_argument("--base", metavar="PATH", help="an adapter's base model, if not where the adapter says")
    command.add_argument("--task-id", type=whole_number, metavar="N", help="the task of multitask prompt tuning")
    policies = ("auto", "pool", "ignore", "strip")
    command.add_argument("--virtual-tokens", choices=policies, help="the policy, if not the one that it was saved with")
