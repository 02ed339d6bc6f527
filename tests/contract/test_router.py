"""Contract: routes of a Router (Asym before 5.0) have each what their own adapters need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peft_hooks import add_prompt_adapter, prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.errors import UnsupportedModelError

from ..tools.checks import RELEASE, TEXTS, distance, needs, options_for
from ..tools.reference import reference_embedding, reference_token_embeddings

SINCE_ROUTER = RELEASE >= (5, 0)


def encoded(model: Any, route: str, texts: tuple[str, ...]) -> Tensor:
    """Encode texts of one route in one batch."""
    options: dict[str, Any] = {"batch_size": len(texts), "convert_to_tensor": True}
    if SINCE_ROUTER:
        found = model.encode(list(texts), task=route, **options)
    else:
        found = model.encode([{route: text} for text in texts], **options)
    return torch.as_tensor(found)


def assert_route(model: Any, route: str, truth: Tensor) -> None:
    """Assert a route's embeddings, in one batch and each alone."""
    assert distance(encoded(model, route, TEXTS), truth) <= 1e-4
    assert distance(torch.cat([encoded(model, route, (text,)) for text in TEXTS]), truth) <= 1e-4


def dense(seed: int) -> Any:
    """Make a Dense module with weights of its own."""
    from sentence_transformers.models import Dense

    torch.manual_seed(seed)
    return Dense(32, 32, bias=False, activation_function=torch.nn.Identity())


def means(model: Any, **how: Any) -> Tensor:
    """Compute mean-pooled embeddings of a plain pipeline by hand."""
    return torch.stack([reference_embedding(model, text, **how) for text in TEXTS])


@pytest.mark.parametrize("policy", ["auto", "pool", "ignore", "strip"])
def test_one_transformer_before_two_routes(policy: str, adapted: Any, routed: Any) -> None:
    """An adapter before the Router serves both routes, each with a Dense of its own."""
    base = adapted("bert")
    query, document = dense(1), dense(2)
    model = routed([base[0], base[1]], [], query=[query], document=[document])
    truth = means(base, virtual_tokens=policy)
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_route(model, "query", truth @ query.linear.weight.detach().double().T)
        assert_route(model, "document", truth @ document.linear.weight.detach().double().T)


@pytest.mark.parametrize("methods", [("prompt_tuning", "lora"), ("p_tuning", "prefix_tuning"), ("prompt_tuning", None)])
def test_a_transformer_in_each_route(methods: tuple[str, str | None], plain: Any, adapted: Any, routed: Any) -> None:
    """Two backbones, each with an adapter of its own method or with none."""
    query = adapted("bert", methods[0], adapter={"num_virtual_tokens": 3})
    document = plain("roberta") if methods[1] is None else adapted("roberta", methods[1])
    model = routed([], [], query=[query[0], query[1]], document=[document[0], document[1]])
    with prompt_mask_hooks(model):
        assert_route(model, "query", means(query))
        assert_route(model, "document", means(document))


def test_a_pooling_after_the_routes(adapted: Any, routed: Any) -> None:
    """Routes that end with tokens are pooled after the Router, each with its own number of virtual tokens."""
    query = adapted("bert", adapter={"num_virtual_tokens": 3})
    document = adapted("bert", adapter={"num_virtual_tokens": 7})
    model = routed([], [query[1]], query=[query[0]], document=[document[0]])
    with prompt_mask_hooks(model):
        assert_route(model, "query", means(query))
        assert_route(model, "document", means(document))


def test_task_ids_of_multitask_prompt_tuning(plain: Any, adapted: Any, routed: Any) -> None:
    """A route's multitask adapter gets its task."""
    query, document = adapted("bert", "multitask_prompt_tuning"), plain("bert")
    model = routed([], [], query=[query[0], query[1]], document=[document[0], document[1]])
    options = options_for("multitask_prompt_tuning")
    with prompt_mask_hooks(model, **options):
        assert_route(model, "query", means(query, **options))
        assert_route(model, "document", means(document))


def test_one_backbone_in_both_routes(adapted: Any, routed: Any) -> None:
    """A Transformer that both routes share is hooked once."""
    base = adapted("bert")
    model = routed([], [], query=[base[0], base[1]], document=[base[0], base[1]])
    with prompt_mask_hooks(model):
        assert_route(model, "query", means(base))
        assert_route(model, "document", means(base))


def test_tokens_of_a_route_without_pooling(adapted: Any, routed: Any) -> None:
    """A Pooling in one route does not leave virtual tokens in the other, which has none."""
    needs(SINCE_ROUTER, "encode() of Asym gives no token embeddings for one route")
    query, document = adapted("bert"), adapted("bert")
    model = routed([], [], query=[query[0]], document=[document[0], document[1]])
    with prompt_mask_hooks(model):
        assert_route(model, "document", means(document))
        found = model.encode(list(TEXTS), task="query", output_value="token_embeddings")
    for rows, text in zip(found, TEXTS, strict=True):
        truth = reference_token_embeddings(query, text)[4:]
        assert distance(torch.as_tensor(rows), truth) <= 1e-4


def test_a_router_without_an_adapter_is_refused(plain: Any, routed: Any) -> None:
    """As any other model."""
    base = plain("bert")
    model = routed([base[0], base[1]], [], query=[dense(1)], document=[dense(2)])
    with pytest.raises(UnsupportedModelError, match="has no PEFT adapter"):
        register_prompt_mask_hooks(model)


def test_add_prompt_adapter_asks_which_of_two_transformers(plain: Any, routed: Any) -> None:
    """With a Transformer in each route, the message names both and says how to go on."""
    from peft import PromptTuningConfig

    query, document = plain("bert"), plain("bert")
    model = routed([], [], query=[query[0], query[1]], document=[document[0], document[1]])
    with pytest.raises(UnsupportedModelError, match=r"query.0.*document.0.*by hand"):
        add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=3))
