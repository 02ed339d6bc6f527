"""Fixtures for tests of models and hooks, and ``--explain-shapes``, in every pytest run where peft_hooks is installed.

Nothing is imported before a fixture is used or a test has failed, not even torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from .hooks.registry import HookRegistry
    from .testing.leftovers import Left


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--explain-shapes``."""
    about = "explain why the forward of a PyTorch module failed, in a note below the error (peft_hooks)"
    parser.getgroup("peft_hooks").addoption("--explain-shapes", action="store_true", help=about)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Add the note to the error of a test or its fixtures, before pytest writes its report."""
    if call.excinfo is not None and item.config.getoption("explain_shapes", default=False):
        from .tracing.aftermath import explain_afterwards

        explain_afterwards(call.excinfo.value)


@pytest.fixture
def tiny_sentence_model(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Make tiny SentenceTransformers; takes the arguments of ``peft_hooks.testing.tiny_model``.

    Skips the test if the installed transformers does not have the architecture. If the test also uses
    ``no_hooks_left``, the models are watched.

    Example:
        >>> def test_padding(tiny_sentence_model):
        ...     assert_padding_invariant(tiny_sentence_model("bert", pooling="cls"))
    """
    watch = _watch(request)

    def make(architecture: str = "bert", **options: Any) -> Any:
        from .testing import tiny_model

        try:
            model = tiny_model(architecture, **options)
        except ValueError as error:
            if "has no architecture" not in str(error):
                raise
            return pytest.skip(str(error))
        return model if watch is None else watch(model)

    return make


@pytest.fixture
def no_hooks_left() -> Iterator[Callable[[Any], Any]]:
    """Fail the test at its end if a watched model has more hooks than before, whoever put them there.

    Example:
        >>> def test_block(no_hooks_left):
        ...     model = no_hooks_left(load_model())
        ...     with prompt_mask_hooks(model):
        ...         model.encode("a text")
    """
    watched: list[tuple[nn.Module, set[Left]]] = []

    def watch(model: Any) -> Any:
        from .testing.leftovers import hooks_on

        watched.append((model, set(hooks_on(model, foreign=True))))
        return model

    yield watch
    for model, before in watched:
        from .testing.leftovers import hooks_on, written

        left = [hook for hook in hooks_on(model, foreign=True) if hook not in before]
        if left:
            pytest.fail(written(model, left), pytrace=False)


def _watch(request: pytest.FixtureRequest) -> Callable[[Any], Any] | None:
    """Return the value of ``no_hooks_left``, if the test uses it; this sets it up before the fixture that asks."""
    return request.getfixturevalue("no_hooks_left") if "no_hooks_left" in request.fixturenames else None


@pytest.fixture
def assert_dimensions(request: pytest.FixtureRequest) -> Iterator[Callable[..., HookRegistry]]:
    """Check named dimensions in every forward until the test ends; takes what ``peft_hooks.assert_dimensions`` takes.

    Example:
        >>> def test_encoder(assert_dimensions):
        ...     model = make_model()
        ...     assert_dimensions(model, {"encoder": {"x": "batch seq 64", "mask": "bool: batch seq"}})
        ...     train(model)
    """
    _watch(request)
    with contextlib.ExitStack() as stack:

        def attach(model: Any, contracts: Any = None, **options: Any) -> HookRegistry:
            from .dimensions.scope import assert_dimensions as block

            return stack.enter_context(block(model, contracts, **options))

        yield attach
