"""Any life of a registry runs its hooks in their order and leaves the modules as they were."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from peft_hooks import Call, Hook, HookRegistry, LogShapes

NAMES = ("a", "b", "c", "d")
PATHS = ("", "0", "0.inner", "1")
GLOBS = {"*": ("0", "1"), "**": PATHS, "0.**": ("0.inner",), "[1]": ("1",)}


class BoomError(Exception):
    """Raised where the life wants it."""


class Trace(Hook):
    """Writes down when it runs, and raises where the life wants it."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self._world = name, world

    def before(self, call: Call) -> None:
        self._world.log.append(("before", self.name, call.path))
        if self._world.fails_at == ("before", self.name, call.path):
            raise BoomError

    def after(self, call: Call, output: Any) -> None:
        self._world.log.append(("after", self.name, call.path))

    def failed(self, call: Call, error: BaseException) -> None:
        self._world.log.append(("failed", self.name, call.path))


class Leaf(nn.Module):
    """Writes down that it runs, and raises where the life wants it."""

    def __init__(self, path: str, world: World) -> None:
        super().__init__()
        self._path, self._world = path, world

    def forward(self, x: int) -> int:
        self._world.log.append(("forward", "", self._path))
        for child in self.children():
            x = child(x)
        if self._world.fails_at == ("forward", "", self._path):
            raise BoomError
        return x


class World:
    """The model, a log of what ran on it, and where the next forward fails."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.fails_at: tuple[str, str, str] | None = None
        self.model = Leaf("", self)
        self.model.add_module("0", Leaf("0", self))
        self.model.add_module("1", Leaf("1", self))
        self.model.get_submodule("0").add_module("inner", Leaf("0.inner", self))


HOOK_DICTS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def picture(model: nn.Module) -> list[Any]:
    """``vars()`` of every module: the keys, the objects by identity, and the hook dictionaries by item in order."""
    pictures: list[Any] = []
    for path, module in model.named_modules():
        values = vars(module)
        pictures.append((path, [(key, id(value)) for key, value in values.items()]))
        pictures.extend([(key, id(value)) for key, value in values[name].items()] for name in HOOK_DICTS)
    return pictures


class Expected:
    """The independent model: a plain dict of what is attached, and what a forward must therefore do."""

    def __init__(self) -> None:
        self.hooks: dict[str, dict[str, Any]] = {}

    def on(self, path: str) -> list[str]:
        here = [(hook["order"], name) for name, hook in self.hooks.items() if hook["enabled"] and path in hook["paths"]]
        return [name for _, name in sorted(here, key=lambda entry: entry[0])]

    def forward(self, fails_at: tuple[str, str, str] | None) -> tuple[list[tuple[str, str, str]], bool]:
        """Return the log of one forward, foreign hooks on ``"0"`` included, and whether it raises."""
        log: list[tuple[str, str, str]] = []

        def run(path: str, inside: tuple[tuple[str, Any], ...]) -> bool:
            if path == "0":
                log.append(("foreign before", "", path))
            for name in self.on(path):
                log.append(("before", name, path))
                if fails_at == ("before", name, path):
                    return False
            log.append(("forward", "", path))
            passed = all(run(child, grandchildren) for child, grandchildren in inside)
            if not passed or fails_at == ("forward", "", path):
                log.extend(("failed", name, path) for name in self.on(path))
                return False
            if path == "0":
                log.append(("foreign after", "", path))
            log.extend(("after", name, path) for name in self.on(path))
            return True

        return log, not run("", (("0", (("0.inner", ()),)), ("1", ())))


class Life(RuleBasedStateMachine):
    """Attaches, detaches, switches, opens and closes blocks, runs forwards, and raises in all of them."""

    @initialize()
    def start(self) -> None:
        self.world = World()
        inner = self.world.model.get_submodule("0")
        inner.register_forward_pre_hook(lambda *_: self.world.log.append(("foreign before", "", "0")))
        inner.register_forward_hook(lambda *_: self.world.log.append(("foreign after", "", "0")))
        self.picture = picture(self.world.model)
        self.registry = HookRegistry(self.world.model)
        self.expected = Expected()
        # Open blocks, innermost last: the context manager, and what the independent model does at the end.
        self.blocks: list[tuple[Any, Any]] = []

    @rule(
        name=st.sampled_from(NAMES),
        to=st.sampled_from([*PATHS, *GLOBS]),
        order=st.integers(-1, 1),
        block=st.booleans(),
    )
    def attach(self, name: str, to: str, order: int, block: bool) -> None:
        hook = Trace(name, self.world)
        if name in self.expected.hooks:
            with contextlib.suppress(LookupError):
                self.registry.attach(hook, to, name, order)
                raise AssertionError("a taken name was accepted")
            return
        if block:
            manager = self.registry.attached(hook, to, name, order)
            assert manager.__enter__() == name

            def end() -> None:
                if self.expected.hooks.get(name, {}).get("hook") is hook:
                    del self.expected.hooks[name]

            self.blocks.append((manager, end))
        else:
            assert self.registry.attach(hook, to, name, order) == name
        self.expected.hooks[name] = {"hook": hook, "paths": GLOBS.get(to, (to,)), "order": order, "enabled": True}

    @rule(verb=st.sampled_from(["detach", "enable", "disable"]), name=st.sampled_from(NAMES))
    def switch(self, verb: str, name: str) -> None:
        try:
            getattr(self.registry, verb)(name)
        except LookupError:
            assert name not in self.expected.hooks
            return
        if verb == "detach":
            del self.expected.hooks[name]
        else:
            self.expected.hooks[name]["enabled"] = verb == "enable"

    @rule(names=st.lists(st.sampled_from(NAMES), unique=True, max_size=2))
    def disabled(self, names: list[str]) -> None:
        manager = self.registry.disabled(*names)
        try:
            manager.__enter__()
        except LookupError:
            assert not set(names) <= set(self.expected.hooks)
            return
        chosen = [name for name in (names or self.expected.hooks) if self.expected.hooks[name]["enabled"]]
        for name in chosen:
            self.expected.hooks[name]["enabled"] = False

        def end() -> None:
            for name in chosen:
                if name in self.expected.hooks:
                    self.expected.hooks[name]["enabled"] = True

        self.blocks.append((manager, end))

    @precondition(lambda self: self.blocks)
    @rule(raises=st.booleans())
    def leave_block(self, raises: bool) -> None:
        manager, end = self.blocks.pop()
        error = BoomError() if raises else None
        with contextlib.suppress(BoomError):
            assert not manager.__exit__(type(error) if error else None, error, None)
        end()

    @rule(when=st.sampled_from(["before", "forward", None]), name=st.sampled_from(NAMES), path=st.sampled_from(PATHS))
    def forward(self, when: str | None, name: str, path: str) -> None:
        self.world.fails_at = None if when is None else (when, name if when == "before" else "", path)
        log, raises = self.expected.forward(self.world.fails_at)
        del self.world.log[:]
        try:
            assert self.world.model(7) == 7
            assert not raises
        except BoomError:
            assert raises
        # Foreign and own hooks interleave by when they were attached, so each kind is compared by itself.
        for foreign in (True, False):
            assert [entry for entry in self.world.log if entry[0].startswith("foreign") is foreign] == [
                entry for entry in log if entry[0].startswith("foreign") is foreign
            ]

    @rule()
    def clear(self) -> None:
        self.registry.clear()
        self.expected.hooks.clear()
        assert picture(self.world.model) == self.picture

    @invariant()
    def knows_what_is_attached(self) -> None:
        if hasattr(self, "registry"):
            assert set(self.registry) == set(self.expected.hooks)
            if not any(self.expected.on(path) for path in PATHS):
                assert picture(self.world.model) == self.picture

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            while self.blocks:
                self.leave_block(raises=False)
            self.clear()
            self.forward(None, "a", "")


class TestLife(Life.TestCase):  # type: ignore[misc, name-defined]
    """Any sequence of attaching, switching, nested blocks, forwards and errors leaves the modules as they were."""

    settings = settings(max_examples=150, stateful_step_count=30, derandomize=True, deadline=None)


def test_the_picture_sees_a_hook_that_stayed_and_one_that_moved() -> None:
    """The property above would not notice much if this failed."""
    model = nn.Sequential(nn.Identity())
    first = model[0].register_forward_hook(lambda *_: None)
    clean = picture(model)
    second = model[0].register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    assert picture(model) != clean
    second.remove()
    assert picture(model) == clean
    model[0]._forward_hooks.move_to_end(first.id)
    assert picture(model) == clean  # alone, it did not move
    torch.nn.Module.register_forward_hook(model[0], lambda *_: None)
    model[0]._forward_hooks.move_to_end(first.id)
    assert picture(model) != clean


# -- which call am I inside of? ----------------------------------------------------------------------------------------


class Around(Hook):
    """Notes the paths of the calls around the one that it is in."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def before(self, call: Call) -> None:
        self.seen.append([outer.path for outer in call.enclosing()])


class Stops(nn.Module):
    """Raises what it is told to, once."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.inner = nn.Identity()

    def forward(self, x: Any) -> Any:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.inner(x)


def around(model: nn.Module) -> tuple[Around, HookRegistry]:
    hook, registry = Around(), HookRegistry(model)
    registry.attach(hook, to=lambda path, module: True)
    return hook, registry


def test_a_call_knows_the_calls_around_it_of_every_registry() -> None:
    model = nn.Sequential(nn.Sequential(Stops()))
    HookRegistry(model).attach(LogShapes(), to="0")
    hook, inner = Around(), HookRegistry(model)
    inner.attach(hook, to="0")
    inner.attach(hook, to="0.0.inner")
    model(torch.zeros(1))
    assert hook.seen == [[], ["0", "0"]]  # one for each registry that has hooks on the module


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError()])
def test_after_an_error_and_after_ctrl_c_no_call_is_inside_of_what_ended(error: BaseException) -> None:
    """PyTorch runs no forward hook after a KeyboardInterrupt; what is left is not taken for a call that runs."""
    model, other = nn.Sequential(Stops()), nn.Sequential(nn.Identity())
    hook, _ = around(model)
    elsewhere, _ = around(other)
    model[0].error = error
    with pytest.raises(type(error)):
        model(torch.zeros(1))
    hook.seen.clear()
    other(torch.zeros(1))
    assert elsewhere.seen == [[], [""]]
    model[0].inner(torch.zeros(1))
    model(torch.zeros(1))
    assert hook.seen == [[], [], [""], ["0", ""]]


def test_ctrl_c_that_a_model_catches_leaves_what_is_around_it() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Stops(), Stops()

        def forward(self, x: Any) -> Any:
            with contextlib.suppress(KeyboardInterrupt):
                self.first(x)
            return self.second(x)

    model = Catches()
    hook, _ = around(model)
    model.first.error = KeyboardInterrupt()
    model(torch.zeros(1))
    assert hook.seen == [[], [""], [""], ["second", ""]]
    hook.seen.clear()
    model(torch.zeros(1))
    assert hook.seen[0] == []


def test_a_model_that_calls_itself_is_inside_of_itself() -> None:
    class Nested(nn.Module):
        def forward(self, depth: int) -> int:
            return depth if depth == 0 else self(depth - 1)

    model = Nested()
    hook, _ = around(model)
    HookRegistry(model).attach(LogShapes(), to="")
    model(2)
    assert [len(paths) for paths in hook.seen] == [0, 2, 4]


def test_threads_have_calls_of_their_own() -> None:
    barrier = threading.Barrier(2, timeout=10)

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Any) -> Any:
            barrier.wait()
            return self.inner(x)

    models = [Waits(), Waits()]
    hooks = [around(model)[0] for model in models]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: model(torch.zeros(1)), models))
    assert [hook.seen for hook in hooks] == [[[], [""]], [[], [""]]]
