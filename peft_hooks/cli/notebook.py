"""``%load_ext peft_hooks``: the errors of cells gain their note before IPython shows them."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

from ..tracing.aftermath import explain_afterwards


class _Handlers(NamedTuple):
    """What a shell does with exceptions: before this library, and since."""

    exceptions: tuple[type[BaseException], ...]
    before: Any
    ours: Any


_loaded: dict[Any, _Handlers] = {}


def load(shell: Any) -> None:
    """Explain what a cell raises, then show it as the shell does.

    IPython has one handler of exceptions. One that is set already still shows those that it is for.
    """
    if shell not in _loaded:
        exceptions, before = shell.custom_exceptions, shell.CustomTB
        shell.set_custom_exc((Exception,), _show)
        _loaded[shell] = _Handlers(exceptions, before, shell.CustomTB)


def unload(shell: Any) -> None:
    """Put back what the shell did before, unless someone has set another handler since."""
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
    """Show what a cell raised: IPython's ``set_custom_exc`` says what it is given."""
    explain_afterwards(error)
    handlers = _loaded.get(shell)
    if handlers is not None and isinstance(error, handlers.exceptions):
        return handlers.before(kind, error, traceback, tb_offset=tb_offset)
    ran = _has_run(shell, traceback)
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset, running_compiled_code=ran)
    return None


def _has_run(shell: Any, traceback: TracebackType | None) -> bool:
    """Tell whether code of the cell ran: a syntax error of the cell itself is shown without a traceback."""
    while traceback is not None:
        if traceback.tb_frame.f_globals is shell.user_module.__dict__:
            return True
        traceback = traceback.tb_next
    return False
