"""Everything that is known when something has been raised: the frames, the trace, the model."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..records import Adapter, Row
from .failure import Bound
from .ghosts import Ghost, Shape
from .operands import Names, Operand
from .origins import History, Origin, Owned, is_float, is_wide, owned_by, place_of
from .steps import ModuleCall, Step, module_calls
from .values import UNKNOWN


@dataclass(frozen=True)
class Scene:
    """What is known when something has been raised.

    Attributes:
        error: The exception.
        steps: The frames that it has left, outermost first.
        model: The traced model.
        row: The innermost recorded call that raised; None if the error was raised outside of the model.
        inner: The innermost module that was running, recorded or not.
        history: What happened in this forward, or in the last one.
        modules: The model's modules by path.
        adapters: The active adapters that learn prompts.
        hooks_of: Returns the hooks that others have on the module at a path.
        pipeline: Whether the model is one of Sentence Transformers'.
    """

    error: BaseException
    steps: Sequence[Step]
    model: nn.Module
    row: Row | None
    inner: nn.Module | None
    history: History
    modules: Mapping[str, nn.Module]
    adapters: Sequence[Adapter]
    hooks_of: Callable[[str], list[str]]
    pipeline: bool

    def __post_init__(self) -> None:
        for step in self.steps:
            step.returned = self.returned

    def returned(self, module: nn.Module) -> Any:
        """Return what a module returned last: a tensor that is not at hand, a tuple of some, or ``UNKNOWN``."""
        row = next((row for row in self.history.ended() if self.modules.get(row.path) is module), None)
        if row is not None and [leaf.text for leaf in row.outputs] == ["None"]:
            return None
        if row is None or not row.outputs or not all(leaf.shape is not None for leaf in row.outputs):
            return UNKNOWN
        ghosts = [Ghost(leaf.shape, leaf.dtype, leaf.device) for leaf in row.outputs]  # type: ignore[arg-type]
        names = [leaf.name for leaf in row.outputs]
        if names == ["output"]:
            return ghosts[0]
        return tuple(ghosts) if names == [f"output.{number}" for number in range(len(names))] else UNKNOWN

    @functools.cached_property
    def names(self) -> Names:
        """What tensors are called."""
        return Names(self.steps)

    @functools.cached_property
    def calls(self) -> list[ModuleCall]:
        """The calls of modules in the traceback, outermost first."""
        return module_calls([*self.steps])

    @functools.cached_property
    def paths(self) -> dict[int, str]:
        """The path of each module, by its ``id``."""
        found: dict[int, str] = {}
        for path, module in self.modules.items():
            found.setdefault(id(module), path)
        return found

    def where(self, module: nn.Module) -> str:
        """Name a module: ``"Linear '0.dense'"``, or ``"MSELoss"`` if it is none of the model's."""
        kind = type(module).__name__
        return f"{kind} {self.paths[id(module)]!r}" if id(module) in self.paths else kind

    def is_torch(self, path: str | None) -> bool:
        """Tell whether the module at a path is a layer of PyTorch's own, which does what its class says."""
        return path is not None and path in self.modules and type(self.modules[path]).__module__.startswith("torch.nn.")

    def on(self, path: str | None) -> str:
        """Name the hooks that others have on the module at ``path``, as the end of a sentence."""
        names = [] if path is None or path not in self.modules else self.hooks_of(path)
        return f"; it has {' and '.join(names)} on it" if names else ""

    @functools.cached_property
    def owned(self) -> list[Owned]:
        """The parameters and buffers of the model, and of the modules in the traceback."""
        modules = {id(module): module for module in self.modules.values()}
        modules.update({id(step.module): step.module for step in self.steps if step.module is not None})
        return [*owned_by(modules.values())]

    def owner(self, tensor: Any) -> Owned | None:
        """Return the parameter or buffer that a tensor is, or is a view of."""
        if not isinstance(tensor, Tensor):
            return None
        exact = next((one for one in self.owned if one.tensor is tensor or one.tensor is tensor._base), None)
        if exact is not None:
            return exact
        place = place_of(tensor)
        return None if place is None else next((one for one in self.owned if place_of(one.tensor) == place), None)

    def owner_of(self, operand: Operand, size: int) -> Owned | None:
        """Return the parameter or buffer that an operand is, or got a size from."""
        for one in (operand.value, operand.root.value):
            owner = self.owner(one)
            if owner is not None:
                return owner
        name = operand.root.node
        made = self.steps[operand.root.place].assigned(name.id) if isinstance(name, ast.Name) else None
        for node in () if made is None else ast.walk(made):
            if isinstance(node, (ast.Name, ast.Attribute)):
                value = self.steps[operand.root.place].values(node)
                owner = self.owner(value) if value is not operand.root.value else None
                if owner is not None and size in owner.tensor.shape:
                    return owner
        return None

    def maker(self, operand: Operand) -> nn.Module | None:
        """Return the module that the code got an operand from, as far as a straight reading of the source tells."""
        return None if operand.node is None else self._maker(operand.place, operand.node, 8)

    def _maker(self, place: int, node: ast.AST | None, left: int) -> nn.Module | None:
        step = self.steps[place]
        if node is None or not left:
            return None
        if isinstance(node, ast.Call):
            called = step.values(node.func)
            if isinstance(called, nn.Module):
                return called
            return self._maker(place, node.func.value, left - 1) if isinstance(node.func, ast.Attribute) else None
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            return self._maker(place, node.value, left - 1)
        if not isinstance(node, ast.Name):
            return None
        if isinstance(step.module, nn.Sequential) and step.in_torch:
            return _before(step.module, step.locals.get("module"))
        made = step.assigned(node.id)
        if made is not None:
            return self._maker(place, made, left - 1)
        found = None if step.assigns(node.id) else self.names.argument(place, node.id)
        return None if found is None else self._maker(*found, left - 1)

    def origin(self, operand: Operand) -> Origin | None:
        """Return where an operand, or what it was made of, was seen in the trace."""
        values = [one.value for one in (operand, operand.root) if isinstance(one.value, Tensor)]
        found = [origin for origin in map(self.history.origin_of, values) if origin is not None]
        return next((origin for origin in found if origin.made), next(iter(found), None))

    def birth(self, operand: Operand, place: int) -> Origin | None:
        """Return where a tensor first had the size that an operand has in a dimension."""
        real = operand.dtype is not None and operand.dtype.is_floating_point
        wide = real and not operand.root.text.endswith("mask")
        size, given = operand.shape[place], () if self.row is None else self.row.came
        for leaf in given if len(operand.shape) > 3 and place > 0 else ():
            # Attention splits [batch, length, width] into heads, which have another rank.
            if len(leaf.shape or ()) == 3 and (leaf.shape or ())[1] == size:
                return self.history.birth(leaf.shape or (), 1, is_float(leaf), is_wide(leaf))
        return self.history.birth(operand.shape, place, real, wide) or self.made(operand, size)

    def made(self, operand: Operand, size: int) -> Origin | None:
        """Return the call that the source says an operand came out of, if it gave a tensor of a size."""
        maker = self.maker(operand)
        for when in range(len(self.history.events) - 1, -1, -1):
            event = self.history.events[when]
            if maker is not None and event.side == "out" and self.modules.get(event.row.path) is maker:
                leaf = next((leaf for leaf in event.leaves if size in (leaf.shape or ())), None)
                return None if leaf is None else Origin(when, event, True, leaf)
        return None

    def last_places(self) -> Iterator[int]:
        """Yield the steps from the innermost to the first whose code is not PyTorch's."""
        for place in range(len(self.steps) - 1, -1, -1):
            yield place
            if not self.steps[place].in_torch:
                return

    def bound(self, operand: Operand, place: int) -> Bound:
        """Return the size of one dimension of an operand, with where it comes from."""
        owner = self.owner(operand.value) or self.owner(operand.root.value)
        shape: Shape = operand.shape
        text, source, path = operand.name, "", None
        if operand.base is not None and operand.root.shape != shape:
            source = f"made of {operand.root.name} {list(operand.root.shape)}"
        if owner is not None:
            shown = "" if tuple(owner.tensor.shape) == shape else f" {list(owner.tensor.shape)}"
            return Bound(
                shape[place],
                text,
                shape,
                place,
                f"the {owner.kind} {owner.name!r}{shown} of {self.where(owner.module)}",
                self.paths.get(id(owner.module)),
            )
        origin = self.origin(operand)
        if origin is not None:
            words = origin.source(self.history.rows)
            source = f"{source}, {words}" if source else words
            path = origin.row.path if origin.made else None
        else:
            maker = self.maker(operand)
            if maker is not None:
                direct = isinstance(operand.node, ast.Call) and operand.base is None
                words = (
                    f"which came out of {self.where(maker)}" if direct else f"made of what {self.where(maker)} returns"
                )
                source = f"{source}, {words}" if source else words
                path = self.paths.get(id(maker))
        return Bound(shape[place], text, shape, place, source, path)


def _before(steps: nn.Sequential, module: Any) -> nn.Module | None:
    """Return the step of a ``Sequential`` before another."""
    order = list(steps)
    place = next((number for number, one in enumerate(order) if one is module), 0)
    return order[place - 1] if place else None
