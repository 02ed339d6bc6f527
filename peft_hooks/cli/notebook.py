"""``%load_ext peft_hooks``: errors raised in cells get their note before IPython shows them."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

from ..tracing.aftermath import explain_afterwards


class _Handlers(NamedTuple):
    """How a shell handles exceptions: before this library, and since."""

    exceptions: tuple[type[BaseException], ...]
    before: Any
    ours: Any


_loaded: dict[Any, _Handlers] = {}


def load(shell: Any) -> None:
    """Explain what a cell raises, then let the shell show it.

    IPython has a single handler for exceptions. An existing one still shows the exceptions that it was set for.
    """
    if shell not in _loaded:
        exceptions, before = shell.custom_exceptions, shell.CustomTB
        shell.set_custom_exc((Exception,), _show)
        _loaded[shell] = _Handlers(exceptions, before, shell.CustomTB)


def unload(shell: Any) -> None:
    """Restore the shell's former handler, unless someone has set another one since."""
    handlers = _loaded.pop(shell, None)
    if handlers is not None and shell.CustomTB == handlers.ours:
        shell.custom_exceptions, shell.CustomTB = handlers.exceptions, handlers.before


def _show(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
    tb_offset: int | None = None,
) -> Any:
    """Show what a cell raised; for the arguments, see IPython's ``set_custom_exc``."""
    explain_afterwards(error)
    handlers = _loaded.get(shell)
    if handlers is not None and isinstance(error, handlers.exceptions):
        return handlers.before(kind, error, traceback, tb_offset=tb_offset)
    ran = _has_run(shell, traceback)
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset, running_compiled_code=ran)
    return None


def _has_run(shell: Any, traceback: TracebackType | None) -> bool:
    """Tell whether code of the cell ran: a syntax error in the cell itself is shown without a traceback."""
    while traceback is not None:
        if traceback.tb_frame.f_globals is shell.user_module.__dict__:
            return True
        traceback = traceback.tb_next
    return False
