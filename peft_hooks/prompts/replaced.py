"""Refuse, in the next forward, changes to a model after its hooks were attached that would make it wrong."""

from __future__ import annotations

from torch import nn
from torch.compiler import is_compiling

from ..compat import sentence_transformers as releases
from ..compat.torch_internals import module_at, running_around
from ..errors import HookError
from ..hooks.call import Call, Hook
from ..hooks.dispatcher import hooked_for
from . import tensors as ft
from .plan import Options


class RefuseReplaced(Hook):
    """Refuse a pipeline in which a module with hooks was replaced by one without. Goes on the pipeline's steps.

    After ``model[1] = Pooling(...)`` the Transformer's hooks run, but the new Pooling has none: with ``cls`` the
    embedding is off by 1.19 on a vector of length 1. The check finds the pipeline that is running, so it need not be
    known beforehand: it may be a copy, a replica of ``DataParallel``, or another pipeline with the same Transformer. If
    the module is called on its own there is no pipeline, and nothing to refuse.

    Args:
        paths: Where hooks have to be. Paths without a module are skipped.

    Raises:
        HookError: In the forward.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        self._parts = tuple(tuple(path.split(".")) for path in paths)

    def before(self, call: Call) -> None:
        if is_compiling():
            return
        pipeline = running_around(call.module, tuple(call.path.split(".")))
        if pipeline is None:
            return
        for parts in self._parts:
            module = module_at(pipeline, parts)
            if module is not None and not hooked_for(module, Options):
                raise HookError(_replaced(module, ".".join(parts)))


def _replaced(module: nn.Module, path: str) -> str:
    return (
        f"{type(module).__name__} {path!r} has none of the hooks that the other modules of this pipeline have: it was "
        f"put there after they were attached. Call `handle.refresh()` on their handle, or "
        f"`register_prompt_mask_hooks(model, ...)` with the same options"
    )


class RefuseTooLong(Hook):
    """Refuse texts too long for the backbone's positions if ``max_seq_length`` allows them. Goes on the Transformer.

    ``max_seq_length`` is lowered when the hooks are attached. If it is raised later, or an adapter with more virtual
    tokens is added, a long text causes an index out of range; on a GPU, a device-side assertion.

    Args:
        positions: How many positions the backbone has.

    Raises:
        HookError: In the forward.
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions

    def before(self, call: Call) -> None:
        if is_compiling():
            return
        length, config = ft.input_length(call.first), releases.active_config(call.module)
        if length is None or config is None or not config.is_prompt_learning:
            return
        virtual: int = config.num_virtual_tokens
        if length + virtual <= self.positions:
            return
        longest = getattr(call.module, "max_seq_length", None)
        raise HookError(
            f"{call.where}: a batch is {length} tokens long, {releases.adapter_summary(call.module)} adds {virtual}, "
            f"and the backbone has {self.positions} positions: max_seq_length is {longest}. Set it to "
            f"{self.positions - virtual} or less, or call `handle.refresh()`, which lowers it"
        )
