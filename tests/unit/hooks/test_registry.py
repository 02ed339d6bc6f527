"""``HookRegistry`` on plain modules: attaching, names, order, switching, rolling back, copying, describing."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import Call, Hook, HookError, HookNameError, HookRegistry, LogShapes, SelectorError
from peft_hooks.hooks.dispatcher import dispatchers_on

from ...tools.wording import Golden, assert_says


class Add(Hook):
    """Adds to the output, and so tells by the result which hooks ran and in which order."""

    def __init__(self, amount: float = 1.0) -> None:
        self.amount = amount

    def after(self, call: Call, output: Any) -> Any:
        return output + self.amount


class Note(Hook):
    """Writes down what it is told of."""

    def __init__(self, name: str, told: list[Any]) -> None:
        self.name, self._told = name, told

    def before(self, call: Call) -> None:
        self._told.append(("before", self.name, call.path))

    def after(self, call: Call, output: Any) -> None:
        self._told.append(("after", self.name, call.path))

    def failed(self, call: Call, error: BaseException) -> None:
        self._told.append(("failed", self.name, call.path, error))


class Raises(nn.Module):
    """Raises the error that it is made with."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Any) -> Any:
        raise self.error


class Unhookable(nn.Identity):
    """A module that takes pre-hooks and refuses forward hooks."""

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no hooks here")


class Block(nn.Module):
    """Two linear layers, the second of which is called by its ``forward``, which skips hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second.forward(self.first(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(2, 2), nn.Identity())


ROLES = {"pooling": ["1"], "layers": ["0.first", "1"]}


def roles(model: nn.Module) -> dict[str, list[str]]:
    return ROLES


def state(model: nn.Module) -> list[dict[str, Any]]:
    """``vars()`` of every module, hook dictionaries copied, so that they can be compared later."""
    return [
        {
            key: list(value.items()) if "hooks" in key and isinstance(value, dict) else value
            for key, value in vars(m).items()
        }
        for m in model.modules()
    ]


def hooked(model: nn.Module) -> list[str]:
    return [path for path, _, _ in dispatchers_on(model.named_modules())]


# -- attaching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        ("pooling", ["1"]),
        ("layers", ["0.first", "1"]),
        ("0.second.0", ["0.second.0"]),
        ("", [""]),
        ("0.*", ["0.first", "0.second"]),
        ("0.**", ["0.first", "0.second", "0.second.0"]),
        (nn.Linear, ["0.first", "0.second.0", "1"]),
        (lambda path, module: path.endswith("st"), ["0.first"]),
    ],
)
def test_attach_finds_modules_by_role_path_glob_class_and_predicate(
    model: nn.Module, selector: Any, paths: list[str]
) -> None:
    HookRegistry(model, roles=roles).attach(Add(), to=selector)
    assert hooked(model) == paths


def test_attach_finds_the_given_module_itself(model: nn.Module) -> None:
    HookRegistry(model).attach(Add(), to=model[1])
    assert hooked(model) == ["1"]


def test_attach_refuses_a_module_that_is_not_part_of_the_model(model: nn.Module, golden: Golden) -> None:
    with pytest.raises(SelectorError) as caught:
        HookRegistry(model).attach(Add(), to=nn.Linear(2, 2))
    golden("refusals", caught.value)
    assert_says(caught.value, "Linear | Sequential")
    assert hooked(model) == []


def test_attach_puts_one_hook_on_every_module_that_is_selected(model: nn.Module) -> None:
    x = torch.ones(1, 2)
    plain = model(x)
    HookRegistry(model).attach(Add(10.0), to="[12]")
    assert torch.equal(model(x), plain + 20)


def test_a_selector_that_matches_nothing_lists_the_close_matches(model: nn.Module, golden: Golden) -> None:
    with pytest.raises(SelectorError) as caught:
        HookRegistry(model, roles=roles).attach(Add(), to="0.secnd")
    golden("refusals", caught.value)
    assert_says(caught.value, "Sequential | '0.secnd' | '0.second' | '0.second.0'")
    with pytest.raises(SelectorError) as caught:
        HookRegistry(model, roles=roles).attach(Add(), to="poling")
    golden("refusals", caught.value)
    assert_says(caught.value, "'poling' | 'pooling'")


def test_a_role_that_no_plain_module_plays_is_refused_with_what_to_give_instead(
    model: nn.Module, golden: Golden
) -> None:
    with pytest.raises(SelectorError) as caught:
        HookRegistry(model).attach(Add(), to="transformer")
    golden("refusals", caught.value)
    assert_says(caught.value, "Sequential | 'transformer' | a path | a class | a module")


def test_a_registry_needs_a_model_and_says_so_when_it_gets_its_name(golden: Golden) -> None:
    for wrong, facts in (
        ("all-MiniLM-L6-v2", "the str 'all-MiniLM-L6-v2' | load"),
        ([nn.Identity()], "a list | one module"),
        (None, "None | load"),
        (nn.Linear, "the class Linear | an instance"),
    ):
        with pytest.raises(TypeError) as caught:
            HookRegistry(wrong)  # type: ignore[arg-type]
        golden("refusals", caught.value)
        assert_says(caught.value, f"HookRegistry | nn.Module | {facts}")


def test_attach_needs_an_instance_of_a_hook_and_says_so_when_it_gets_a_class(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model)
    with pytest.raises(TypeError) as caught:
        registry.attach(LogShapes, to="0")  # type: ignore[arg-type]
    golden("refusals", caught.value)
    assert_says(caught.value, "attach | peft_hooks.Hook | <class 'peft_hooks.LogShapes'> | an instance of it")
    for wrong in (None, [Add()], print):
        with pytest.raises(TypeError) as caught:
            registry.attach(wrong, to="0")  # type: ignore[arg-type]
        golden("refusals", caught.value)
        assert_says(caught.value, f"attach | peft_hooks.Hook | {wrong!r}")
    assert len(registry) == 0


@pytest.mark.parametrize("wrong", [None, 3, ["0", "1"], int])
def test_a_selector_of_a_wrong_type_is_refused(model: nn.Module, wrong: Any, golden: Golden) -> None:
    with pytest.raises(SelectorError) as caught:
        HookRegistry(model).attach(Add(), to=wrong)
    golden("refusals", caught.value)
    assert_says(
        caught.value, f"{wrong!r} | a role | a path | a glob | a module class | predicate (path, module) -> bool"
    )


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_hook_is_named_after_its_class_with_a_number_if_that_is_taken(model: nn.Module) -> None:
    registry = HookRegistry(model)
    assert [registry.attach(Add(), to="1") for _ in range(3)] == ["Add", "Add-2", "Add-3"]
    registry.detach("Add-2")
    assert registry.attach(Add(), to="1") == "Add-2"
    assert list(registry) == ["Add", "Add-3", "Add-2"]
    assert "Add" in registry
    assert "Add-4" not in registry
    assert len(registry) == 3


def test_a_name_that_is_taken_is_refused_and_the_first_hook_stays(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(1.0), to="2", name="mine")
    with pytest.raises(HookNameError) as caught:
        registry.attach(Add(2.0), to="2", name="mine")
    golden("refusals", caught.value)
    assert_says(caught.value, "'mine' | detach('mine')")
    assert_says(repr(registry), "1 hook | [0] mine | amount=1.0 | '2'")


@pytest.mark.parametrize("verb", ["detach", "enable", "disable"])
def test_an_unknown_name_is_refused_with_the_close_matches(model: nn.Module, verb: str, golden: Golden) -> None:
    registry = HookRegistry(model)
    with pytest.raises(HookNameError) as caught:
        getattr(registry, verb)("mask")
    assert_says(caught.value, "'mask'")
    registry.attach(Add(), to="1", name="prompt mask")
    registry.attach(Add(), to="1", name="log")
    with pytest.raises(HookNameError) as caught:
        getattr(registry, verb)("prompt-mask")
    golden("refusals", caught.value)
    assert_says(caught.value, "'prompt-mask' | 'prompt mask'")
    with pytest.raises(HookNameError) as caught:
        getattr(registry, verb)("zzz")
    golden("refusals", caught.value)
    assert_says(caught.value, "'zzz' | 'log' | 'prompt mask'")


def test_disabled_refuses_an_unknown_name_before_it_switches_anything_off(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="1", name="one")
    with pytest.raises(HookNameError), registry.disabled("one", "two"):
        pytest.fail("the block must not run")
    assert hooked(model) == ["1"]


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attached_as", ["abcd", "dcba", "bdac"])
def test_hooks_run_by_order_and_equal_orders_as_they_were_attached(model: nn.Module, attached_as: str) -> None:
    told: list[Any] = []
    orders = {"a": 5, "b": 0, "c": 0, "d": -1}
    registry = HookRegistry(model)
    for name in attached_as:
        registry.attach(Note(name, told), to="1", name=name, order=orders[name])
    model(torch.ones(1, 2))
    expected = sorted(attached_as, key=orders.__getitem__)
    assert [entry[:2] for entry in told] == [(when, name) for when in ("before", "after") for name in expected]


def test_twelve_hooks_of_one_order_run_as_attached_and_not_by_name(model: nn.Module) -> None:
    """By name they would run 1, 10, 11, 12, 2, ...; one that was disabled comes back where it was, also in a copy."""
    told: list[Any] = []
    registry = HookRegistry(model, owner="mine")
    for number in range(1, 13):
        registry.attach(Note(str(number), told), to="1", name=str(number))
    registry.disable("5")
    registry.enable("5")
    expected = [str(number) for number in range(1, 13)]
    model(torch.ones(1, 2))
    assert [name for when, name, _ in told if when == "before"] == expected
    copied = pickle.loads(pickle.dumps(model))
    again = HookRegistry.adopt(copied, "mine")
    again.attach(Note("13", told), to="1", name="13")
    assert [name for name, _ in again.state.ordered()] == [*expected, "13"]


def test_a_hook_that_was_disabled_comes_back_in_its_order(model: nn.Module) -> None:
    told: list[Any] = []
    registry = HookRegistry(model)
    for name in "abc":
        registry.attach(Note(name, told), to="1", name=name)
    registry.disable("a")
    registry.enable("a")
    model(torch.ones(1, 2))
    assert [name for when, name, _ in told if when == "before"] == ["a", "b", "c"]


# -- switching ---------------------------------------------------------------------------------------------------------


def test_a_disabled_hook_is_off_the_module(model: nn.Module) -> None:
    before = state(model)
    registry = HookRegistry(model)
    registry.attach(Add(), to="**", name="add")
    assert state(model) != before
    registry.disable("add")
    assert state(model) == before
    registry.enable("add")
    assert hooked(model) == ["", "0", "0.first", "0.second", "0.second.0", "1", "2"]
    registry.detach("add")
    assert state(model) == before


def test_enable_and_disable_twice_are_as_once(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(10.0), to="2", name="add")
    x = torch.ones(1, 2)
    with registry.disabled():
        plain = model(x)
    registry.enable("add")
    assert torch.equal(model(x), plain + 10)
    registry.disable("add")
    registry.disable("add")
    assert torch.equal(model(x), plain)
    registry.enable("add")
    registry.enable("add")
    assert torch.equal(model(x), plain + 10)


def test_attached_blocks_nest_and_leave_nothing(model: nn.Module) -> None:
    before = state(model)
    registry = HookRegistry(model)
    x = torch.ones(1, 2)
    plain = model(x)
    with registry.attached(Add(1.0), to="2") as outer:
        with registry.attached(Add(2.0), to="2") as inner:
            assert (outer, inner) == ("Add", "Add-2")
            assert torch.equal(model(x), plain + 1 + 2)
        assert torch.equal(model(x), plain + 1)
    assert torch.equal(model(x), plain)
    assert state(model) == before
    assert len(registry) == 0


def test_attached_leaves_nothing_when_the_block_raises(model: nn.Module) -> None:
    before = state(model)
    registry = HookRegistry(model)
    with pytest.raises(ZeroDivisionError), registry.attached(Add(), to="**"), registry.attached(Add(), to="1"):
        raise ZeroDivisionError
    assert state(model) == before
    assert len(registry) == 0


def test_attached_lets_the_block_detach_its_hook_and_leaves_a_later_one_of_that_name(model: nn.Module) -> None:
    registry = HookRegistry(model)
    with registry.attached(Add(1.0), to="1", name="add"):
        registry.detach("add")
    with registry.attached(Add(2.0), to="1", name="add"):
        registry.detach("add")
        registry.attach(Add(3.0), to="1", name="add")
    assert_says(repr(registry), "1 hook | [0] add | amount=3.0 | '1'")


def test_disabled_blocks_nest_and_restore_what_was_on(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="0", name="a")
    registry.attach(Add(), to="1", name="b")
    registry.attach(Add(), to="2", name="c")
    registry.disable("c")
    with registry.disabled("a"):
        assert hooked(model) == ["1"]
        with registry.disabled():
            assert hooked(model) == []
        assert hooked(model) == ["1"]
    assert hooked(model) == ["0", "1"]


def test_disabled_restores_what_was_on_when_the_block_raises(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="1", name="a")
    with pytest.raises(ZeroDivisionError), registry.disabled("a"):
        raise ZeroDivisionError
    assert hooked(model) == ["1"]


def test_disabled_lets_the_block_detach(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="1", name="a")
    with registry.disabled():
        registry.detach("a")
    assert len(registry) == 0
    assert hooked(model) == []


def test_clear_takes_off_enabled_and_disabled_hooks_alike(model: nn.Module) -> None:
    before = state(model)
    registry = HookRegistry(model)
    registry.attach(Add(), to="**")
    registry.disable(registry.attach(Add(), to="1"))
    registry.clear()
    assert state(model) == before
    assert list(registry) == []


# -- all or none -------------------------------------------------------------------------------------------------------


def test_all_modules_are_resolved_before_the_hook_is_on_the_first(model: nn.Module) -> None:
    seen: list[list[str]] = []

    def picky(path: str, module: nn.Module) -> bool:
        seen.append(hooked(model))
        if path == "2":
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        HookRegistry(model).attach(Add(), to=picky)
    assert seen
    assert not any(seen)
    assert hooked(model) == []


def test_attach_rolls_back_when_a_module_refuses_the_hook_half_way() -> None:
    model = nn.Sequential(nn.Identity(), Unhookable(), nn.Identity())
    before = state(model)
    registry = HookRegistry(model)
    with pytest.raises(RuntimeError, match=r"^no hooks here$"):
        registry.attach(Add(), to="*", name="add")
    assert state(model) == before
    assert "add" not in registry
    registry.attach(Add(), to="[02]", name="add")
    assert hooked(model) == ["0", "2"]


def test_attach_rolls_back_to_the_hooks_that_were_there() -> None:
    model = nn.Sequential(nn.Identity(), Unhookable())
    registry = HookRegistry(model)
    registry.attach(Add(1.0), to="0", name="first")
    before = state(model)
    with pytest.raises(RuntimeError):
        registry.attach(Add(2.0), to="*", name="second")
    assert state(model) == before
    assert torch.equal(model(torch.zeros(1)), torch.ones(1))


def test_enable_rolls_back_when_a_module_refuses_the_hook_half_way() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    before = state(model)
    registry = HookRegistry(model)
    registry.attach(Add(), to="*", name="add")
    registry.disable("add")
    model[1].register_forward_hook = Unhookable.register_forward_hook  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        registry.enable("add")
    del model[1].register_forward_hook
    assert state(model) == before
    assert repr(registry).endswith("disabled")
    registry.enable("add")
    assert hooked(model) == ["0", "1"]


def test_a_module_inside_torch_compile_is_refused_and_nothing_is_attached(golden: Golden) -> None:
    model = nn.Sequential(nn.Identity(), torch.compile(nn.Linear(2, 2)))
    before = state(model)
    with pytest.raises(HookError) as caught:
        HookRegistry(model).attach(Add(), to="**", name="add")
    golden("refusals", caught.value)
    assert_says(caught.value, "'1' | torch.compile | attach 'add' first")
    with pytest.raises(HookError, match=r"^'1' .*compiled"):
        HookRegistry(model).attach(Add(), to="1._orig_mod")
    assert state(model) == before


def test_a_module_compiled_in_place_is_refused_and_one_beside_it_is_not(model: nn.Module) -> None:
    model[0].compile()
    registry = HookRegistry(model)
    for inside in ("0", "0.second.0", nn.Linear):
        with pytest.raises(HookError, match=r"^'0' is compiled already"):
            registry.attach(Add(), to=inside)
    assert hooked(model) == []
    registry.attach(Add(), to="1")
    assert hooked(model) == ["1"]


def test_a_compiled_model_is_refused_by_its_class(model: nn.Module) -> None:
    compiled: Any = torch.compile(model)
    with pytest.raises(HookError, match=r"^'OptimizedModule' is compiled already"):
        HookRegistry(compiled).attach(Add(), to=nn.Linear)
    model.compile()
    with pytest.raises(HookError, match=r"^'Sequential' is compiled already"):
        HookRegistry(model).attach(Add(), to="1")


# -- hooks of others ---------------------------------------------------------------------------------------------------


def test_foreign_hooks_stay_and_keep_working(model: nn.Module) -> None:
    told: list[str] = []
    handles = [
        model[1].register_forward_pre_hook(lambda module, args: told.append("pre")),
        model[1].register_forward_hook(lambda module, args, kwargs, output: told.append("post"), with_kwargs=True),
    ]
    before = state(model)
    registry = HookRegistry(model)
    with registry.attached(Note("ours", told), to="1"):
        model(torch.ones(1, 2))
        assert told == ["pre", ("before", "ours", "1"), "post", ("after", "ours", "1")]
    assert state(model) == before
    del told[:]
    model(torch.ones(1, 2))
    assert told == ["pre", "post"]
    for handle in handles:
        handle.remove()


def test_a_foreign_hook_may_go_while_ours_stays(model: nn.Module) -> None:
    foreign = model[2].register_forward_hook(lambda module, args, output: output + 100)
    registry = HookRegistry(model)
    registry.attach(Add(1.0), to="2")
    x = torch.ones(1, 2)
    both = model(x)
    foreign.remove()
    assert torch.allclose(model(x), both - 100, atol=1e-4)
    registry.clear()
    assert torch.allclose(model(x), both - 101, atol=1e-4)


def test_two_registries_on_one_model_do_not_touch_each_other(model: nn.Module) -> None:
    one, two = HookRegistry(model), HookRegistry(model)
    one.attach(Add(1.0), to="2", name="add")
    two.attach(Add(10.0), to="2", name="add")
    x = torch.ones(1, 2)
    both = model(x)
    one.clear()
    assert torch.equal(model(x), both - 1)
    assert hooked(model) == ["2"]
    assert "add" in two


# -- copies ------------------------------------------------------------------------------------------------------------


def _by_deepcopy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.fixture(params=[_by_deepcopy, _by_pickle])
def copied(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_copied_model_keeps_its_hooks_and_does_not_share_them(model: nn.Module, copied: Any) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(10.0), to="2", name="add")
    x = torch.ones(1, 2)
    twin = copied(model)
    assert torch.equal(twin(x), model(x))
    registry.clear()
    assert torch.equal(twin(x), model(x) + 10)
    assert hooked(twin) == ["2"]
    assert hooked(model) == []


def test_a_part_of_a_model_is_copied_without_the_rest(model: nn.Module, copied: Any) -> None:
    HookRegistry(model).attach(Add(10.0), to="2", name="add")
    part = copied(model[2])
    assert torch.equal(part(torch.zeros(1)), torch.full((1,), 10.0))
    [(_, _, dispatcher)] = dispatchers_on(part.named_modules())
    assert len(pickle.dumps(dispatcher.entries)) < len(pickle.dumps(model))


def test_adopt_takes_over_the_hooks_of_a_copied_model(model: nn.Module, copied: Any) -> None:
    registry = HookRegistry(model, owner="mine")
    registry.attach(Add(1.0), to="[12]", name="add", order=3)
    registry.attach(Add(2.0), to="0", name="other")
    HookRegistry(model, owner="another").attach(Add(3.0), to="0", name="foreign")
    twin = copied(model)
    adopted = HookRegistry.adopt(twin, "mine")
    assert_says(repr(adopted), "2 hooks | [0] other | amount=2.0 | '0' | [1] add | amount=1.0 | '1', '2' | order 3")
    with adopted.disabled("add"):
        assert hooked(twin) == ["0", "0"]
    adopted.clear()
    assert hooked(twin) == ["0"]
    assert hooked(model) == ["0", "0", "1", "2"]


def test_adopt_finds_no_hooks_of_another_owner_and_none_that_were_disabled(model: nn.Module, copied: Any) -> None:
    registry = HookRegistry(model, owner="mine")
    registry.disable(registry.attach(Add(), to="1"))
    twin = copied(model)
    assert repr(HookRegistry.adopt(twin, "mine")) == "HookRegistry(Sequential, 0 hooks)"
    assert repr(HookRegistry.adopt(twin, "yours")) == "HookRegistry(Sequential, 0 hooks)"


def test_the_registry_does_not_keep_the_model_alive(model: nn.Module, golden: Golden) -> None:
    model = copy.deepcopy(model)
    registry = HookRegistry(model)
    registry.attach(Add(), to="**", name="add")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert_says(repr(registry), "gone | 1 hook | [0] add | amount=1.0 | '', '0', ")
    with pytest.raises(HookError) as caught:
        registry.attach(Add(), to="1")
    golden("refusals", caught.value)
    assert_says(caught.value, "model | gone | reference")
    registry.disable("add")
    registry.clear()


def test_a_hook_goes_on_without_the_registry_that_attached_it(model: nn.Module) -> None:
    x = torch.ones(1, 2)
    plain = model(x)
    HookRegistry(model).attach(Add(10.0), to="2")
    gc.collect()
    assert torch.equal(model(x), plain + 10)


# -- before, after, failed ---------------------------------------------------------------------------------------------


class Takes(nn.Module):
    """Gives back what it got."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def test_before_may_replace_arguments_and_knows_what_was_given() -> None:
    class Replace(Hook):
        def before(self, call: Call) -> None:
            call.args, call.kwargs = (*call.args, 2), {**call.kwargs, "b": 4}

        def after(self, call: Call, output: Any) -> None:
            assert (call.given_args, call.given_kwargs) == ((1,), {"a": 3})
            assert (call.args, call.kwargs) == ((1, 2), {"a": 3, "b": 4})

    model = Takes()
    HookRegistry(model).attach(Replace(), to="")
    assert model(1, a=3) == ((1, 2), {"a": 3, "b": 4})


def test_the_first_argument_is_found_and_replaced_by_position_or_by_name() -> None:
    class Replace(Hook):
        def before(self, call: Call) -> None:
            call.first = call.first + 1
            assert call.given_first == call.first - 1

    model = Takes()
    HookRegistry(model).attach(Replace(), to="")
    assert model(1, 5, a=3) == ((2, 5), {"a": 3})
    assert model(features=1, a=3) == ((), {"features": 2, "a": 3})
    empty = Call(model, "", (), {})
    assert empty.first is None
    assert empty.given_first is None


def test_after_replaces_the_output_unless_it_returns_none() -> None:
    class After(Hook):
        def __init__(self, replacement: Any) -> None:
            self.replacement = replacement

        def after(self, call: Call, output: Any) -> Any:
            return self.replacement

    model = nn.Identity()
    registry = HookRegistry(model)
    with registry.attached(After("other"), to=""):
        assert model("given") == "other"
    with registry.attached(After(None), to=""):
        assert model("given") == "given"
    with registry.attached(After("first"), to=""), registry.attached(After(None), to=""):
        assert model("given") == "first"


def test_what_a_hook_does_not_override_is_never_called(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Hook(), to="**", name="idle")
    x = torch.ones(1, 2)
    with registry.disabled():
        plain = model(x)
    assert torch.equal(model(x), plain)
    [(_, _, dispatcher), *_] = dispatchers_on(model.named_modules())
    entry = dispatcher.entries[0]
    assert (entry.before, entry.after, entry.failed) == (None, None, None)


def test_failed_gets_the_error_which_keeps_its_type_and_rises() -> None:
    told: list[Any] = []
    error = KeyError("all_layer_embeddings")
    model = nn.Sequential(Raises(error))
    HookRegistry(model).attach(Note("n", told), to="**")
    with pytest.raises(KeyError) as caught:
        model(1)
    assert caught.value is error
    assert told == [("before", "n", ""), ("before", "n", "0"), ("failed", "n", "0", error), ("failed", "n", "", error)]


def test_failed_gets_the_error_of_a_foreign_hook_on_the_module() -> None:
    told: list[Any] = []
    model = nn.Identity()
    model.register_forward_hook(lambda module, args, output: 1 / 0)
    HookRegistry(model).attach(Note("n", told), to="")
    with pytest.raises(ZeroDivisionError) as caught:
        model(1)
    assert told == [("before", "n", ""), ("failed", "n", "", caught.value)]


def test_failed_is_not_called_when_a_forward_succeeds_while_the_caller_handles_another_error() -> None:
    told: list[Any] = []
    model = nn.Identity()
    HookRegistry(model).attach(Note("n", told), to="")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        assert model("given") == "given"
    assert told == [("before", "n", ""), ("after", "n", "")]


def test_failed_is_called_when_a_forward_fails_while_the_caller_handles_another_error() -> None:
    told: list[Any] = []
    model = Raises(KeyError("inner"))
    HookRegistry(model).attach(Note("n", told), to="")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        with pytest.raises(KeyError):
            model(1)
    assert told == [("before", "n", ""), ("failed", "n", "", model.error)]


def test_an_error_in_before_rises_and_the_next_forward_is_as_ever() -> None:
    class Once(Hook):
        def before(self, call: Call) -> None:
            if call.first == "bad":
                raise ValueError("bad input")

    told: list[Any] = []
    model = nn.Identity()
    registry = HookRegistry(model)
    registry.attach(Note("n", told), to="", order=-1)
    registry.attach(Once(), to="")
    with pytest.raises(ValueError, match=r"^bad input$"):
        model("bad")
    assert model("good") == "good"
    assert told == [("before", "n", ""), ("before", "n", ""), ("after", "n", "")]


def test_an_error_in_after_rises_and_is_not_told_to_failed() -> None:
    class Bad(Hook):
        def after(self, call: Call, output: Any) -> None:
            raise ValueError("bad output")

    told: list[Any] = []
    model = nn.Identity()
    registry = HookRegistry(model)
    registry.attach(Note("n", told), to="", order=-1)
    registry.attach(Bad(), to="")
    with pytest.raises(ValueError, match=r"^bad output$"):
        model(1)
    assert told == [("before", "n", ""), ("after", "n", "")]


class Recursive(nn.Module):
    """Calls itself ``depth`` times and swallows the error of the innermost call if asked to."""

    def forward(self, depth: int, swallow: bool = False) -> int:
        if depth == 0:
            return 0
        try:
            return self(depth - 1, swallow=swallow) + 1
        except ValueError:
            if not swallow:
                raise
            return 100


class Depths(Hook):
    def __init__(self, told: list[Any], fails_at: int | None = None) -> None:
        self._told, self.fails_at = told, fails_at

    def before(self, call: Call) -> None:
        if call.first == self.fails_at:
            raise ValueError("too deep")

    def after(self, call: Call, output: Any) -> None:
        self._told.append((call.first, output))


def test_a_module_that_calls_itself_has_a_call_for_every_depth() -> None:
    told: list[Any] = []
    model = Recursive()
    HookRegistry(model).attach(Depths(told), to="")
    assert model(2) == 2
    assert told == [(0, 0), (1, 1), (2, 2)]


def test_an_error_in_before_of_an_inner_call_does_not_take_the_outer_call_away() -> None:
    told: list[Any] = []
    model = Recursive()
    HookRegistry(model).attach(Depths(told, fails_at=0), to="")
    assert model(2, swallow=True) == 101
    assert told == [(1, 100), (2, 101)]


class Interrupted(nn.Module):
    """Is interrupted, as by Ctrl-C, before each time that it calls itself."""

    def forward(self, features: dict[str, Any]) -> str:
        if features["depth"] == "interrupt":
            raise KeyboardInterrupt
        if features["depth"] == 0:
            return "innermost"
        with pytest.raises(KeyboardInterrupt):
            self({"depth": "interrupt"})
        return f"around {self({'depth': features['depth'] - 1})}"


class Features(dict[str, Any]):
    """A dict that can be watched."""


def test_an_interrupted_forward_leaves_no_call_after_the_next_one() -> None:
    """PyTorch runs no hook after Ctrl-C: the batch would stay in memory, and its call be taken for another's."""
    told: list[Any] = []
    model = Interrupted()
    HookRegistry(model).attach(Depths(told), to="")
    interrupted = Features(depth="interrupt")
    gone = weakref.ref(interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(interrupted)
    del interrupted
    assert model({"depth": 0}) == "innermost"
    gc.collect()
    assert gone() is None
    assert told == [({"depth": 0}, "innermost")]


def test_an_interrupted_inner_forward_leaves_the_calls_around_it() -> None:
    told: list[Any] = []
    model = Interrupted()
    HookRegistry(model).attach(Depths(told), to="")
    assert model({"depth": 2}) == "around around innermost"
    assert [(features["depth"], output) for features, output in told] == [
        (0, "innermost"),
        (1, "around innermost"),
        (2, "around around innermost"),
    ]


def test_a_hook_that_is_attached_while_the_module_runs_waits_for_the_next_forward() -> None:
    told: list[Any] = []

    class Attaches(nn.Module):
        def forward(self, x: int) -> int:
            if "n" not in registry:
                registry.attach(Note("n", told), to="", name="n")
            return x

    model = Attaches()
    registry = HookRegistry(model)
    assert model(1) == 1
    assert told == []
    assert model(1) == 1
    assert told == [("before", "n", ""), ("after", "n", "")]


def test_threads_each_have_their_own_call() -> None:
    seen: list[tuple[int, int]] = []
    meet = threading.Barrier(4, timeout=20)

    class Meets(nn.Module):
        def forward(self, x: int) -> int:
            meet.wait()
            return x

    class Keep(Hook):
        def before(self, call: Call) -> None:
            call.notes[self] = call.first

        def after(self, call: Call, output: Any) -> None:
            seen.append((call.notes[self], output))

    model = Meets()
    HookRegistry(model).attach(Keep(), to="")
    threads = [threading.Thread(target=model, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [(number, number) for number in range(4)]


def test_notes_last_as_long_as_the_call_and_belong_to_the_hook() -> None:
    class Keep(Hook):
        def before(self, call: Call) -> None:
            assert self not in call.notes
            call.notes[self] = "kept"

        def after(self, call: Call, output: Any) -> Any:
            return [*output, call.notes.pop(self)]

    model = nn.Identity()
    registry = HookRegistry(model)
    registry.attach(Keep(), to="")
    registry.attach(Keep(), to="")
    assert model([]) == ["kept", "kept"]
    assert model([]) == ["kept", "kept"]


# -- describing --------------------------------------------------------------------------------------------------------


def test_repr_numbers_the_hooks_in_the_order_in_which_they_run(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model)
    assert repr(registry) == "HookRegistry(Sequential, 0 hooks)"
    registry.attach(Add(2.5), to="[12]", name="second", order=1)
    registry.attach(LogShapes(), to="", name="first")
    registry.disable("second")
    golden("table", repr(registry))
    first, second = repr(registry).splitlines()[1:]
    assert_says(first, "[0] first | LogShapes() | '' | order 0")
    assert_says(second, "[1] second | Add(amount=2.5) | '1', '2' | order 1 | disabled")


def test_describe_lists_every_hook_on_every_module(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model, roles=roles)
    registry.attach(Add(), to="[12]", name="add", order=2)
    registry.attach(LogShapes(), to="0.second.0", name="log")
    registry.disable(registry.attach(Add(), to="0", name="off", order=9))
    model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    golden("table", registry.describe())
    assert [line.split() for line in str(registry.describe()).splitlines()[2:]] == [
        ["Linear", "'0.second.0'", "log", "0", "2"],
        ["Linear", "'1'", "layers", "add", "2", "2"],
        ["Identity", "'2'", "add", "2", "2"],
        ["Block", "'0'", "off", "9", "0", "disabled"],
    ]


def test_describe_of_no_hooks_is_an_empty_table(model: nn.Module, golden: Golden) -> None:
    table = HookRegistry(model).describe()
    golden("table", table)
    assert len(table) == 0
    assert list(table) == []


def test_describe_says_that_nothing_ran_yet(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model, roles=roles)
    registry.attach(Add(), to="1", name="add")
    [row] = registry.describe().never_fired
    golden("table", registry.describe())
    assert (row.hook, row.calls) == ("add", 0)
    assert_says(row.note, "never fired | no hooked module")
    model(torch.ones(1, 2))
    assert registry.describe().never_fired == ()
    assert [row.note for row in registry.describe()] == [""]


def test_describe_says_that_the_parent_calls_forward_directly(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="0.second", name="on it")
    registry.attach(Add(), to="0.second.0", name="inside it")
    model(torch.ones(1, 2))
    golden("table", registry.describe())
    on_it, inside_it = registry.describe()
    assert (on_it.hook, inside_it.hook, inside_it.note) == ("on it", "inside it", "")
    assert_says(on_it.note, "never fired | '0.second.0' | .forward()")


def test_describe_says_that_the_forward_does_not_pass(model: nn.Module, golden: Golden) -> None:
    model.unused = nn.Identity()  # type: ignore[assignment]
    model.forward = lambda x: model[1](x)  # type: ignore[method-assign]
    registry = HookRegistry(model)
    registry.attach(Add(), to="unused", name="unused")
    registry.attach(Add(), to="1", name="used")
    model(torch.ones(1, 2))
    golden("table", registry.describe())
    [row] = registry.describe().never_fired
    assert row.hook == "unused"
    assert_says(row.note, "never fired | other hooked modules")


def test_describe_does_not_blame_a_forward_from_before_the_hook_was_attached(model: nn.Module) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="1", name="early")
    registry.attach(Add(), to="1", name="zz disabled")
    registry.disable("zz disabled")
    model(torch.ones(1, 2))
    registry.attach(Add(), to="1", name="late")
    registry.attach(Add(), to="2", name="late elsewhere")
    registry.enable("zz disabled")
    never = registry.describe().never_fired
    assert [row.hook for row in never] == ["zz disabled", "late", "late elsewhere"]
    for row in never:
        assert_says(row.note, "never fired | no hooked module")


def test_describe_says_that_a_hook_before_it_raised(model: nn.Module, golden: Golden) -> None:
    class Bad(Hook):
        def before(self, call: Call) -> None:
            raise ZeroDivisionError

    registry = HookRegistry(model)
    registry.attach(Bad(), to="1", name="a")
    registry.attach(Add(), to="1", name="b")
    with pytest.raises(ZeroDivisionError):
        model(torch.ones(1, 2))
    golden("table", registry.describe())
    first, second = registry.describe()
    assert (first.hook, first.calls, first.note, second.hook, second.calls) == ("a", 1, "", "b", 0)
    assert_says(second.note, "never fired | before it | raised")


def test_describe_says_that_calls_inside_torch_compile_are_not_counted(model: nn.Module, golden: Golden) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="1", name="add")
    model.compile(backend="eager")
    with registry.disabled():
        plain = copy.deepcopy(model[1])(model[0](torch.ones(1, 2)))
    assert torch.allclose(model(torch.ones(1, 2)), plain + 1)
    golden("table", registry.describe())
    [row] = registry.describe()
    assert_says(row.note, "torch.compile | not counted")


# -- hooks under torch.compile -----------------------------------------------------------------------------------------


def test_attached_hooks_compile_without_a_graph_break(model: nn.Module, clean_dynamo: None) -> None:
    registry = HookRegistry(model)
    registry.attach(Add(), to="[12]")
    registry.attach(LogShapes(), to="**")
    x = torch.ones(1, 2)
    eager = model(x)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(x), eager)
