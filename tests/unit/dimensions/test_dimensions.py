"""``AssertDimensions``: named dimensions across the tensors and modules of one forward."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from peft_hooks import AssertDimensions, DimensionError, DimensionWarning, Hook, HookRegistry, LogShapes
from peft_hooks.dimensions.bindings import Bindings, Bound
from peft_hooks.dimensions.check import disagreement
from peft_hooks.dimensions.lookup import output_of
from peft_hooks.dimensions.spec import parse

from ...tools.wording import Golden, assert_says


class Update(nn.Module):
    """Adds tensors to the dict that it gets, as the modules of Sentence Transformers do."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self.tensors = tensors

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features.update(self.tensors)
        return features


def run(hook: Hook, features: Any, module: nn.Module | None = None) -> Any:
    model = nn.Sequential(module or nn.Identity())
    with HookRegistry(model).attached(hook, to="0"):
        return model(features)


@pytest.fixture
def message(golden: Golden) -> Callable[..., str]:
    """Run a module of which a hook has to complain, and return in what words, which are golden."""

    def told(hook: Hook, features: Any, module: nn.Module | None = None) -> str:
        with pytest.raises(DimensionError) as caught:
            run(hook, features, module)
        golden("disagreements", caught.value)
        return str(caught.value)

    return told


def sizes(bindings: Bindings) -> dict[str, int]:
    return {name: size for name, (size, *_) in bindings.forward().bound.items()}


TEXT = {"token_embeddings": "batch seq hidden", "attention_mask": "batch seq"}

# -- one module --------------------------------------------------------------------------------------------------------


def test_tensors_that_agree_pass_and_the_output_is_left_alone() -> None:
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9)}
    assert run(AssertDimensions(TEXT, TEXT), features) is features


def test_a_tensor_that_disagrees_is_named_with_what_bound_the_dimension(message: Any) -> None:
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 5)}
    assert_says(
        message(AssertDimensions(TEXT), features),
        "Identity '0' input | attention_mask | [2, 5] | seq = 9 | token_embeddings [2, 9, 4] | 4 fewer",
    )
    features["attention_mask"] = torch.zeros(3, 9)
    assert_says(
        message(AssertDimensions(TEXT), features),
        "Identity '0' input | attention_mask | [3, 9] | batch = 2 | token_embeddings [2, 9, 4] | 1 more",
    )


def test_the_output_is_held_against_the_input(message: Any) -> None:
    hook = AssertDimensions({"attention_mask": "batch seq"}, {"token_embeddings": "batch seq hidden=4"})
    features = {"attention_mask": torch.zeros(2, 5)}
    assert run(hook, dict(features), Update(token_embeddings=torch.zeros(2, 5, 4)))
    assert_says(
        message(hook, dict(features), Update(token_embeddings=torch.zeros(2, 15, 4))),
        "Update '0' output | token_embeddings | [2, 15, 4] | seq = 5 | attention_mask [2, 5] | 10 more",
    )


def test_a_declared_size_is_held_with_and_without_a_name(message: Any) -> None:
    assert_says(
        message(AssertDimensions({"x": "batch hidden=384"}), {"x": torch.zeros(2, 32)}),
        "Identity '0' input | [2, 32] | hidden = 384",
    )
    assert_says(
        message(AssertDimensions({"x": "batch 384"}), {"x": torch.zeros(2, 32)}),
        "Identity '0' input | [2, 32] | size = 384",
    )
    assert run(AssertDimensions({"x": "batch hidden=384 _"}), {"x": torch.zeros(2, 384, 7)})


def test_a_name_that_stands_twice_in_one_tensor_is_one_size(message: Any) -> None:
    hook = AssertDimensions({"x": "n n"})
    assert run(hook, {"x": torch.zeros(3, 3)})
    assert_says(message(hook, {"x": torch.zeros(3, 4)}), "Identity '0' input | n = 3 | x [3, 4] | 1 more")


def test_any_size_binds_nothing() -> None:
    assert run(AssertDimensions({"x": "_ _"}), {"x": torch.zeros(3, 4)})


def test_another_number_of_dimensions_is_named_with_the_contract(message: Any) -> None:
    assert_says(
        message(AssertDimensions({"x": "batch seq _ 3"}), {"x": torch.zeros(2, 9)}),
        "Identity '0' input | [2, 9] | 4 dimensions | batch seq _ 3",
    )


def test_what_is_not_there_or_is_no_tensor_is_not_checked() -> None:
    assert run(AssertDimensions(TEXT), {"attention_mask": [[1, 1]], "more": torch.zeros(3)})


def test_a_difference_with_a_known_cause_is_explained_with_the_way_out(message: Any) -> None:
    cause = "num_virtual_tokens of the active PROMPT_TUNING adapter 'default': attach the mask hooks"
    hook = AssertDimensions(TEXT, causes={10: cause})
    features = {"token_embeddings": torch.zeros(2, 19, 4), "attention_mask": torch.zeros(2, 9)}
    assert_says(
        message(hook, features),
        "Identity '0' input | attention_mask | [2, 9] | seq = 19 | token_embeddings [2, 19, 4]",
        "10 fewer | 10 = num_virtual_tokens | PROMPT_TUNING | 'default'",
    )
    features["attention_mask"] = torch.zeros(2, 10)
    told = message(hook, features)
    assert_says(told, "[2, 19, 4] | 9 fewer")
    assert "num_virtual_tokens" not in told


def test_every_call_begins_with_nothing_bound() -> None:
    hook = AssertDimensions(TEXT)
    model = nn.Sequential(nn.Identity())
    HookRegistry(model).attach(hook, to="0")
    for length in (5, 7):
        assert model({"token_embeddings": torch.zeros(2, length, 4), "attention_mask": torch.zeros(2, length)})


def test_a_module_inside_another_has_bindings_of_its_own() -> None:
    """One hook on both: what the inner call binds must not be held against the outer one."""

    class Chunks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            for chunk in features["x"].split(1):
                self.inner({"x": chunk})
            return {"y": features["x"]}

    model = Chunks()
    HookRegistry(model).attach(AssertDimensions({"x": "batch seq"}, {"y": "batch seq"}), to="**")
    assert model({"x": torch.zeros(3, 2)})["y"].shape == (3, 2)


# -- the language ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4), (2, 9, 4), (2, 3, 9, 4)])
def test_an_ellipsis_is_any_number_of_dimensions(shape: tuple[int, ...], message: Any) -> None:
    x = torch.zeros(shape)
    for text in ("batch ... 4", "...", "... 4", "2 ...", "batch ... n=4"):
        assert run(AssertDimensions({"x": text}), {"x": x})
    assert_says(
        message(AssertDimensions({"x": "batch ... hidden=5"}), {"x": x}),
        f"Identity '0' input | {list(shape)} | hidden = 5",
    )


def test_too_few_dimensions_for_an_ellipsis_are_named_with_the_least(message: Any) -> None:
    assert_says(
        message(AssertDimensions({"x": "batch ... hidden=4"}), {"x": torch.zeros(4)}),
        "Identity '0' input | [4] | at least 2 dimensions | batch ... hidden=4",
    )
    assert_says(
        message(AssertDimensions({"x": "n"}), {"x": torch.zeros(4, 4)}), "Identity '0' input | [4, 4] | 1 dimension (n)"
    )


def test_a_dtype_outside_of_the_union_is_named(message: Any) -> None:
    hook = AssertDimensions({"mask": "i64|bool: batch seq"})
    assert run(hook, {"mask": torch.zeros(2, 5, dtype=torch.bool)})
    assert_says(message(hook, {"mask": torch.zeros(2, 5)}), "Identity '0' input | mask | f32 [2, 5] | i64 or bool")
    assert_says(
        message(AssertDimensions({"mask": "int: batch seq"}), {"mask": torch.zeros(2, 5, dtype=torch.bool)}),
        "Identity '0' input | mask | bool [2, 5] | be int",
    )


def test_a_required_tensor_that_is_missing_is_named_with_what_is_there(message: Any) -> None:
    hook = AssertDimensions({"token_embedings!": "batch seq hidden"})
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9), "text": ["a", "b"]}
    assert_says(
        message(hook, features),
        "Identity '0' input | 'token_embedings' | 'token_embeddings' | token_embeddings [2, 9, 4]",
        "attention_mask [2, 9]",
    )
    assert_says(message(hook, {"x": torch.zeros(1)}), "Identity '0' input | 'token_embedings' | x [1]")
    assert_says(message(hook, {}), "Identity '0' input | 'token_embedings' | nothing")


@pytest.mark.parametrize("value", [None, [[1, 1]], "text", 3])
def test_what_is_required_has_to_be_a_tensor(value: Any, message: Any) -> None:
    assert "there is no 'mask'" in message(AssertDimensions({"mask!": "batch seq"}), {"mask": value})


def test_a_name_with_an_underscore_holds_from_input_to_output_of_one_call(golden: Golden) -> None:
    hook = AssertDimensions({"x": "batch ?width"}, {"y": "batch ?width"}, bindings=Bindings())
    model = nn.Sequential(Update(y=torch.zeros(2, 5), x=torch.zeros(2, 7)), Update(y=torch.zeros(2, 7)))
    HookRegistry(model).attach(hook, to=Update)
    assert model({"x": torch.zeros(2, 5)})
    with pytest.raises(DimensionError) as caught:
        model({"x": torch.zeros(2, 6)})
    golden("disagreements", caught.value)
    assert_says(caught.value, "Update '0' output | [2, 5] | width = 6 | x [2, 6] | 1 fewer")


def test_a_name_of_the_call_is_another_than_the_same_name_of_the_forward() -> None:
    assert run(AssertDimensions({"x": "width", "y": "?width"}), {"x": torch.zeros(3), "y": torch.zeros(4)})


# -- where tensors are -------------------------------------------------------------------------------------------------


class Attend(nn.Module):
    def forward(self, query: Any, key: Any, mask: Any = None, **more: Any) -> Any:
        return (query, {"scores": key}, [key, key])


def attend(hook: Hook, *args: Any, **kwargs: Any) -> Any:
    model = Attend()
    with HookRegistry(model).attached(hook, to=""):
        return model(*args, **kwargs)


def test_inputs_go_by_the_name_or_number_of_a_parameter(golden: Golden) -> None:
    query, key = torch.zeros(2, 5, 4), torch.zeros(2, 7, 4)
    by_name = AssertDimensions({"query": "batch q hidden", "key!": "batch k hidden", "mask": "batch k"})
    assert attend(by_name, query, key)
    assert attend(by_name, key=key, query=query, mask=torch.zeros(2, 7))
    for arguments, keywords in (((query, key, torch.zeros(2, 6)), {}), ((query, key), {"mask": torch.zeros(2, 6)})):
        with pytest.raises(DimensionError) as caught:
            attend(by_name, *arguments, **keywords)
        golden("disagreements", caught.value)
        assert_says(caught.value, "Attend '' input | mask | [2, 6] | k = 7 | key [2, 7, 4] | 1 fewer")
    with pytest.raises(DimensionError, match=r"1 .*\[2, 7, 4\].* = 8"):
        attend(AssertDimensions({"1": "2 8 4"}), query, key)
    with pytest.raises(DimensionError, match=r"bias .*\[3\]"):
        attend(AssertDimensions({"bias": "4"}), query, key, bias=torch.zeros(3))


def test_a_name_that_forward_does_not_know_is_no_optional_tensor(golden: Golden) -> None:
    with pytest.raises(DimensionError) as caught:
        attend(AssertDimensions({"querry": "batch seq"}), torch.zeros(2, 5), torch.zeros(2, 7))
    golden("disagreements", caught.value)
    assert_says(caught.value, "Attend '' input | 'querry' | 'query' | query [2, 5] | key [2, 7]")


def test_the_empty_name_is_the_argument_and_the_output_itself(message: Any) -> None:
    hook = AssertDimensions({"": "batch ?in=4"}, {"": "batch ?out=3"})
    assert run(hook, torch.zeros(2, 4), nn.Linear(4, 3)).shape == (2, 3)
    assert_says(message(hook, torch.zeros(2, 4), nn.Linear(4, 5)), "Linear '0' output | [2, 5] | out = 3")
    named = AssertDimensions({"input": "batch 4"}, {"output": "batch 3"})
    assert_says(message(named, torch.zeros(2, 4), nn.Linear(4, 5)), "Linear '0' output | [2, 5] | size = 3")
    assert_says(
        message(AssertDimensions(outputs={"x": "batch 3"}), torch.zeros(2, 4)),
        "Identity '0' output | 'x' | output [2, 4]",
    )


def test_a_module_that_returns_nothing_is_told(message: Any) -> None:
    class Forgets(nn.Module):
        def forward(self, features: Any) -> None:
            return None

    hook = AssertDimensions(outputs={"x": "batch 3"})
    assert_says(message(hook, {"x": torch.zeros(2, 3)}, Forgets()), "Forgets '0' output | 'x' | None")


def test_dots_go_into_tuples_and_dicts() -> None:
    query, key = torch.zeros(2, 5), torch.zeros(2, 7)
    assert attend(AssertDimensions(outputs={"0": "b q", "1.scores": "b k", "output.2.1": "b k"}), query, key)
    with pytest.raises(DimensionError, match=r"1\.scores .*\[2, 7\].* q = 5 .* 0 \[2, 5\].* 2 more"):
        attend(AssertDimensions(outputs={"0": "b q", "1.scores": "b q"}), query, key)
    with pytest.raises(DimensionError, match=r"query\.x .*\[2, 5\]"):
        attend(AssertDimensions({"query.x": "b 6"}), {"x": query}, key)
    nested = {"past": ((query, key), (query, key)), "x": {"y": key}}
    assert run(AssertDimensions({"past.1.0": "b q", "x.y!": "b k", "past.9": "b", "past.0.0.0": "b"}), nested)


def test_a_model_output_goes_by_its_fields(message: Any) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    class Model(nn.Module):
        def forward(self, x: Tensor) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=x, hidden_states=(x, x))

    contract = {"last_hidden_state!": "batch hidden", "hidden_states": "layers=3 batch hidden"}
    assert_says(
        message(AssertDimensions(outputs=contract), torch.zeros(2, 4), Model()),
        "Model '0' output | hidden_states | 2 x [2, 4] | layers = 3",
    )


def test_a_list_of_tensors_counts_as_their_stack(message: Any) -> None:
    hook = AssertDimensions({"layers": "float: n=3 batch seq"})
    x = torch.zeros(2, 5)
    assert run(hook, {"layers": (x, x, x)})
    assert_says(message(hook, {"layers": [x, x]}), "Identity '0' input | layers | 2 x [2, 5] | n = 3")
    assert_says(
        message(hook, {"layers": [x, torch.zeros(2, 4), x]}), "Identity '0' input | layers | [2, 5] at 0 | [2, 4] at 1"
    )
    assert_says(message(hook, {"layers": [x.long()] * 3}), "Identity '0' input | layers | i64 3 x [2, 5] | be float")


# -- to raise or to warn, and when not to look -------------------------------------------------------------------------


def test_a_check_that_warns_lets_the_forward_go_on_and_binds_nothing() -> None:
    bindings = Bindings()
    hook = AssertDimensions(TEXT, bindings=bindings, on_error="warn")
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 5)}
    with pytest.warns(DimensionWarning) as caught:
        assert run(hook, features) is features
    (warning,) = caught
    assert_says(warning.message, "Identity '0' input | attention_mask | [2, 5] | seq = 9 | 4 fewer")
    assert sizes(bindings) == {}


def test_another_answer_to_errors_is_refused() -> None:
    with pytest.raises(ValueError, match="'raise' or 'warn', not 'ignore'"):
        AssertDimensions({}, on_error="ignore")  # type: ignore[arg-type]


def test_features_that_are_laid_out_otherwise_are_not_checked(message: Any) -> None:
    hook = AssertDimensions({"x": "batch 3"}, {"x": "batch 3"}, unless="flat")
    assert run(hook, {"x": torch.zeros(2, 4), "flat": True})
    assert message(hook, {"x": torch.zeros(2, 4)})


# -- several modules ---------------------------------------------------------------------------------------------------


def pipeline(length: int, causes: dict[int, str] | None = None) -> nn.Module:
    """A Transformer's and a Pooling's stand-in, the latter given embeddings of ``length`` rows."""
    model = nn.Sequential(Update(token_embeddings=torch.zeros(2, length, 4)), nn.Identity())
    bindings = Bindings()
    registry = HookRegistry(model)
    registry.attach(AssertDimensions(TEXT, bindings=bindings, starts=True, causes=causes), to="0", name="transformer")
    registry.attach(AssertDimensions(TEXT, bindings=bindings, causes=causes), to="1", name="pooling")
    return model


def given(length: int = 9) -> dict[str, Tensor]:
    return {"attention_mask": torch.zeros(2, length)}


def test_modules_that_share_bindings_are_held_against_each_other(golden: Golden) -> None:
    assert pipeline(9)(given())
    with pytest.raises(DimensionError) as caught:
        pipeline(12)(given())
    golden("disagreements", caught.value)
    assert_says(
        caught.value,
        "Identity '1' input | token_embeddings | [2, 12, 4] | seq = 9 | attention_mask [2, 9]",
        "Update '0' | 3 more",
    )


def test_a_new_forward_forgets_the_one_before_also_after_an_error() -> None:
    model = pipeline(9)
    assert model(given(9))
    with pytest.raises(DimensionError):
        model(given(8))
    assert model(given(9))


def test_a_check_that_fails_binds_nothing(message: Any) -> None:
    features = {"a": torch.zeros(2, 3), "b": torch.zeros(4, 3)}
    bindings = Bindings()
    hook = AssertDimensions({"a": "x y", "b": "x y"}, bindings=bindings)
    message(hook, features)
    assert bindings.forward().bound == {}
    run(hook, {"a": torch.zeros(5, 6)})
    assert sizes(bindings) == {"x": 5, "y": 6}
    hook = AssertDimensions({"c": "x z"}, {"b": "x z"}, bindings=bindings)
    message(hook, {"c": torch.zeros(5, 8), "b": torch.zeros(5, 7)})
    assert sizes(bindings) == {}  # the module ran a second time: a new forward, in which nothing held


def test_a_reason_is_returned_with_the_difference_in_positions_and_agreement_is_none() -> None:
    bound: dict[str, Bound] = {}
    spec = parse({"a": "seq x", "b": "seq x"})
    a = torch.zeros(2, 3)
    assert disagreement(spec, output_of, {"a": a, "b": a}, bound, {}, "here") is None
    assert bound == {"seq": (2, "a", a.shape, "here"), "x": (3, "a", a.shape, "here")}
    for shape, facts, positions in (((7, 3), "seq = 2 | 5 more", 5), ((2, 7), "x = 3 | 4 more", 0)):
        found = disagreement(spec, output_of, {"b": torch.zeros(shape)}, bound, {}, "here")
        assert found is not None
        assert_says(found[0], f"b is {list(shape)}", "a [2, 3]", facts)
        assert found[1] == positions


def test_a_module_that_fails_leaves_bound_what_was_bound_before_it() -> None:
    """The way out of an error that is caught inside the model starts with what held before."""

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Fails(), Update()

        def forward(self, features: dict[str, Any]) -> Any:
            with contextlib.suppress(ZeroDivisionError):
                self.first({"x": torch.zeros(2, 7)})
            return self.second(features)

    class Fails(nn.Module):
        def forward(self, features: dict[str, Any]) -> Any:
            raise ZeroDivisionError

    model, bindings = Tries(), Bindings()
    registry = HookRegistry(model)
    registry.attach(AssertDimensions({"mask": "batch"}, {"x": "batch seq"}, bindings=bindings), to="")
    registry.attach(AssertDimensions({"x": "batch seq"}, bindings=bindings), to="first")
    registry.attach(AssertDimensions({"x": "batch seq"}, bindings=bindings), to="second")
    assert model({"mask": torch.zeros(2), "x": torch.zeros(2, 5)})
    assert sizes(bindings) == {"batch": 2, "seq": 5}
    with pytest.raises(DimensionError):
        model({"mask": torch.zeros(3), "x": torch.zeros(2, 5)})
    assert sizes(bindings) == {}


def test_a_forward_that_was_interrupted_leaves_nothing_for_the_next() -> None:
    """PyTorch runs no forward hook after a KeyboardInterrupt."""

    class Interrupted(nn.Module):
        stop = True

        def forward(self, features: Any) -> Any:
            if self.stop:
                raise KeyboardInterrupt
            return features

    model, bindings = nn.Sequential(Interrupted(), nn.Identity()), Bindings()
    HookRegistry(model).attach(AssertDimensions({"x": "batch"}, bindings=bindings), to=lambda path, module: bool(path))
    with pytest.raises(KeyboardInterrupt):
        model({"x": torch.zeros(3)})
    model[0].stop = False
    assert model({"x": torch.zeros(4)})
    assert sizes(bindings) == {"batch": 4}


def test_two_hooks_of_one_forward_may_sit_on_one_module() -> None:
    bindings = Bindings()
    model = nn.Sequential(nn.Identity())
    registry = HookRegistry(model)
    registry.attach(AssertDimensions({"x": "n"}, {"x": "n"}, bindings=bindings), to="0")
    registry.attach(AssertDimensions({"y": "n"}, {"y": "n"}, bindings=bindings), to="0")
    assert model({"x": torch.zeros(3), "y": torch.zeros(3)})
    with pytest.raises(DimensionError, match=r"y .*\[4\].* n = 3 .* x \[3\].* 1 more"):
        model({"x": torch.zeros(3), "y": torch.zeros(4)})


def test_a_hook_that_is_attached_while_its_module_runs_waits_for_the_next_call() -> None:
    class Attaches(nn.Module):
        def forward(self, features: Any) -> Any:
            if "check" not in registry:
                registry.attach(AssertDimensions(outputs={"x": "4"}), to="0", name="check")
            return features

    model = nn.Sequential(Attaches())
    registry = HookRegistry(model)
    registry.attach(LogShapes(), to="0", order=-1)
    assert model({"x": torch.zeros(3)})
    with pytest.raises(DimensionError):
        model({"x": torch.zeros(3)})


def test_threads_do_not_see_each_others_bindings() -> None:
    meet = threading.Barrier(2, timeout=20)
    errors: list[BaseException] = []

    class Meets(Update):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            meet.wait()
            return features

    model = nn.Sequential(Meets(), nn.Identity())
    bindings = Bindings()
    registry = HookRegistry(model)
    registry.attach(AssertDimensions(TEXT, bindings=bindings, starts=True), to="0")
    registry.attach(AssertDimensions(TEXT, bindings=bindings), to="1")

    def forward(length: int) -> None:
        try:
            model(given(length))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=forward, args=(length,)) for length in (5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# -- copies, values, repr ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copied_model_shares_bindings_among_its_own_hooks_only(copied: Any) -> None:
    model = pipeline(12)
    twin = copied(model)
    with pytest.raises(DimensionError, match=r"attention_mask .* Update '0'"):
        twin(given())
    twin[0](given(12))
    model[0](given(5))  # another forward has begun, on the first model
    assert twin[1]({"token_embeddings": torch.zeros(2, 12, 4)})
    with pytest.raises(DimensionError):
        model[1]({"token_embeddings": torch.zeros(2, 12, 4)})


def test_bindings_of_a_copy_begin_empty() -> None:
    bindings = Bindings(joined=False)
    bindings.forward().bound = {"x": (2, "a", torch.Size([2]), "here")}
    twin = copy.deepcopy(bindings)
    assert twin.forward().bound == {}
    assert twin.joined is False
    assert len(bindings.forward().bound) == 1


def test_dimensions_are_checked_without_reading_a_value(message: Any) -> None:
    hook = AssertDimensions(TEXT, TEXT)
    meta = {"token_embeddings": torch.zeros(2, 9, 4, device="meta"), "attention_mask": torch.zeros(2, 9, device="meta")}
    assert run(hook, meta)
    with FakeTensorMode():
        fake = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9)}
        assert run(hook, fake)
        assert_says(
            message(hook, {**fake, "attention_mask": torch.zeros(2, 5)}), "token_embeddings [2, 9, 4] | 4 fewer"
        )


def test_sizes_that_are_symbols_are_checked() -> None:
    """They have no hash, by which shapes that were right before are known again."""
    from torch.fx.experimental.proxy_tensor import make_fx

    seen: list[Any] = []

    def work(embeddings: Tensor, mask: Tensor) -> Tensor:
        seen.append(mask.shape[1])
        features = {"token_embeddings": embeddings, "attention_mask": mask}
        checked = run(AssertDimensions(TEXT, TEXT), features)
        return checked["attention_mask"] + 1

    trace = make_fx(work, tracing_mode="symbolic")
    assert trace(torch.zeros(2, 9, 4), torch.zeros(2, 9))(torch.zeros(3, 7, 4), torch.zeros(3, 7)).shape == (3, 7)
    assert isinstance(seen[0], torch.SymInt)
    with pytest.raises(DimensionError, match="attention_mask"):
        trace(torch.zeros(2, 9, 4), torch.zeros(2, 5))


# -- what was right before ---------------------------------------------------------------------------------------------


def test_what_was_right_is_right_again_only_with_the_same_bound_before_it() -> None:
    """The same shapes at Pooling, behind a Transformer of another length."""
    bindings = Bindings()
    hook = AssertDimensions({"x": "batch seq"}, bindings=bindings, starts=True)
    later = AssertDimensions({"y": "batch seq"}, {"y": "batch seq"}, bindings=bindings)
    model = nn.Sequential(nn.Identity(), nn.Identity())
    registry = HookRegistry(model)
    registry.attach(hook, to="0")
    registry.attach(later, to="1")
    for _ in range(3):
        model({"x": torch.zeros(2, 9), "y": torch.zeros(2, 9)})
        assert sizes(bindings) == {"batch": 2, "seq": 9}
        with pytest.raises(DimensionError, match=r"y .*\[2, 9\].* seq = 5 .* x \[2, 5\]"):
            model({"x": torch.zeros(2, 5), "y": torch.zeros(2, 9)})


def test_a_dtype_or_a_missing_tensor_is_seen_after_the_same_shapes_were_right(message: Any) -> None:
    hook = AssertDimensions({"x!": "float: batch 3", "y": "batch"})
    right = {"x": torch.zeros(2, 3), "y": torch.zeros(2)}
    assert run(hook, right)
    assert run(hook, right)
    assert_says(message(hook, {**right, "x": torch.zeros(2, 3, dtype=torch.int64)}), "x | i64 [2, 3] | be float")
    assert_says(message(hook, {"y": torch.zeros(2)}), "Identity '0' input | 'x' | y [2]")
    assert_says(message(hook, {**right, "y": torch.zeros(4)}), "y | [4] | 2 more")


def test_a_hook_on_two_modules_names_the_one_that_bound_a_dimension(golden: Golden) -> None:
    hook = AssertDimensions({"x": "batch seq"}, {"y": "batch seq"})
    model = nn.Sequential(nn.Identity(), Update(y=torch.zeros(2, 5)))
    HookRegistry(model).attach(hook, to="*")
    with pytest.raises(DimensionError) as caught:
        model({"x": torch.zeros(2, 9)})
    golden("disagreements", caught.value)
    assert_says(caught.value, "Update '1' output | [2, 5] | seq = 9 | x [2, 9] | 4 fewer")


def test_what_is_remembered_is_bounded_holds_no_tensor_and_does_not_travel() -> None:
    hook = AssertDimensions({"x": "batch seq"}, bindings=Bindings())
    for length in range(1, 1030):
        run(hook, {"x": torch.empty(1, length)})
    remembered = hook._right
    assert 0 < len(remembered) <= 1024
    seen = torch.empty(1, 2000)
    gone = weakref.ref(seen)
    run(hook, {"x": seen})
    del seen
    gc.collect()
    assert gone() is None
    assert not any(isinstance(held, Tensor) for held in gc.get_referents(*remembered, *remembered.values()))
    for twin in (copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
        assert twin._right == {}
        assert run(twin, {"x": torch.empty(1, 3)})


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("bindings", [None, Bindings()], ids=["own", "shared"])
def test_a_check_compiles_without_a_graph_break(bindings: Bindings | None, on_error: Any) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Identity())
    text = {"token_embeddings!": "float: ... seq ?width", "attention_mask": "f32|i64: _ seq", "not there": "seq"}
    hook = AssertDimensions(text, text, bindings=bindings, on_error=on_error, unless="flat")
    HookRegistry(model).attach(hook, to="0")
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9)}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(features)["attention_mask"].shape == (2, 9)


def test_what_a_check_remembers_compiles_nothing_anew() -> None:
    """Forwards that are not compiled run in between, of other shapes, and what is compiled stays in use."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Identity())
    HookRegistry(model).attach(AssertDimensions({"x": "batch seq"}, {"x": "batch seq"}, bindings=Bindings()), to="0")
    counter = CompileCounter()
    compiled = torch.compile(lambda given: model(given)["x"] + 1, backend=counter, fullgraph=True)
    for length in range(3, 8):
        model({"x": torch.ones(2, length)})
        compiled({"x": torch.ones(2, 3)})
    assert counter.frame_count == 1


def test_a_check_of_parameters_by_name_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    model = Attend()
    contract = {"key": "batch k hidden", "mask": "batch k", "query": "batch q hidden"}
    HookRegistry(model).attach(AssertDimensions(contract, {"2": "2 batch k hidden"}), to="")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2, 5, 4), torch.zeros(2, 7, 4), torch.zeros(2, 7))[0].shape == (2, 5, 4)


def test_the_hook_is_written_with_its_contracts() -> None:
    assert repr(AssertDimensions({"x": "batch seq"}, bindings=Bindings(), causes={1: "one"})) == (
        "AssertDimensions(inputs={'x': 'batch seq'}, outputs={})"
    )
