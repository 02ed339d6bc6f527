"""``LogShapes``: one line for every forward, and nothing at all while the level is off."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import HookRegistry, LogShapes
from peft_hooks.hooks import log_shapes as log_module

from ...tools.wording import Golden, assert_says


class Pooling(nn.Module):
    """Puts its result into the dict that it gets, as the modules of Sentence Transformers do."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features["sentence_embedding"] = torch.zeros(2, 384)
        return features


def features() -> dict[str, Any]:
    mask = torch.tensor([[1] * 18, [1] * 6 + [0] * 12])
    return {"attention_mask": mask, "prompt": "no tensor"}


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="peft_hooks"):
        yield caplog


def logged(module: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Identity(), module)
    HookRegistry(model).attach(LogShapes(), to="1")
    return model


def test_a_forward_is_one_line_on_the_librarys_logger_at_debug(debug: pytest.LogCaptureFixture, golden: Golden) -> None:
    logged(Pooling())(features())
    ((logger, level, line),) = debug.record_tuples
    assert (logger, level) == ("peft_hooks", logging.DEBUG)
    golden("log", line)
    assert_says(line, "Pooling '1' | attention_mask i64[2,18] | 24/36 | right | sentence_embedding f32[2,384]")


def test_tensors_by_position_by_name_and_nested_are_named(debug: pytest.LogCaptureFixture, golden: Golden) -> None:
    class Takes(nn.Module):
        def forward(self, x: Tensor, pair: Any, *, attention_mask: Tensor) -> Any:
            return x + 1, {"same": pair[0], "new": (pair[1] * 2,)}

    logged(Takes())[1](
        torch.zeros(2, 3), [torch.zeros(1), torch.zeros(4, dtype=torch.bfloat16)], attention_mask=torch.ones(1, 3)
    )
    (line,) = debug.messages
    golden("log", line)
    given, made = line.split("out:")
    assert_says(given, "Takes '1' | 0 f32[2,3] | 1.0 f32[1] | 1.1 bf16[4] | attention_mask f32[1,3] | 3/3 | none")
    assert_says(made, "0 f32[2,3] | 1.new.0 bf16[4]")


def test_one_tensor_that_comes_out_is_the_output(debug: pytest.LogCaptureFixture, golden: Golden) -> None:
    logged(nn.Linear(2, 3))(torch.zeros(5, 2))
    (line,) = debug.messages
    golden("log", line)
    assert_says(line, "Linear '1' | 0 f32[5,2] | output f32[5,3]")


def test_a_forward_without_tensors_is_a_line_too(debug: pytest.LogCaptureFixture, golden: Golden) -> None:
    logged(nn.Identity())("text")
    (line,) = debug.messages
    golden("log", line)
    assert_says(line, "Identity '1'")


def test_a_forward_that_raises_is_logged_with_the_error_which_rises(
    debug: pytest.LogCaptureFixture, golden: Golden
) -> None:
    with pytest.raises(RuntimeError):
        logged(nn.Linear(2, 3))(torch.zeros(5, 7))
    (line,) = debug.messages
    golden("log", line)
    assert_says(line, "Linear '1' | 0 f32[5,7] | RuntimeError")


class Counting(Tensor):
    """A tensor that counts what is done with it."""

    used: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.used.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def counting_features() -> dict[str, Any]:
    given = features()
    given["attention_mask"] = given["attention_mask"].as_subclass(Counting)
    del Counting.used[:]
    return given


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_nothing_is_read_or_formatted_while_the_level_is_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("formatted")

    monkeypatch.setattr(log_module, "tensor_line", never)
    monkeypatch.setattr(log_module, "tensors_in", never)
    with caplog.at_level(level, logger="peft_hooks"):
        logged(Pooling())(counting_features())
        with pytest.raises(RuntimeError):
            logged(nn.Linear(2, 3))(torch.zeros(5, 7))
    assert Counting.used == []
    assert caplog.records == []


def test_the_mask_is_read_while_the_level_is_on(debug: pytest.LogCaptureFixture) -> None:
    """The twin of the test above: the counter does count."""
    logged(Pooling())(counting_features())
    assert "sum" in Counting.used
    assert len(debug.records) == 1


def test_a_mask_that_cannot_be_read_passes_while_the_level_is_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="peft_hooks"):
        assert logged(Pooling())({"attention_mask": torch.empty(2, 3, device="meta")})


def test_the_callers_features_are_handed_to_the_module_as_they_are(debug: pytest.LogCaptureFixture) -> None:
    given = features()
    assert logged(Pooling())(given) is given


def test_nothing_is_logged_inside_torch_compile(debug: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    torch.compile(logged(nn.Linear(2, 3)), backend="eager", fullgraph=True)(torch.zeros(5, 2))
    assert [record for record in debug.records if record.name == "peft_hooks"] == []


def test_the_library_puts_no_handler_on_its_logger() -> None:
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("peft_hooks").handlers)


def test_the_hook_travels_by_pickle() -> None:
    assert repr(pickle.loads(pickle.dumps(LogShapes()))) == "LogShapes()"
