"""``LogShapes``: one readable line for each forward of a module, through the standard ``logging``."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .._format import tensor_line, tensors_in
from .._public import public
from .call import Call, Hook

logger = logging.getLogger("peft_hooks")


@public
class LogShapes(Hook):
    """Log what goes into a module and what comes out, at DEBUG level, on the logger ``peft_hooks``.

    Nothing is formatted and no tensor is read unless that level is enabled. A line looks like
    ``Pooling '1' in: attention_mask i64[2,18] kept 24/36 pad right | out: sentence_embedding f32[2,384]``.
    Tensors that pass through unchanged are listed only as inputs. Silent inside ``torch.compile``.

    Example:
        >>> import logging, sys, torch
        >>> from peft_hooks import HookRegistry, LogShapes
        >>> logger, lines = logging.getLogger("peft_hooks"), logging.StreamHandler(sys.stdout)
        >>> logger.addHandler(lines)
        >>> logger.setLevel(logging.DEBUG)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> with HookRegistry(model).attached(LogShapes(), to="0"):
        ...     _ = model(torch.zeros(3, 4))
        Linear '0' in: 0 f32[3,4] | out: output f32[3,2]
        >>> logger.removeHandler(lines)
        >>> logger.setLevel(logging.NOTSET)
    """

    def before(self, call: Call) -> None:
        if not torch.compiler.is_compiling() and logger.isEnabledFor(logging.DEBUG):
            # Copied now: Sentence Transformers modules write their output into the dict that they were given.
            call.notes[self] = dict(tensors_in([*call.given_args, call.given_kwargs]))

    def after(self, call: Call, output: Any) -> None:
        given = call.notes.get(self)
        if given is None:
            return
        seen = {id(tensor) for tensor in given.values()}
        came = [tensor_line(_short(name), tensor) for name, tensor in given.items()]
        went = [tensor_line(name or "output", tensor) for name, tensor in tensors_in(output) if id(tensor) not in seen]
        logger.debug("%s in: %s | out: %s", call.where, ", ".join(came) or "-", ", ".join(went) or "-")

    def failed(self, call: Call, error: BaseException) -> None:
        given = call.notes.get(self)
        if given is not None:
            came = ", ".join(tensor_line(_short(name), tensor) for name, tensor in given.items())
            logger.debug("%s in: %s | raised %s", call.where, came or "-", type(error).__name__)


def _short(name: str) -> str:
    """Drop the argument's number if a name follows: ``0.attention_mask`` -> ``attention_mask``; ``1.0`` stays."""
    number, _, rest = name.partition(".")
    return rest if number.isdigit() and rest and not rest[0].isdigit() else name
