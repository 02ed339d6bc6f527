"""``peft-hooks run``: run a script as Python does, and explain its errors."""

from __future__ import annotations

import io
import os
import sys
import types
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any

from ..tracing.aftermath import explain_afterwards

if TYPE_CHECKING:
    from ..tracing.explain.failure import Failure


def run_script(path: str, arguments: list[str], html: str | None) -> int:
    """Run a script as ``python script.py`` does, and explain the error that ends it.

    Whatever the script raises is raised here as well, so that Python ends as it would have: it prints the traceback,
    without this library's frames, and handles interrupts and ``sys.exit`` as usual.

    Args:
        path: The script.
        arguments: The script's arguments.
        html: The page to write if a forward failed.

    Returns:
        The exit status: 0, or 2 if there is no such script.
    """
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        sys.stderr.write(f"peft-hooks: {path}: could not be read: {error.strerror}\n")
        return 2
    namespace = _become(path, arguments)
    failure = None
    try:
        _execute(source, namespace)
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


def _become(path: str, arguments: list[str]) -> dict[str, Any]:
    """Make ``__main__``, ``sys.argv`` and ``sys.path`` what the script would find if Python ran it."""
    main = types.ModuleType("__main__")
    vars(main).update(__file__=os.path.abspath(path), __cached__=None, __builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = main  # permanently: threads and exit handlers still need it
    sys.argv = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):  # with it, neither the command nor the script has a folder there
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    return vars(main)


def _execute(source: bytes, namespace: dict[str, Any]) -> None:
    code: CodeType = compile(source, namespace["__file__"], "exec", dont_inherit=True)
    exec(code, namespace)


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
