"""For every test: tiny models, golden texts, and that a later failure is told whatever the test leaves behind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import Call, Hook, HookRegistry, register_prompt_mask_hooks
from peft_hooks.prompts.plan import Options

from .tools import matrix, methods, tiny
from .tools.wording import REWRITE, Golden

# What is asserted there is shown as what is asserted in a test.
pytest.register_assert_rewrite("tests.tools.checks", "tests.tools.clients")

Make = Callable[..., Any]
KEEP = "--keep-prompt"


def or_skip(make: Make) -> Make:
    """Let a builder skip the test, with the reason, where the installed releases cannot have what it makes."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except methods.Unavailable as error:
            return pytest.skip(str(error))
        except ValueError as error:  # as the programs' own builders are told it
            if "has no architecture" not in str(error):
                raise
            return pytest.skip(str(error))

    return made


@pytest.fixture(scope="session")
def plain() -> Make:
    """``plain(architecture, **options)``: a tiny model without an adapter."""
    return or_skip(tiny.plain)


@pytest.fixture(scope="session")
def adapted() -> Make:
    """``adapted(architecture, method, adapter={}, **options)``: a tiny model of one's own with an adapter, no hooks."""
    return or_skip(tiny.adapted)


@pytest.fixture(scope="session")
def put() -> Make:
    """``put(model, method, **config)``: puts an adapter with parameters that matter on a model."""
    return or_skip(methods.put_adapter)


@pytest.fixture(scope="session")
def shared(plain: Make) -> Make:
    """``shared(architecture, side, method)``: the one such model of the process, for tests that leave it as it is.

    Without an adapter if ``method`` is None.
    """
    bare = functools.cache(lambda architecture, side: plain(architecture, padding_side=side))
    tuned = or_skip(matrix.adapted)

    def of(architecture: str, side: str, method: str | None) -> Any:
        return bare(architecture, side) if method is None else tuned(architecture, side, method)

    return of


@pytest.fixture(scope="session")
def add_adapter() -> Make:
    """``add_adapter(model, config)``: Sentence Transformers' own; skips where transformers asks for a later PEFT."""

    def add(model: Any, config: Any) -> None:
        try:
            model.add_adapter(config)
        except ValueError as error:
            if "version of PEFT" not in str(error):
                raise
            pytest.skip(f"add_adapter: {error}")

    return add


@pytest.fixture
def clean_dynamo() -> Iterator[None]:
    """Nothing is traced before the test, and nothing that it traced stays."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that writes what is said now into the golden files, and the one that keeps prompts."""
    parser.addoption(REWRITE, action="store_true", help="write what is said now into tests/**/golden/*.txt")
    parser.addoption(KEEP, action="store_true", help='attach hooks with share_prompt="keep" where a test does not say')


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to rewrite golden files in several processes at once: each would write what it alone has seen."""
    if config.getoption(KEEP):
        keep_by_default()
    if config.getoption(REWRITE) and hasattr(config, "workerinput"):
        raise pytest.UsageError(f"{REWRITE} in one process only: leave out -n")


def keep_by_default() -> None:
    """Make "keep" the default of ``share_prompt``: what holds of the hooks has to hold of them with it, too."""
    attach: Any = register_prompt_mask_hooks
    attach.__kwdefaults__["share_prompt"] = "keep"
    make: Any = Options.__init__
    make.__defaults__ = (*make.__defaults__[:-1], "keep")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """``golden(renderer, text)``: the text is that of ``golden/<renderer>.txt`` beside the test, word by word."""
    file = str(request.path.relative_to(request.config.rootpath))
    return Golden(request.path.parent, request.node.name, file, request.config.getoption(REWRITE))


class Told(Hook):
    """Notes the errors that it is told of."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def failed(self, call: Call, error: BaseException) -> None:
        self.errors.append(error)


class Fails(nn.Module):
    """Fails whatever it is given."""

    def forward(self) -> None:
        raise ZeroDivisionError


@pytest.fixture(autouse=True)
def a_later_failure_is_told() -> Iterator[None]:
    """A call that stays among those that run is taken for the one around all that follow it."""
    yield
    model, hook = Fails(), Told()
    HookRegistry(model).attach(hook, to="")
    with pytest.raises(ZeroDivisionError) as caught:
        model()
    assert hook.errors == [caught.value]
