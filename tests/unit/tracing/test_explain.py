"""Why a forward raised: the note that the exception gains, whose words are golden, and ``trace.failure``."""

from __future__ import annotations

import functools
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import Hook, HookRegistry, ShapeTrace, trace_shapes
from peft_hooks.testing import TEXTS, tiny_model
from peft_hooks.tracing.explain.entry import add_explanation
from peft_hooks.tracing.explain.failure import Failure
from peft_hooks.tracing.explain.promises import what_changed

from ...tools.wording import Golden, assert_says


class Residual(nn.Module):
    """``dense(x) + x``: the place where a length that does not fit is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        result: Tensor = self.dropout(self.dense(hidden)) + hidden
        return result if mask is None else result * mask.unsqueeze(-1)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.residual = Residual()

    def forward(self, token_embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        pooled: Tensor = self.residual(token_embeddings, attention_mask).sum(1)
        return pooled


class Needs(nn.Module):
    def forward(self, features: dict[str, Any]) -> Any:
        return features["token_embeddings"] * 2


class Makes(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Any) -> Any:
        return self.value


def shorten(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output[:, :-1]


def trace_of(model: nn.Module, *args: Any, error: type[Exception] = RuntimeError, **kwargs: Any) -> ShapeTrace:
    with torch.no_grad(), trace_shapes(model) as trace, pytest.raises(error):
        model(*args, **kwargs)
    return trace


def explained(model: nn.Module, *args: Any, error: type[Exception] = RuntimeError, **kwargs: Any) -> Failure:
    failure = trace_of(model, *args, error=error, **kwargs).failure
    assert failure is not None
    return failure


@pytest.fixture
def failure_of(golden: Golden) -> Callable[..., Failure]:
    """Explain a failed forward in a note that is golden, but for line numbers and what is PyTorch's own code."""

    def of(model: nn.Module, *args: Any, **options: Any) -> Failure:
        failure = explained(model, *args, **options)
        note = re.sub(r"(  at test_explain\.py):\d+", r"\1:<line>", str(failure))
        golden("note", re.sub(r"  at \w+\.py:\d+: .*", "  at <a line of PyTorch>", note))
        return failure

    return of


def model_of(architecture: str) -> Any:
    try:
        return tiny_model(architecture)
    except ValueError as error:
        pytest.skip(str(error))


def features_of(model: Any, count: int = 4) -> dict[str, Any]:
    return dict((model.preprocess if hasattr(model, "preprocess") else model.tokenize)(list(TEXTS[:count])))


@pytest.fixture(scope="module")
def bert() -> Any:
    return tiny_model("bert")


# -- the exception -----------------------------------------------------------------------------------------------------


def test_the_exception_keeps_its_type_and_traceback_and_gains_the_note() -> None:
    model = nn.Sequential(Residual())
    with pytest.raises(RuntimeError) as caught, trace_shapes(model) as trace:
        model(torch.zeros(2, 9, 5))
    assert type(caught.value) is RuntimeError
    assert str(caught.value).startswith("mat1 and mat2 shapes cannot be multiplied (18x5 and 4x4)")
    assert caught.value.__notes__ == [str(trace.failure)]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "forward"


def test_the_note_says_who_on_what_why_and_what_to_do(failure_of: Any) -> None:
    model = nn.Sequential(Residual()).eval()
    model[0].dense.register_forward_hook(shorten)
    failure = failure_of(model, torch.zeros(2, 9, 4))
    summary, place, *rest = str(failure).splitlines()
    assert_says(summary, "peft_hooks: | Residual '0' | RuntimeError | call 1 of forward 1")
    assert_says(place, "test_explain.py:")
    assert_says(
        "\n".join(rest), "hidden  f32[2,9,4]", "`self.dropout(self.dense(hidden))` [2, 8, 4] | Dropout '0.dropout'"
    )
    assert_says(failure.cause, "Linear '0.dense' | [2, 8, 4] | [2, 9, 4] | 1 position fewer | the hook 'shorten'")
    assert_says(failure.fix, "Linear '0.dense'")
    assert_says(rest[-2], "cause: ", failure.cause)
    assert_says(rest[-1], f"fix: {failure.fix}")
    assert (failure.path, failure.module, failure.row) == ("0", "Residual", 1)
    assert (failure.kind, failure.culprit, failure.sizes, failure.dimension) == ("length", "0.dense", (8, 9), 1)


def test_a_forward_that_works_gains_no_note() -> None:
    model = nn.Sequential(Residual())
    with trace_shapes(model) as trace:
        model(torch.zeros(2, 9, 4))
    assert len(trace) == 4
    assert trace.failure is None


def test_an_error_that_the_model_handles_is_no_failure() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.dense(x)
            except RuntimeError:
                return x

    model = Tries()
    with torch.no_grad(), trace_shapes(model) as trace:
        model(torch.zeros(2, 3))
    assert trace.failure is None
    assert [row.state for row in trace] == ["done", "raised"]


def test_an_error_that_is_being_handled_around_the_forward_is_not_the_forwards() -> None:
    model = nn.Sequential(nn.ReLU())
    try:
        raise ValueError("before")
    except ValueError:
        with trace_shapes(model) as trace:
            model(torch.zeros(1))
    assert trace.failure is None
    assert [row.state for row in trace] == ["done", "done"]


def test_nested_traces_explain_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError) as caught, trace_shapes(model) as outer, trace_shapes(model) as inner:
        model(torch.zeros(1, 3))
    assert len(caught.value.__notes__) == 1
    assert outer.failure is not None
    assert inner.failure is not None
    assert outer.failure.path == inner.failure.path == "0"


def test_the_next_forward_after_a_failure_is_a_new_one() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with trace_shapes(model) as trace:
        with pytest.raises(RuntimeError):
            model.forward(torch.zeros(1, 3))
        model.forward(torch.zeros(1, 2))
    assert [(row.forward, row.state) for row in trace] == [(1, "raised"), (2, "done")]
    assert trace.failure is not None
    assert trace.failure.forward == 1


def test_without_notes_the_explanation_is_an_attribute_and_a_log_line(
    caplog: pytest.LogCaptureFixture, failure_of: Any
) -> None:
    class Old(RuntimeError):
        add_note = None  # as on Python 3.10

    error, failure = Old(), failure_of(nn.Linear(2, 2), torch.zeros(1, 3))
    with caplog.at_level(logging.WARNING, logger="peft_hooks"):
        add_explanation(error, failure)
        add_explanation(error, failure)
    assert error.__notes__ == [str(failure)]
    assert caplog.messages == [str(failure)]


def test_an_explanation_that_fails_does_not_hide_the_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("peft_hooks.tracing.explain.entry.explain", broken)
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), trace_shapes(model) as trace:
        model(torch.zeros(1, 3))
    assert trace.failure is None
    assert caplog.messages == ["the failed forward could not be explained"]


# -- hooks of the user -------------------------------------------------------------------------------------------------


def raises(*args: Any) -> None:
    raise ValueError("mine")


class Raises(Hook):
    def before(self, call: Any) -> None:
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("attach", "name"),
    [
        (lambda module: module.register_forward_pre_hook(raises), "the hook 'raises'"),
        (lambda module: module.register_forward_hook(raises), "the hook 'raises'"),
        (lambda module: module.register_forward_hook(functools.partial(raises, 1)), "the hook 'raises'"),
        (lambda module: HookRegistry(module).attach(Raises(), to="", name="check"), "the hook 'check' (Raises)"),
    ],
    ids=["pre-hook", "hook", "partial", "registry"],
)
@pytest.mark.parametrize("path", ["", "0"])
def test_a_hook_that_raises_is_told_apart_from_the_model(attach: Any, name: str, path: str, failure_of: Any) -> None:
    model = nn.Sequential(nn.ReLU())
    keep = attach(model.get_submodule(path))
    failure = failure_of(model, torch.zeros(1), error=ValueError)
    assert keep is not None
    assert failure.hook == name
    assert failure.path == path
    assert failure.kind == "hook"
    assert_says(failure.summary, f"{name} on {failure.where} | ValueError | not")
    assert_says(failure.cause, f"{name} | mine")


def test_a_hook_that_is_there_is_not_blamed_for_the_model(failure_of: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_pre_hook(lambda module, args: None)
    failure = failure_of(model, torch.zeros(1, 3))
    assert (failure.hook, failure.kind) == (None, "width")


# -- causes ------------------------------------------------------------------------------------------------------------


def test_a_mask_that_is_too_short_is_named_with_what_it_masks(failure_of: Any) -> None:
    failure = failure_of(Masked(), torch.zeros(2, 9, 4), attention_mask=torch.zeros(2, 7))
    longer, shorter = failure.finding.bounds
    assert_says(longer, "9 is dimension 1 | token_embeddings [2, 9, 4] | Masked ''")
    assert_says(shorter, "7 is dimension 1 | attention_mask [2, 7] | Masked ''")
    assert_says(failure.cause, "Masked '' | token_embeddings [2, 9, 4] | attention_mask [2, 7]")
    assert failure.path == "residual"


def test_a_wrong_width_names_the_layer_that_takes_another(failure_of: Any) -> None:
    failure = failure_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(5, 2)), torch.zeros(4, 2))
    found, wanted = failure.finding.bounds
    assert_says(found, "3 is dimension 1 | input [4, 3] | Linear '0'")
    assert_says(wanted, "5 | in_features | Linear '1'")
    assert_says(failure.cause, "input [4, 3] | Linear '0' | 3 wide | Linear '1' takes 5 | in_features")


def test_a_transposed_input_is_said_to_be_transposed(failure_of: Any) -> None:
    failure = failure_of(nn.Linear(4, 4), torch.zeros(2, 4, 9))
    assert failure.kind == "transposed"
    assert_says(failure.cause, "input [2, 4, 9] | Linear '' | 9 wide | takes 4 | in_features | has 4 in dimension 1")
    assert_says(failure.fix, "input.transpose(1, 2) | Linear '' | back")


def test_a_lost_row_is_found_where_it_was_lost(failure_of: Any) -> None:
    model = nn.Sequential(Residual())
    model[0].dropout.register_forward_hook(lambda module, args, output: output[1:])
    failure = failure_of(model, torch.zeros(3, 9, 4))
    assert (failure.kind, failure.culprit, failure.sizes) == ("batch", "0.dropout", (2, 3))


def test_a_wrong_dtype_names_tensor_and_parameters(failure_of: Any) -> None:
    failure = failure_of(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), torch.zeros(1, 2).half())
    assert failure.kind == "dtype"
    assert_says(failure.cause, "input | Sequential '' | f16 | Linear '1' | f32")


def test_floats_are_not_looked_up(failure_of: Any) -> None:
    failure = failure_of(nn.Embedding(3, 2), torch.zeros(2, 2))
    assert_says(failure.cause, "input | Embedding '' | f32 | integers")


def test_a_missing_key_is_named_with_what_was_given(failure_of: Any) -> None:
    failure = failure_of(nn.Sequential(Needs()), {"input_ids": torch.zeros(2, 3)}, error=KeyError)
    assert_says(failure.cause, "'token_embeddings' | Needs '0' | input_ids")


def test_none_is_traced_to_the_module_that_returned_it(failure_of: Any) -> None:
    failure = failure_of(nn.Sequential(Makes(None), nn.Linear(2, 2)), torch.zeros(1, 2), error=TypeError)
    assert (failure.kind, failure.culprit) == ("none", "0")
    assert_says(failure.cause, "Makes '0' | None")


def test_a_tensor_on_another_device_is_named(failure_of: Any) -> None:
    model = nn.Sequential(Makes(torch.zeros(1, 2, device="meta")), nn.Linear(2, 2))
    failure = failure_of(model, torch.zeros(1, 2))
    assert failure.kind == "device"
    assert_says(failure.cause, "input | Makes '0' | on meta | Linear '1' | on cpu")
    assert failure.culprit == "0"


def test_an_index_beyond_the_table_is_said_to_be(failure_of: Any) -> None:
    failure = failure_of(nn.Embedding(3, 2), torch.tensor([[7]]), error=IndexError)
    assert_says(failure.cause, "input [1, 1] | from 7 to 7 | Embedding '' | 3 rows, 0 to 2 | input[0, 0]")


def test_an_exception_of_the_users_own_gets_no_cause(failure_of: Any) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    failure = failure_of(nn.Sequential(Stubborn()), torch.zeros(1))
    assert (failure.kind, failure.fix) == ("own", None)
    assert_says(str(failure).splitlines()[-1], "code of Stubborn '0' | itself")
    assert "cause" not in str(failure)


def test_what_is_not_known_is_said_to_be_unknown(failure_of: Any) -> None:
    class Decomposes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            factor: Tensor = torch.linalg.cholesky(-x)
            return factor

    failure = failure_of(nn.Sequential(Decomposes()), torch.eye(2))
    assert (failure.kind, failure.fix) == ("unknown", None)
    assert failure.cause.startswith("not known: ")


# -- real models -------------------------------------------------------------------------------------------------------


def test_virtual_tokens_that_a_mask_does_not_cover_are_the_cause(bert: Any) -> None:
    """As Pooling fails before 3.3, on a stage of our own: later releases fall back in silence."""
    import copy

    from peft import PromptTuningConfig, get_peft_model

    model = copy.deepcopy(bert)
    inside = "model" if "model" in model[0]._modules else "auto_model"
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5)
    setattr(model[0], inside, get_peft_model(getattr(model[0], inside), config))

    class Multiplies(nn.Module):
        def forward(self, features: Any) -> Any:
            short = features["attention_mask"][:, -18:]
            return features["token_embeddings"] * self.widen(short)

        def widen(self, mask: Tensor) -> Tensor:
            return mask.unsqueeze(-1)

    model._modules["1"] = Multiplies()
    features = features_of(model)
    failure = explained(model, features)
    assert failure.sizes == (23, 18)
    assert_says(failure.cause, "23 - 18 = 5 = num_virtual_tokens | PROMPT_TUNING | 'default'")
    assert failure.fix == "peft_hooks.register_prompt_mask_hooks(model)"


def test_more_positions_than_the_model_has_are_counted(bert: Any) -> None:
    features = {
        key: torch.cat([value] * 12, 1) if isinstance(value, Tensor) else value
        for key, value in features_of(bert).items()
    }
    failure = explained(bert, features)
    assert "'0.model.embeddings'" in failure.cause.replace("auto_model", "model")
    assert "132 positions" in failure.cause and " 216" in failure.cause
    assert failure.fix is not None
    assert failure.fix.startswith("model.max_seq_length = 132")


def test_features_of_another_length_are_named_at_the_door(bert: Any) -> None:
    features = features_of(bert)
    features["attention_mask"] = features["attention_mask"][:, :-2]
    failure = explained(bert, features)
    assert failure.module.endswith("SelfAttention")
    assert failure.sizes == (18, 16)
    assert failure.cause.endswith("which disagree in the length dimension")


@pytest.mark.parametrize("architecture", ["bert", "qwen3", "t5"])
def test_a_layer_that_drops_a_position_is_found_from_where_it_is_noticed(architecture: str) -> None:
    model = model_of(architecture)
    linears = [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]
    for path, module in linears[:4]:
        handle = module.register_forward_hook(shorten)
        failure = explained(model, features_of(model))
        handle.remove()
        assert failure.culprit == path
        assert_says(failure.cause, "1 position fewer | the hook 'shorten'")


def test_the_failing_module_is_named_when_it_is_too_deep_to_be_traced(bert: Any) -> None:
    features = features_of(bert)
    features["input_ids"] = features["input_ids"].float()
    with trace_shapes(bert, depth=1) as trace, pytest.raises(RuntimeError):
        bert(features)
    assert trace.failure is not None
    assert trace.failure.path == "0"
    assert trace.failure.inside is not None
    assert trace.failure.inside.startswith("Embedding '0.")


# -- comparing shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ((2, 9, 4), (2, 9, 4), None),
        ((2, 9, 4), (2, 8, 4), ("length", "1 position fewer")),
        ((2, 9, 4), (2, 11, 4), ("length", "2 positions more")),
        ((2, 9, 4), (4, 9, 4), ("batch", "its rows are doubled")),
        ((2, 9, 4), (2, 9, 3), ("width", "1 column fewer")),
        ((2, 9, 4), (9, 2, 4), ("transposed", "its dimensions are transposed")),
        ((2, 9, 4), (2, 4), ("rank", "2 dimensions instead of 3")),
        ((2, 9, 4), (3, 8, 4), None),
        ((2, 1, 9, 9), (2, 1, 9, 8), ("length", "1 position fewer")),
    ],
)
def test_changes_of_shapes_have_names(before: Any, after: Any, change: Any) -> None:
    assert what_changed(before, after) == change


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_what_code_made_of_an_input_is_not_said_to_have_come_in() -> None:
    class Hot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(10, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(nn.functional.one_hot(x, 10))  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError), trace_shapes(model := Hot()) as trace:
        model(torch.tensor([1, 2]))
    assert trace.failure is not None
    assert "one_hot(x, 10)`, made from x, passed to" in trace.failure.finding.cause


def test_an_attribute_of_a_layer_inside_is_named_with_its_path() -> None:
    model = nn.TransformerDecoderLayer(16, 2, batch_first=True)
    with pytest.raises(RuntimeError), trace_shapes(model) as trace:
        model(torch.zeros(2, 5, 16), torch.zeros(2, 7, 32))
    assert trace.failure is not None
    assert "takes 16 (its multihead_attn.kdim)" in trace.failure.finding.cause


def test_a_librarys_own_check_outside_any_forward_gets_no_note() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(RuntimeError) as caught, trace_shapes(model) as trace:
        model(torch.ones(2, 3))
        model.load_state_dict({"weight": torch.zeros(2, 3), "bias": torch.zeros(1)})
    assert trace.failure is None
    assert not hasattr(caught.value, "__notes__")


def test_a_missing_device_is_not_blamed_on_the_shapes() -> None:
    class Moves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to("xpu")

    model = Moves()
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)), trace_shapes(model) as trace:
        model(torch.ones(2))
    assert trace.failure is not None
    assert trace.failure.kind != "operation"
