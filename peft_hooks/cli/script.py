"""``peft-hooks run``: run a script or module as Python does, and explain its errors."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tracing.aftermath import explain_afterwards

if TYPE_CHECKING:
    from ..tracing.explain.failure import Failure


class Program(NamedTuple):
    """What is run: what loads the code, and what Python sets in ``__main__``, ``sys.argv`` and ``sys.path`` for it."""

    load: Callable[[], CodeType]
    names: dict[str, Any]
    argument: str
    folder: str


def run_program(target: str, arguments: list[str], html: str | None, is_module: bool = False) -> int:
    """Run a script as ``python script.py`` does, or a module as ``python -m`` does, and explain the error that ends it.

    Whatever the program raises is raised here as well, so that Python ends as it would have: it prints the traceback,
    without this library's frames, and handles interrupts and ``sys.exit`` as usual.

    Args:
        target: The path of the script, or the name of the module.
        arguments: The program's arguments.
        html: The page to write if a forward failed.
        is_module: Whether ``target`` is the name of a module.

    Returns:
        The exit status: 0, or 2 if there is no such program.
    """
    program = _module(target) if is_module else _script(target)
    if isinstance(program, str):
        sys.stderr.write(f"peft-hooks: {target}: {program}\n")
        return 2
    failure = None
    try:
        _execute(program.load, _become(program, arguments))
    except Exception as error:
        failure = explain_afterwards(error)
        _hide_our_frames()
        raise
    except KeyboardInterrupt:
        _hide_our_frames()
        raise
    finally:
        if html is not None:
            _write(html, failure)
    return 0


def _script(path: str) -> Program | str:
    """Read a script. Return the reason as text if it cannot be read."""
    whole = os.path.abspath(path)
    try:
        with io.open_code(whole) as file:
            source = file.read()
    except OSError as error:
        return f"could not be read: {error.strerror}"
    load = functools.partial(compile, source, whole, "exec", dont_inherit=True)
    return Program(load, {"__file__": whole, "__cached__": None}, path, os.path.dirname(os.path.realpath(path)))


def _module(name: str) -> Program | str:
    """Find a module, or a package's ``__main__``, from the working directory. Return the reason if there is none."""
    folder = os.getcwd()
    _look_first_in(folder)
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as error:
        return f"no module that can be run: {error}"
    loader: Any = None if spec is None else spec.loader
    code = loader.get_code(spec.name) if spec is not None and hasattr(loader, "get_code") else None
    if spec is None or code is None:
        return "no module that can be run"
    names = {"__file__": spec.origin, "__cached__": spec.cached, "__spec__": spec, "__loader__": loader}
    return Program(lambda: code, {**names, "__package__": spec.parent}, spec.origin or name, folder)


def _become(program: Program, arguments: list[str]) -> dict[str, Any]:
    """Make ``__main__``, ``sys.argv`` and ``sys.path`` what the program finds when Python runs it."""
    main = types.ModuleType("__main__")
    vars(main).update(program.names, __builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = main  # for good: threads and what runs at exit still look for it
    sys.argv = [program.argument, *arguments]
    _look_first_in(program.folder)
    return vars(main)


def _look_first_in(folder: str) -> None:
    """Replace the command's own folder on ``sys.path``."""
    if not getattr(sys.flags, "safe_path", False):  # else there is none
        sys.path[0] = folder


def _execute(load: Callable[[], CodeType], namespace: dict[str, Any]) -> None:
    exec(load(), namespace)


def _hide_our_frames() -> None:
    """Make tracebacks begin at the script's first frame, whatever prints them, even the script's own hook.

    Python adds a frame for each function that an error leaves, so our frames can only be removed when it is printed.
    """
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        inside = _of_the_script(traceback)
        show(kind, error.with_traceback(inside), inside)

    sys.excepthook = shown


def _of_the_script(traceback: TracebackType | None) -> TracebackType | None:
    step = traceback
    while step is not None:
        if step.tb_frame.f_code is _execute.__code__:
            return step.tb_next
        step = step.tb_next
    return traceback


def _write(html: str, failure: Failure | None) -> None:
    """Write the page of a failure, and report it. An error in writing it must not hide the script's own error."""
    if failure is None:
        sys.stderr.write(f"peft-hooks: nothing to explain, so {html} was not written\n")
        return
    from ..tracing.render.html import failure_page

    try:
        Path(html).write_text(failure_page(failure), encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"peft-hooks: {html}: could not be written: {error.strerror}\n")
        return
    sys.stderr.write(f"Wrote {Path(html)}\n")
