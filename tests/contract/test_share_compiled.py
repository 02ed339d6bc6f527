"""The virtual tokens of a causal decoder are computed once under ``torch.compile``, too: in one graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import peft_hooks
from peft_hooks import prompt_mask_hooks
from peft_hooks.compat.kv_cache import NO_LAYERS, can_be_traced

from ..tools.checks import TEXTS, distance, encoded, expected, needs, options_for
from ..tools.methods import VIRTUAL_TOKENS, backbone_of, pipeline_of
from ..tools.sharing import METHODS, layers_of, look, put_second, remark
from ..tools.wording import assert_says

# Of two rows and more: a graph of its own is compiled for one row, hooks or not.
BATCHES = (TEXTS, TEXTS[:2], TEXTS[1:5], TEXTS[:3])


class Graphs:
    """Takes down which numbers of rows and positions go into attention, graph by graph; runs each as it is."""

    def __init__(self) -> None:
        self.found: list[list[Any]] = []

    def __call__(self, graph: Any, examples: Any) -> Any:
        nodes = [node for node in graph.graph.nodes if node.target is nn.functional.scaled_dot_product_attention]
        self.found.append([node.args[0].meta["example_value"].shape[2] for node in nodes])
        return graph.forward

    @property
    def attentions(self) -> list[int]:
        """How often attention runs, in each graph."""
        return [len(lengths) for lengths in self.found]


@contextlib.contextmanager
def compiling(model: Any) -> Iterator[tuple[Any, Graphs]]:
    """Compile the pipeline; there is no break in a graph."""
    graphs = Graphs()
    torch._dynamo.reset()
    with torch.no_grad():
        counters.clear()
        yield torch.compile(pipeline_of(model), backend=graphs, dynamic=True), graphs
        assert not counters["graph_break"]


def given(model: Any, texts: Any) -> dict[str, Tensor]:
    tokens = model.tokenize(list(texts))
    return {key: tokens[key] for key in ("input_ids", "attention_mask")}


def layers(model: Any) -> int:
    return len(layers_of(model))


needs_layers = pytest.mark.skipif(not can_be_traced(), reason=NO_LAYERS)


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@needs_layers
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("architecture", "side"), [("llama", "left"), ("qwen3", "right"), ("gemma3_text", "left")])
def test_batches_of_all_sizes_run_in_one_graph_that_shares(
    architecture: str, side: str, method: str, adapted: Any
) -> None:
    """Each layer runs twice in it: for the virtual tokens, of which there is a number, and for the text."""
    model = adapted(architecture, method, padding_side=side)
    options = options_for(method)
    with prompt_mask_hooks(model, share_prompt=True, **options), compiling(model) as (compiled, graphs):
        for texts in BATCHES:
            truth = expected(model, texts, task_id=options.get("task_id"))
            found = compiled(given(model, texts))
            assert distance(found, truth) <= 1e-4
            assert distance(found, encoded(model, texts)) <= 1e-6
        assert graphs.attentions == [2 * layers(model)]
        assert graphs.found[0].count(VIRTUAL_TOKENS) == layers(model)


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@needs_layers
def test_another_adapter_is_another_graph(adapted: Any) -> None:
    """The number of virtual tokens is guarded on: switched, the model is compiled once more."""
    model = adapted("llama", padding_side="left")
    put_second(model)
    with prompt_mask_hooks(model, share_prompt=True), compiling(model) as (compiled, graphs):
        for name in ("default", "second", "default", "second"):
            backbone_of(model).set_adapter(name)
            assert distance(compiled(given(model, TEXTS)), expected(model)) <= 1e-4
        assert [lengths.count(7) for lengths in graphs.found] == [0, layers(model)]
        assert graphs.attentions == [2 * layers(model)] * 2


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@needs_layers
def test_one_row_and_what_cannot_be_cut_in_two_run_as_without(adapted: Any) -> None:
    """One row, and a layer that somebody watches."""
    model = adapted("llama")
    with prompt_mask_hooks(model), compiling(model) as (compiled, graphs):
        compiled(given(model, TEXTS[:1]))
        with layers_of(model)[0].register_forward_hook(look):
            torch._dynamo.reset()
            compiled(given(model, TEXTS))
        torch._dynamo.reset()
        compiled(given(model, TEXTS))
        assert graphs.attentions == [layers(model), layers(model), 2 * layers(model)]


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
@needs_layers
def test_with_the_adapter_switched_off_there_is_nothing_to_share(adapted: Any) -> None:
    model = adapted("llama", padding_side="left")
    with prompt_mask_hooks(model), compiling(model) as (compiled, graphs):
        with peft_hooks.without_adapter(model):
            found = compiled(given(model, TEXTS))
            assert distance(found, encoded(model)) <= 1e-6
        assert graphs.attentions == [layers(model)]


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
def test_gradients_are_those_of_a_model_that_is_not_compiled(adapted: Any) -> None:
    """In training it steps aside under torch.compile."""
    model = adapted("llama")
    found = []
    with prompt_mask_hooks(model):
        model.train()
        for run in (pipeline_of(model), torch.compile(pipeline_of(model), backend="aot_eager")):
            model.zero_grad()
            run(given(model, TEXTS)).sin().sum().backward()
            (prompt,) = backbone_of(model).prompt_encoder["default"].parameters()
            found.append(prompt.grad.clone())
    assert distance(found[1], found[0]) <= 1e-5 * max(1.0, float(found[0].abs().max()))


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
def test_where_caches_have_no_layers_it_steps_aside_and_says_so(adapted: Any) -> None:
    needs(not can_be_traced(), "caches have layers")
    model = adapted("llama")
    with prompt_mask_hooks(model) as handle, torch.no_grad():
        compiled = torch.compile(pipeline_of(model), backend="eager")
        assert distance(compiled(given(model, TEXTS)), expected(model)) <= 1e-4
        assert_says(remark(handle), f"once for all rows | torch.compile for every row | {NO_LAYERS}")
