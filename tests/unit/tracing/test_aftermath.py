"""Exceptions that no trace has seen, explained from their traceback alone."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from peft_hooks import DimensionError, assert_dimensions, trace_shapes
from peft_hooks.tracing.aftermath import explain_afterwards

from ...tools.wording import assert_says


class Tagger(nn.Module):
    """Forgets batch_first."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 64)
        self.lstm = nn.LSTM(64, 32)

    def forward(self, ids: torch.Tensor) -> Any:
        hidden = torch.zeros(1, len(ids), 32)
        return self.lstm(self.words(ids), (hidden, hidden))


class Around(nn.Module):
    """Raises an error of its own for whatever the tagger raises."""

    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.tagger = Tagger()
        self.chained = chained

    def forward(self, ids: torch.Tensor) -> Any:
        try:
            return self.tagger(ids)
        except RuntimeError as error:
            if self.chained:
                raise ValueError("these cannot be tagged") from error
            raise ValueError("these cannot be tagged") from None


class Says(nn.Module):
    def forward(self, ids: torch.Tensor) -> Any:
        raise ValueError(f"give me 3 dimensions, not {ids.dim()}")


IDS = torch.ones(2, 4, dtype=torch.long)


def raised(work: Callable[[], Any]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def test_a_forward_that_failed_is_explained_with_neither_hooks_nor_a_trace() -> None:
    error = raised(lambda: Tagger()(IDS))
    failure = explain_afterwards(error)
    assert failure is not None
    assert failure.path == "lstm"
    assert_says(failure.fix, "batch_first=True | LSTM 'lstm'")
    (note,) = notes(error)
    assert note.splitlines()[0] == "peft_hooks: LSTM 'lstm' raised RuntimeError"


def test_a_forward_called_by_itself_is_explained_as_well() -> None:
    error = raised(lambda: Tagger().forward(IDS))
    assert explain_afterwards(error) is not None


class Short(nn.Module):
    """Gives its first parameter another name."""

    def __init__(this) -> None:  # noqa: N805
        super().__init__()
        this.head = nn.Linear(3, 4)

    def forward(this, given: torch.Tensor) -> Any:  # noqa: N805
        return this.head(given)


def test_self_may_have_another_name() -> None:
    failure = explain_afterwards(raised(lambda: Short()(torch.zeros(2, 5))))
    assert failure is not None
    assert failure.summary == "Linear 'head' raised RuntimeError"


def test_rows_and_classes_of_a_loss_are_not_exchanged_where_the_batch_is_not_known() -> None:
    scores, labels = torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)
    failure = explain_afterwards(raised(lambda: functional.cross_entropy(scores, labels)))
    assert failure is not None
    assert "transpose" not in str(failure)


def test_what_the_traceback_does_not_tell_is_said_to_be_unknown_with_what_would_tell() -> None:
    failure = explain_afterwards(raised(lambda: Endless()(IDS)))
    assert failure is not None
    assert failure.kind == "unknown"
    assert "trace_shapes(model)" in (failure.fix or "")


class Endless(nn.Module):
    def forward(self, ids: torch.Tensor) -> Any:
        return self.forward(ids)


def test_a_text_that_is_too_long_is_told_by_what_the_model_was_given() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=100, max_position_embeddings=20, **sizes))
    failure = explain_afterwards(raised(lambda: model(torch.ones(1, 30, dtype=torch.long))))
    assert failure is not None
    assert_says(failure.fix, "truncate | 20 tokens")


def test_a_second_look_adds_nothing() -> None:
    error = raised(lambda: Tagger()(IDS))
    explain_afterwards(error)
    assert explain_afterwards(error) is None
    assert len(notes(error)) == 1


def test_what_a_trace_has_explained_keeps_its_note() -> None:
    def traced() -> None:
        model = Tagger()
        with trace_shapes(model):
            model(IDS)

    error = raised(traced)
    before = notes(error)
    assert explain_afterwards(error) is None
    assert notes(error) == before
    assert "in its call 1 of forward 1" in before[0]


def test_the_error_that_another_came_from_gains_the_note() -> None:
    error = raised(lambda: Around(chained=True)(IDS))
    failure = explain_afterwards(error)
    assert failure is not None
    assert failure.path == "tagger.lstm"
    assert notes(error) == []
    assert error.__cause__ is not None
    assert len(notes(error.__cause__)) == 1


def test_an_error_that_python_does_not_print_is_left_alone() -> None:
    error = raised(lambda: Around(chained=False)(IDS))
    assert explain_afterwards(error) is None
    assert error.__context__ is not None
    assert notes(error.__context__) == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups")
def test_each_error_of_a_group_is_explained() -> None:
    errors = [raised(lambda: Tagger()(IDS)), raised(lambda: nn.Linear(3, 4)(torch.zeros(2, 5))), KeyError("a")]
    group = ExceptionGroup("several", errors)  # noqa: F821
    assert explain_afterwards(group) is not None
    assert [len(notes(error)) for error in (group, *errors)] == [0, 1, 1, 0]


def test_a_circle_of_errors_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert explain_afterwards(first) is None


def test_a_loss_is_explained_as_a_module_or_as_a_function() -> None:
    scores, labels = torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)
    for loss, who in (
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (functional.cross_entropy, "code outside any forward"),
    ):
        failure = explain_afterwards(raised(lambda: loss(scores, labels)))  # noqa: B023
        assert failure is not None
        assert failure.summary == f"{who} raised ValueError"
        assert failure.sizes == (2, 3)


def test_an_expression_of_tensors_is_explained() -> None:
    left, right = torch.zeros(3, 4), torch.zeros(3, 4)
    failure = explain_afterwards(raised(lambda: left @ right))
    assert failure is not None
    assert failure.sizes == (4, 3)


@pytest.mark.parametrize(
    "work",
    [
        lambda: Says()(IDS),
        lambda: {}["a"],
        lambda: None.shape,  # type: ignore[attr-defined]
        lambda: int("a"),
        lambda: Path("/no/such/file").read_text(),
        lambda: torch.load("/no/such/file"),
        lambda: Tagger().load_state_dict({}),
        lambda: Tagger().nothing,
        lambda: torch.zeros(2).sum().backward(),
    ],
)
def test_what_is_said_on_purpose_or_has_nothing_to_do_with_shapes_is_left_alone(work: Callable[[], Any]) -> None:
    error = raised(work)
    assert explain_afterwards(error) is None
    assert notes(error) == []


def test_a_hook_that_failed_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].register_forward_hook(lambda module, args, output: output @ output)
    failure = explain_afterwards(raised(lambda: model(torch.zeros(2, 3))))
    assert failure is not None
    assert failure.hook == "the hook '<lambda>'"


def test_what_this_library_raises_says_enough() -> None:
    def checked() -> None:
        model = nn.Sequential(nn.Linear(4, 3))
        with assert_dimensions(model, {"0": {"input": "batch seq 4"}}):
            model(torch.zeros(7, 4))

    error = raised(checked)
    assert isinstance(error, DimensionError)
    assert explain_afterwards(error) is None


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Hostile(nn.Module):
    def forward(self, ids: torch.Tensor) -> Any:
        return {}[Strange()]


class Strange:
    def __hash__(self) -> int:
        raise Unprintable

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


def test_a_strange_error_is_no_reason_to_raise() -> None:
    error = raised(lambda: Hostile()(IDS))
    explain_afterwards(error)


def test_no_tensor_is_kept() -> None:
    """No name here is the error's: before Python 3.13 a frame that was looked at keeps what its names were."""

    def fail() -> weakref.ref[torch.Tensor]:
        given = torch.zeros(2, 5)
        try:
            nn.Linear(3, 4)(given)
        except RuntimeError:
            failure = explain_afterwards(sys.exc_info()[1])  # type: ignore[arg-type]
        assert failure is not None
        return weakref.ref(given)

    fail()
    gc.collect()
    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_where_torch_was_never_imported_nothing_is() -> None:
    code = (
        "import sys\nfrom peft_hooks.tracing.aftermath import explain_afterwards\n"
        "assert explain_afterwards(ValueError('a')) is None\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_pytorch_layer_returned_is_worked_out_if_nothing_recorded_it() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 6)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([head(x) for head in self.heads])

    failure = explain_afterwards(raised(lambda: Heads()(torch.zeros(2, 8))))
    assert failure is not None
    assert_says(failure.cause, "self.heads[0](x)` [2, 4] | self.heads[1](x)` [2, 6]")


def test_nothing_is_worked_out_for_a_layer_whose_output_a_hook_may_have_changed() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)
            self.b.register_forward_hook(lambda module, args, output: output[:, :3])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.a(x), self.b(x)])

    failure = explain_afterwards(raised(lambda: Pair()(torch.zeros(2, 8))))
    assert failure is not None
    assert failure.kind == "unknown"
