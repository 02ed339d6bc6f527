"""Work out what a PyTorch layer returns for a tensor, from its class and its sizes."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from ...compat.torch_internals import has_children
from .ghosts import Ghost
from .meta import on_meta, worked_out


def output_of(module: nn.Module, given: Any) -> Ghost | None:
    """Return what a PyTorch layer must return for a tensor, or None if its class does not determine that.

    Runs the forward on the meta device, on a copy without hooks whose parameters have no values.
    """
    layer = type(module)
    if not layer.__module__.startswith("torch.nn.modules") or has_children(module):
        return None
    held = {name: vars(module).get(name, {}) for name in ("_parameters", "_buffers")}
    own = {name: {key: one if one is None else on_meta(one) for key, one in held[name].items()} for name in held}
    copy = object.__new__(layer)
    vars(copy).update(vars(module), **own)
    made = worked_out(functools.partial(layer.forward, copy), [given])
    return made if isinstance(made, Ghost) else None
