"""What is changed on a model after its hooks were attached: seen in the next forward and when registering again."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import HookError, UnsupportedModelError, prompt_mask_hooks, register_prompt_mask_hooks, without_adapter
from peft_hooks.testing import assert_no_hooks_left
from peft_hooks.testing.models import pipeline_modules

from ..tools.checks import RELEASE, TEXTS, assert_right, distance, encoded, forward, needs, unchanged, with_pooling
from ..tools.methods import METHODS, backbone_of, fill_adapter, put_backbone

NONE_OF_THE_HOOKS = "has none of the hooks"


def pool_anew(model: Any, other: Any = None) -> None:
    model[1] = with_pooling(model, "cls")[1]


def another_backbone(model: Any, other: Any) -> None:
    put_backbone(model, backbone_of(other))


def another_transformer(model: Any, other: Any) -> None:
    model[0] = other[0]


REPLACED: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "Pooling": (pool_anew, "Pooling '1'"),
    "PeftModel": (another_backbone, "BertModel '0."),
    "Transformer": (another_transformer, "Transformer '0'"),
}
every_replacement = pytest.mark.parametrize("what", REPLACED)


@every_replacement
@pytest.mark.parametrize("check", [True, False])
def test_a_replaced_module_is_refused_by_name_in_the_next_forward_and_registering_attaches_anew(
    what: str, check: bool, adapted: Any
) -> None:
    """In silence it was off by 1.19, a new PeftModel by 0.58. The handle stays the same, and its options."""
    model = with_pooling(adapted(), "cls")
    handle = register_prompt_mask_hooks(model, check=check)
    assert_right(model, pooling="cls")
    replace, where = REPLACED[what]
    replace(model, adapted("bert", adapter={"seed": 3}))
    with pytest.raises(HookError) as caught:
        encoded(model)
    for part in (where, NONE_OF_THE_HOOKS, "`handle.refresh()`", "`register_prompt_mask_hooks(model, ...)`"):
        assert part in str(caught.value)
    assert register_prompt_mask_hooks(model, check=check) is handle
    assert_right(model, pooling="cls")
    assert not handle.describe().never_fired
    handle.remove()
    assert_no_hooks_left(model)


@every_replacement
def test_refresh_and_a_block_put_it_right_as_well(what: str, adapted: Any) -> None:
    """The block's end leaves the hooks that are registered, on the new module."""
    for mend in (lambda model, handle: handle.refresh(), lambda model, handle: block(model)):
        model = with_pooling(adapted(), "cls")
        handle = register_prompt_mask_hooks(model)
        REPLACED[what][0](model, adapted("bert", adapter={"seed": 3}))
        mend(model, handle)
        assert_right(model, pooling="cls")


def block(model: Any) -> None:
    with prompt_mask_hooks(model, virtual_tokens="strip"):
        assert_right(model, pooling="cls", virtual_tokens="strip")


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@every_replacement
def test_it_is_seen_in_a_copy_before_the_copy_is_registered(how: str, what: str, adapted: Any) -> None:
    """And not in a copy of which nothing was replaced, nor in the original."""
    model = with_pooling(adapted(), "cls")
    register_prompt_mask_hooks(model)
    copied, whole = (copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model)) for _ in range(2))
    REPLACED[what][0](copied, adapted("bert", adapter={"seed": 3}))
    with pytest.raises(HookError, match=NONE_OF_THE_HOOKS):
        encoded(copied)
    register_prompt_mask_hooks(copied)
    for right in (copied, whole, model):
        assert_right(right, pooling="cls")


def test_a_copy_of_what_was_replaced_is_seen_too(adapted: Any) -> None:
    """Workers get the model pickled: what was replaced before that had no forward in between."""
    model = adapted()
    register_prompt_mask_hooks(model)
    pool_anew(model)
    with pytest.raises(HookError, match=NONE_OF_THE_HOOKS):
        encoded(pickle.loads(pickle.dumps(model)))


def test_a_transformer_in_another_pipeline_does_not_run_with_half_of_the_hooks(adapted: Any) -> None:
    """Whose Pooling has none; its own goes on."""
    model = adapted()
    register_prompt_mask_hooks(model)
    other = with_pooling(model, "cls")
    with pytest.raises(HookError, match=NONE_OF_THE_HOOKS):
        encoded(other)
    assert_right(model)


def test_where_nothing_is_wrong_there_is_no_false_alarm(adapted: Any) -> None:
    """A Transformer by itself, in a module of one's own, with the adapter off, behind ``DataParallel``, in threads."""
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    features = {key: value for key, value in model.tokenize(list(TEXTS)).items() if torch.is_tensor(value)}
    truth = forward(model, dict(features))["sentence_embedding"]

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model[0]

        def forward(self, given: Any) -> Any:
            return self.inside(given)["token_embeddings"].mean(1)

    pool = model[1]
    for rows in (lambda: model[0](dict(features)), lambda: Rows()(dict(features)), lambda: nn.Sequential(*model)):
        rows()
    with torch.no_grad():
        assert distance(nn.DataParallel(model)(dict(features))["sentence_embedding"], truth) == 0
    with without_adapter(model):
        encoded(model)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: forward(model, dict(features))["sentence_embedding"], range(16)):
            assert distance(found, truth) == 0
    pool_anew(model)
    forward(model[0], dict(features))  # by itself it is right, whatever comes after it
    model[1] = pool
    assert_right(model)
    assert handle.active


def test_a_replica_sees_what_the_model_has(adapted: Any) -> None:
    """``replicate`` copies what modules hold, hooks among it, and no list of modules that somebody keeps."""
    model = adapted()
    register_prompt_mask_hooks(model)
    features = {key: value for key, value in model.tokenize(list(TEXTS)).items() if torch.is_tensor(value)}

    def replica() -> Any:
        copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
        for module, copied in copies.items():
            copied._modules = {name: copies[child] for name, child in module._modules.items() if child is not None}
            copied._parameters, copied._buffers = dict(module._parameters), dict(module._buffers)
        return copies[model]

    truth = forward(model, dict(features))["sentence_embedding"]
    assert distance(forward(replica(), dict(features))["sentence_embedding"], truth) == 0
    pool_anew(model)
    with pytest.raises(HookError, match=NONE_OF_THE_HOOKS):
        forward(replica(), dict(features))


def test_a_pooling_in_a_route_of_a_router_is_seen(adapted: Any) -> None:
    """The path to it goes through the Router."""
    needs(RELEASE >= (5, 0), "has no Router")
    from sentence_transformers import SentenceTransformer

    routes = {route: list(adapted("bert")) for route in ("query", "document")}
    router = pipeline_modules().Router(routes, default_route="document")
    model = SentenceTransformer(modules=[router], device="cpu").eval()
    register_prompt_mask_hooks(model)
    encoded(model, task="query")
    model[0].sub_modules["query"][1] = with_pooling([routes["query"][0]], "cls")[1]
    with pytest.raises(HookError, match=NONE_OF_THE_HOOKS):
        encoded(model, task="query")
    register_prompt_mask_hooks(model)
    assert distance(encoded(model, task="query"), encoded(model, [*TEXTS], task="query")) == 0


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
def test_compiling_is_as_without_it(adapted: Any) -> None:
    """A traced forward looks at nothing; what is compiled has no break in its graph for it."""
    model = adapted()
    register_prompt_mask_hooks(model)
    features = {key: value for key, value in model.tokenize(list(TEXTS)).items() if torch.is_tensor(value)}
    truth = forward(model, dict(features))["sentence_embedding"]
    compiled = torch.compile(model, backend="eager")
    assert distance(forward(compiled, dict(features))["sentence_embedding"], truth) <= 1e-6


def test_an_unneeded_module_may_be_replaced_and_registering_again_checks_it(adapted: Any) -> None:
    """A Normalize has a check only: the embedding is right without it."""
    from sentence_transformers import SentenceTransformer

    normalize = pipeline_modules().Normalize
    part = adapted()
    model = SentenceTransformer(modules=[part[0], part[1], normalize()], device="cpu").eval()
    handle = register_prompt_mask_hooks(model)
    model[2] = normalize()
    before = encoded(model)
    assert register_prompt_mask_hooks(model) is handle
    assert "check:2" in [row.hook for row in handle.describe() if row.calls == 0]
    assert distance(encoded(model), before) == 0
    assert not handle.describe().never_fired


def test_a_mode_that_is_changed_on_the_same_pooling_is_right(adapted: Any) -> None:
    """The hooks ask for it in every forward."""
    needs(RELEASE >= (5, 4), "has a flag for each mode")
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    model[1].pooling_mode = "cls"
    assert_right(model, pooling="cls")
    assert register_prompt_mask_hooks(model) is handle
    assert_right(model, pooling="cls")


def test_an_adapter_that_peft_itself_added_has_hooks_after_registering_again(adapted: Any) -> None:
    """The prompt encoder of a second multitask adapter has none before it, and PEFT says what is missing."""
    model = adapted("bert", "multitask_prompt_tuning")
    handle = register_prompt_mask_hooks(model, task_id=1)
    peft_model = backbone_of(model)
    peft_model.add_adapter("second", METHODS["multitask_prompt_tuning"](model, num_virtual_tokens=7))
    peft_model.set_adapter("second")
    with torch.no_grad():
        fill_adapter(peft_model, "second", 3, 1.0)
    assert register_prompt_mask_hooks(model, task_id=1) is handle
    assert_right(model, task_id=1)


def test_nothing_is_attached_anew_where_nothing_was_changed(adapted: Any) -> None:
    """Not even for a look."""
    model = adapted()
    handle = register_prompt_mask_hooks(model)
    encoded(model)
    with unchanged(model):
        assert register_prompt_mask_hooks(model) is handle
    assert not handle.describe().never_fired


def test_a_refresh_that_is_refused_leaves_the_hooks_that_were_on(adapted: Any) -> None:
    """A config that has no position left for a text."""
    model = adapted("bert")
    handle = register_prompt_mask_hooks(model)
    config = backbone_of(model).get_base_model().config
    former, config.max_position_embeddings = config.max_position_embeddings, 2
    with unchanged(model), pytest.raises(UnsupportedModelError):
        handle.refresh()
    assert handle.active
    config.max_position_embeddings = former
    assert_right(model)


# --- max_seq_length


@pytest.fixture
def short(adapted: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield adapted("bert", max_seq_length=28, max_position_embeddings=30)


LONG = "a cat and " * 40


def test_a_max_seq_length_that_is_raised_is_refused_in_words_and_refresh_lowers_it(short: Any) -> None:
    """Not by an index out of range; a text that is short enough goes through."""
    handle = register_prompt_mask_hooks(short)
    assert short.max_seq_length == 26
    short.max_seq_length = 30
    assert_right(short, ["the cat"])
    with pytest.raises(HookError) as caught:
        encoded(short, [LONG])
    for part in ("30 tokens", "adds 4", "30 positions", "max_seq_length is 30", "26 or less", "`handle.refresh()`"):
        assert part in str(caught.value)
    handle.refresh()
    assert short.max_seq_length == 26
    assert_right(short, ["the cat", LONG])
    handle.remove()
    assert short.max_seq_length == 30


def test_registering_again_lowers_it_as_well(short: Any) -> None:
    """The twin."""
    handle = register_prompt_mask_hooks(short)
    short.max_seq_length = 29
    assert register_prompt_mask_hooks(short) is handle
    assert short.max_seq_length == 26
    assert_right(short, ["the cat", LONG])


def test_an_adapter_of_more_virtual_tokens_is_refused_in_words(short: Any) -> None:
    """PEFT added it, and the length is as it was for the other."""
    register_prompt_mask_hooks(short)
    peft_model = backbone_of(short)
    peft_model.add_adapter("long", METHODS["prompt_tuning"](short, num_virtual_tokens=9))
    peft_model.set_adapter("long")
    with pytest.raises(HookError, match=r"adapter 'long' adds 9, and the backbone has 30 positions"):
        encoded(short, [LONG])
    register_prompt_mask_hooks(short)
    assert short.max_seq_length == 21
    assert_right(short, ["the cat", LONG])


def test_padding_alone_beyond_the_positions_is_refused_in_words(short: Any) -> None:
    """A batch padded to a multiple of something: the backbone counts a position for each token of padding, too."""
    register_prompt_mask_hooks(short)
    features = short.tokenizer(["the cat"], return_tensors="pt", padding="max_length", max_length=28)
    with pytest.raises(HookError, match="a batch is 28 tokens long"):
        forward(short, dict(features))
