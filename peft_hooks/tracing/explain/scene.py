"""``Scene``: everything that is known about an exception: its frames, the trace, the model."""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...compat import sentence_transformers as releases
from ..records import Row
from ..trace import ShapeTrace
from .failure import Bound
from .ghosts import Ghost, Operand, is_tensor, storage_of
from .layers import output_of
from .operands import Names, assigned, assigns, module_calls
from .origins import History, Origin, is_float, is_wide, returned_none
from .tracebacks import Raised, foreign_hooks
from .values import UNKNOWN


class Owned(NamedTuple):
    """A parameter or buffer of a module."""

    kind: str
    name: str
    module: nn.Module
    tensor: Tensor


class Scene:
    """Everything that is known about an exception.

    Args:
        trace: What was recorded.
        model: The traced model.
        error: The exception.
        raised: What its traceback tells.
        forward: The number of the forward that failed, or of the last one.
        row: The innermost recorded call that raised; None if the error was raised outside the model.

    Attributes:
        steps: The frames that the error passed through, outermost first.
        inner: The innermost module that was running, recorded or not.
        history: The calls of the forward.
        modules: The model's modules by path.
        paths: The path of each module, by its ``id``.
        adapters: The active adapters that learn prompts.
        names: Finds out what tensors are called.
        calls: The calls of modules in the traceback, outermost first.
        transformers: The modules of a Sentence Transformers model that hold a transformers model.
    """

    def __init__(
        self, trace: ShapeTrace, model: nn.Module, error: BaseException, raised: Raised, forward: int, row: Row | None
    ) -> None:
        self.model, self.error, self.steps = model, error, raised.steps
        self.history = History(trace.rows, forward)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.paths = {id(module): path for path, module in reversed(self.modules.items())}
        self.row = self._in_traceback(row)
        inner = self.paths.get(raised.inner or 0)
        self.inner = None if self.row is None else self.modules[self.row.path if inner is None else inner]
        self.adapters = trace.adapters
        self.names = Names(self.steps)
        self.calls = module_calls(self.steps)
        self.transformers = releases.transformers_of(model)
        for step in self.steps:
            step.returned = self.returned

    @property
    def ends(self) -> list[Row]:
        """The outermost call of the forward, and the innermost that raised."""
        return [event.row for event in self.history.events[:1]] + ([] if self.row is None else [self.row])

    def _in_traceback(self, row: Row | None) -> Row | None:
        """Return the innermost call, at or around ``row``, in the traceback: a caught error may have had its ``id``."""
        ran = {id(step.module) for step in self.steps}
        around = row
        while around is not None and id(self.modules[around.path]) not in ran:
            around = self.history.around(around)
        return around or row

    def returned(self, module: nn.Module, later: int = 0, args: Sequence[Any] = ()) -> Any:
        """Return what a module returned ``later`` calls before its last: None, a ``Ghost``, a tuple, or ``UNKNOWN``."""
        rows = (row for row in self.history.ended() if self.modules.get(row.path) is module)
        row = next(itertools.islice(rows, later, None), None)
        plain = len(args) == 1 and is_tensor(args[0]) and "forward" not in vars(module) and not foreign_hooks(module)
        if plain and not self.history.own[1:]:  # nothing was recorded inside the model
            return output_of(module, args[0]) or UNKNOWN
        if row is not None and returned_none(row):
            return None
        if row is None or not row.outputs or not all(leaf.shape is not None for leaf in row.outputs):
            return UNKNOWN
        ghosts = [Ghost(leaf.shape, leaf.dtype, leaf.device) for leaf in row.outputs]  # type: ignore[arg-type]
        names = [leaf.name for leaf in row.outputs]
        if names == ["output"]:
            return ghosts[0]
        return tuple(ghosts) if names == [f"output.{number}" for number in range(len(names))] else UNKNOWN

    def where(self, module: nn.Module) -> str:
        """Name a module: ``"Linear '0.dense'"``, or ``"MSELoss"`` if it is not in the model."""
        kind = type(module).__name__
        return f"{kind} {self.paths[id(module)]!r}" if id(module) in self.paths else kind

    def path(self, module: nn.Module | None) -> str | None:
        """Return the path of a module, or None if it is not in the model."""
        return self.paths.get(id(module))

    def is_torch(self, path: str | None) -> bool:
        """Tell whether the module at a path is one of PyTorch's own layers, which do what their class says."""
        return path is not None and path in self.modules and type(self.modules[path]).__module__.startswith("torch.nn.")

    def on(self, path: str | None) -> str:
        """Return the hooks of others on the module at ``path``, as the end of a sentence."""
        names = [] if path is None or path not in self.modules else foreign_hooks(self.modules[path])
        return f"; it has {' and '.join(names)} on it" if names else ""

    @functools.cached_property
    def _owned(self) -> list[Owned]:
        """The parameters and buffers of the model and of the modules in the traceback."""
        modules = {id(module): module for module in self.modules.values()}
        modules.update({id(step.module): step.module for step in self.steps if step.module is not None})
        found = []
        for module in modules.values():
            for kind in ("parameter", "buffer"):
                held = vars(module).get(f"_{kind}s", {})
                found += [Owned(kind, name, module, one) for name, one in held.items() if isinstance(one, Tensor)]
        return found

    def owner(self, operand: Operand) -> Owned | None:
        """Return the parameter or buffer that an operand is, or is a view of."""
        tensor = operand.value
        if not isinstance(tensor, Tensor):
            return None
        exact = next((one for one in self._owned if one.tensor is tensor or one.tensor is tensor._base), None)
        if exact is not None:
            return exact
        place = storage_of(tensor)
        return None if place is None else next((one for one in self._owned if storage_of(one.tensor) == place), None)

    def maker(self, operand: Operand) -> nn.Module | None:
        """Return the module that returned an operand, as far as the source says so plainly."""
        return None if operand.node is None else self._maker(operand.place, operand.node, 8)

    def _maker(self, place: int, node: ast.AST | None, left: int) -> nn.Module | None:
        step = self.steps[place]
        if node is None or not left:
            return None
        if isinstance(node, ast.Call):
            called = step.values(node.func)
            if isinstance(called, nn.Module):
                return called
            return self._maker(place, self.names.made(place, node), left - 1)
        if isinstance(node, ast.BinOp):
            return self._maker(place, self.names.made(place, node), left - 1)
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            return self._maker(place, node.value, left - 1)
        if not isinstance(node, ast.Name):
            return None
        if isinstance(step.module, nn.Sequential) and step.in_torch:
            parts = [*step.module]
            places = [number for number, one in enumerate(parts) if one is step.locals.get("module")]
            return parts[places[0] - 1] if len(places) == 1 and places[0] else None
        made = assigned(step, node.id)
        if made is not None:
            return self._maker(place, made, left - 1)
        found = None if assigns(step, node.id) else self.names.argument(place, node.id)
        return None if found is None else self._maker(*found, left - 1)

    def origin(self, operand: Operand) -> Origin | None:
        """Return the origin of an operand, or of the tensor that it was made from."""
        values = [one.value for one in (operand, operand.root) if isinstance(one.value, Tensor)]
        found = [origin for origin in map(self.history.origin_of, values) if origin is not None]
        return next((origin for origin in found if origin.made), next(iter(found), None))

    def birth(self, operand: Operand, place: int) -> Origin | None:
        """Return where any tensor first had the size that an operand has in a dimension."""
        wide = operand.is_float and not operand.root.text.endswith("mask")
        size, given = operand.shape[place], () if self.row is None else self.row.came
        for leaf in given if len(operand.shape) > 3 and place > 0 else ():
            # Attention splits [batch, length, width] into heads, which have another rank.
            if len(leaf.shape or ()) == 3 and (leaf.shape or ())[1] == size:
                return self.history.birth(leaf.shape or (), 1, is_float(leaf), is_wide(leaf))
        return self.history.birth(operand.shape, place, operand.is_float, wide) or self.made(operand, size)

    def made(self, operand: Operand, size: int) -> Origin | None:
        """Return the call that, by the source, returned an operand, if it returned a tensor that has ``size``."""
        maker = self.maker(operand)
        for when, event in reversed([*enumerate(self.history.events)]):
            if maker is not None and event.side == "out" and self.modules.get(event.row.path) is maker:
                leaf = next((leaf for leaf in event.leaves if size in (leaf.shape or ())), None)
                return None if leaf is None else self.history.at(when, True, leaf)
        return None

    def culprit(self, origin: Origin | None) -> str | None:
        """Return the path of the module that made a tensor or whose hooks changed it; None if it came from outside."""
        if origin is None or origin.made or self.on(origin.row.path):
            return None if origin is None else origin.row.path
        return None if origin.around is None else origin.around.path

    def last_places(self) -> Iterator[int]:
        """Yield the indices of the steps, innermost first, up to the first whose code is not PyTorch's."""
        for place in range(len(self.steps) - 1, -1, -1):
            yield place
            if not self.steps[place].in_torch:
                return

    def bounds(self, operand: Operand) -> tuple[Bound, ...]:
        """Return the first size of an operand with where it comes from; empty if the operand has no dimensions."""
        return (self.bound(operand, 0),) if operand.shape else ()

    def bound(self, operand: Operand, place: int) -> Bound:
        """Return the size of one dimension of an operand with where it comes from."""
        source, path = self._source(operand)
        return Bound(operand.shape[place], operand.name, operand.shape, place, source, path)

    def _source(self, operand: Operand) -> tuple[str, str | None]:
        """Say where an operand comes from, and return the path of the module that made it."""
        owner = self.owner(operand) or self.owner(operand.root)
        if owner is not None:
            shown = "" if tuple(owner.tensor.shape) == operand.shape else f" {list(owner.tensor.shape)}"
            return f"the {owner.kind} {owner.name!r}{shown} of {self.where(owner.module)}", self.path(owner.module)
        root, words, path = operand.root, [], None
        if root.shape != operand.shape:
            words.append(f"made from {root.name} {list(root.shape)}")
        origin, maker = self.origin(operand), self.maker(operand)
        if origin is not None:
            words.append(origin.source)
            path = origin.maker
        elif maker is not None:
            direct = isinstance(operand.node, ast.Call) and operand.base is None
            out = "the output of {}" if direct else "made from what {} returns"
            words.append(out.format(self.where(maker)))
            path = self.path(maker)
        return ", ".join(words), path


def with_article(kind: str) -> str:
    """Put "a" or "an" before the name of a class."""
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def is_autocast() -> bool:
    """Tell whether autocast chooses the dtypes."""
    return torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu")
