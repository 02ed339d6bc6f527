"""``AssertDimensions``: named dimensions across the tensors and modules of one forward."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peft_hooks import AssertDimensions, DimensionError, Hook, HookRegistry
from peft_hooks._dimensions import Bindings, Bound, Dimension, disagreement, parse


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


def message(hook: Hook, features: Any, module: nn.Module | None = None) -> str:
    with pytest.raises(DimensionError) as caught:
        run(hook, features, module)
    return str(caught.value)


TEXT = {"token_embeddings": "batch seq hidden", "attention_mask": "batch seq"}

# -- contracts ---------------------------------------------------------------------------------------------------------


def test_a_contract_has_names_sizes_both_and_any() -> None:
    assert parse({"x": "batch 3 hidden=384 _ _=2", "y": ""}) == (
        (
            "x",
            (
                Dimension("batch", None),
                Dimension(None, 3),
                Dimension("hidden", 384),
                Dimension(None, None),
                Dimension(None, 2),
            ),
        ),
        ("y", ()),
    )


@pytest.mark.parametrize("text", ["a-b", "3x", "=3", "a=b", "a=", "*", "-1"])
def test_what_is_no_dimension_is_refused_when_the_hook_is_made(text: str) -> None:
    with pytest.raises(ValueError, match="is no dimension") as caught:
        AssertDimensions({"x": f"batch {text}"})
    assert str(caught.value) == (
        f"{text!r} in the contract of 'x' is no dimension: write a name, a size, name=size or _"
    )


# -- one module --------------------------------------------------------------------------------------------------------


def test_tensors_that_agree_pass_and_the_output_is_left_alone() -> None:
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9)}
    assert run(AssertDimensions(TEXT, TEXT), features) is features


def test_a_tensor_that_disagrees_is_named_with_what_bound_the_dimension() -> None:
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 5)}
    assert message(AssertDimensions(TEXT), features) == (
        "Identity '0' input: attention_mask is [2, 5], but seq = 9 was bound by token_embeddings [2, 9, 4]: 4 fewer"
    )
    features["attention_mask"] = torch.zeros(3, 9)
    assert message(AssertDimensions(TEXT), features) == (
        "Identity '0' input: attention_mask is [3, 9], but batch = 2 was bound by token_embeddings [2, 9, 4]: 1 more"
    )


def test_the_output_is_held_against_the_input() -> None:
    hook = AssertDimensions({"attention_mask": "batch seq"}, {"token_embeddings": "batch seq hidden=4"})
    features = {"attention_mask": torch.zeros(2, 5)}
    assert run(hook, dict(features), Update(token_embeddings=torch.zeros(2, 5, 4)))
    assert message(hook, dict(features), Update(token_embeddings=torch.zeros(2, 15, 4))) == (
        "Update '0' output: token_embeddings is [2, 15, 4], but seq = 5 was bound by attention_mask [2, 5]: 10 more"
    )


def test_a_declared_size_is_held_with_and_without_a_name() -> None:
    assert message(AssertDimensions({"x": "batch hidden=384"}), {"x": torch.zeros(2, 32)}) == (
        "Identity '0' input: x is [2, 32], but hidden = 384 is declared"
    )
    assert message(AssertDimensions({"x": "batch 384"}), {"x": torch.zeros(2, 32)}) == (
        "Identity '0' input: x is [2, 32], but the size = 384 is declared"
    )
    assert run(AssertDimensions({"x": "batch hidden=384 _"}), {"x": torch.zeros(2, 384, 7)})


def test_a_name_that_stands_twice_in_one_tensor_is_one_size() -> None:
    hook = AssertDimensions({"x": "n n"})
    assert run(hook, {"x": torch.zeros(3, 3)})
    assert message(hook, {"x": torch.zeros(3, 4)}) == (
        "Identity '0' input: x is [3, 4], but n = 3 was bound by x [3, 4]: 1 more"
    )


def test_any_size_binds_nothing() -> None:
    assert run(AssertDimensions({"x": "_ _"}), {"x": torch.zeros(3, 4)})


def test_another_number_of_dimensions_is_named_with_the_contract() -> None:
    assert message(AssertDimensions({"x": "batch seq _ 3"}), {"x": torch.zeros(2, 9)}) == (
        "Identity '0' input: x is [2, 9], but should have 4 dimensions (batch seq _ 3)"
    )


def test_what_is_not_there_or_is_no_tensor_is_not_checked() -> None:
    assert run(AssertDimensions(TEXT), {"attention_mask": [[1, 1]], "more": torch.zeros(3)})


def test_a_difference_with_a_known_cause_is_explained_with_the_way_out() -> None:
    cause = "num_virtual_tokens of the active PROMPT_TUNING adapter 'default'"
    hook = AssertDimensions(TEXT, causes={10: cause})
    features = {"token_embeddings": torch.zeros(2, 19, 4), "attention_mask": torch.zeros(2, 9)}
    assert message(hook, features) == (
        "Identity '0' input: attention_mask is [2, 9], but seq = 19 was bound by token_embeddings [2, 19, 4]: 10 "
        "fewer. 10 = num_virtual_tokens of the active PROMPT_TUNING adapter 'default': attach the mask hooks, "
        "peft_hooks.register_prompt_mask_hooks(model)"
    )
    features["attention_mask"] = torch.zeros(2, 10)
    assert message(hook, features).endswith("[2, 19, 4]: 9 fewer")


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


def test_modules_that_share_bindings_are_held_against_each_other() -> None:
    assert pipeline(9)(given())
    with pytest.raises(DimensionError) as caught:
        pipeline(12)(given())
    assert str(caught.value) == (
        "Identity '1' input: token_embeddings is [2, 12, 4], but seq = 9 was bound by attention_mask [2, 9] of Update "
        "'0': 3 more"
    )


def test_a_new_forward_forgets_the_one_before_also_after_an_error() -> None:
    model = pipeline(9)
    assert model(given(9))
    with pytest.raises(DimensionError):
        model(given(8))
    assert model(given(9))


def test_a_check_that_fails_binds_nothing() -> None:
    bound: dict[str, Bound] = {}
    features = {"a": torch.zeros(2, 3), "b": torch.zeros(4, 3)}
    assert disagreement(parse({"a": "x y", "b": "x y"}), features, bound, "here") is not None
    bindings = Bindings()
    hook = AssertDimensions({"a": "x y", "b": "x y"}, bindings=bindings)
    message(hook, features)
    assert bindings.current() == {}
    run(hook, {"a": torch.zeros(5, 6)})
    before = bindings.current()
    message(hook, {"a": torch.zeros(5, 6), "b": torch.zeros(5, 7)})
    assert bindings.current() is before
    assert {name: size for name, (size, *_) in before.items()} == {"x": 5, "y": 6}


def test_a_reason_is_returned_with_the_difference_in_positions_and_agreement_is_none() -> None:
    bound: dict[str, Bound] = {}
    spec = parse({"a": "seq width", "b": "seq width"})
    assert disagreement(spec, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, bound, "here") is None
    assert bound == {name: Bound(size, "a", torch.Size([2, 3]), "here") for name, size in (("seq", 2), ("width", 3))}
    assert disagreement(spec, {"b": torch.zeros(7, 3)}, bound, "here") == (
        "b is [7, 3], but seq = 2 was bound by a [2, 3]: 5 more",
        5,
    )
    assert disagreement(spec, {"b": torch.zeros(2, 8)}, bound, "here") == (
        "b is [2, 8], but width = 3 was bound by a [2, 3]: 5 more",
        0,  # not a matter of virtual tokens
    )


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
    with pytest.raises(DimensionError, match=r"bound by attention_mask .* of Update '0'"):
        twin(given())
    twin[0](given(12))
    model[0](given(5))  # another forward has begun, on the first model
    assert twin[1]({"token_embeddings": torch.zeros(2, 12, 4)})
    with pytest.raises(DimensionError):
        model[1]({"token_embeddings": torch.zeros(2, 12, 4)})


def test_bindings_of_a_copy_begin_empty() -> None:
    bindings = Bindings()
    bindings.keep({"x": Bound(2, "a", torch.Size([2]), "here")})
    assert copy.deepcopy(bindings).current() == {}
    assert len(bindings.current()) == 1


def test_dimensions_are_checked_without_reading_a_value() -> None:
    hook = AssertDimensions(TEXT, TEXT)
    meta = {"token_embeddings": torch.zeros(2, 9, 4, device="meta"), "attention_mask": torch.zeros(2, 9, device="meta")}
    assert run(hook, meta)
    with FakeTensorMode():
        fake = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9)}
        assert run(hook, fake)
        assert message(hook, {**fake, "attention_mask": torch.zeros(2, 5)}).endswith(
            "bound by token_embeddings [2, 9, 4]: 4 fewer"
        )


@pytest.mark.parametrize("bindings", [None, Bindings()], ids=["own", "shared"])
def test_a_check_compiles_without_a_graph_break(bindings: Bindings | None) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Identity())
    HookRegistry(model).attach(AssertDimensions(TEXT, TEXT, bindings=bindings), to="0")
    features = {"token_embeddings": torch.zeros(2, 9, 4), "attention_mask": torch.zeros(2, 9)}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(features)["attention_mask"].shape == (2, 9)


def test_the_hook_is_written_with_its_contracts() -> None:
    assert repr(AssertDimensions({"x": "batch seq"}, bindings=Bindings(), causes={1: "one"})) == (
        "AssertDimensions(inputs={'x': 'batch seq'}, outputs={})"
    )
