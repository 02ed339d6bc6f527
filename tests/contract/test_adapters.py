"""Several adapters on one model: switched, deleted, side by side with LoRA, not trained, switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import peft_hooks
from peft_hooks import UnsupportedModelError, register_prompt_mask_hooks, remove_prompt_adapter, without_adapter
from peft_hooks.prompts.handle import adopt_handle
from peft_hooks.testing import TEXTS, assert_no_hooks_left, tiny_model
from peft_hooks.testing.models import pipeline_modules

from ..tools.checks import RELEASE, assert_right, distance, encoded, expected, needs, options_for, snapshot, unchanged
from ..tools.methods import CACHE_METHODS, METHODS, VARIANTS, backbone_of, fill_adapter
from ..tools.reference import reference_embedding

PROMPTS = tuple(name for name in METHODS if name != "lora")


pytestmark = pytest.mark.usefixtures("quietly")


def second(model: Any, method: str, name: str = "second", tokens: int = 7) -> Any:
    """Add another adapter, of another length, with parameters that clearly matter."""
    peft_model = backbone_of(model)
    peft_model.add_adapter(name, {**METHODS, **VARIANTS}[method](model, num_virtual_tokens=tokens))
    with torch.no_grad():
        fill_adapter(peft_model, name, 5, 1.0 if method in CACHE_METHODS else 0.7)
    return peft_model.eval()


def hooked(model: Any, method: str) -> Any:
    return register_prompt_mask_hooks(model, **options_for(method))


def how(method: str) -> dict[str, Any]:
    return options_for(method)


@pytest.mark.parametrize("method", PROMPTS)
def test_adapters_of_different_lengths_are_switched_between_calls(method: str, adapted: Any) -> None:
    """PEFT's own `set_adapter` is enough: the hooks measure what comes out."""
    model = adapted("bert", method)
    peft_model = second(model, method)
    hooked(model, method)
    for name in ("default", "second", "default"):
        peft_model.set_adapter(name)
        assert_right(model, **how(method))


def test_sentence_transformers_own_set_adapter_refuses_a_peft_model(adapted: Any) -> None:
    """So adapters are switched on the PeftModel, `model[0].auto_model`; if this fails, there is another way."""
    needs(RELEASE >= (3, 3), "has no set_adapter")
    model = adapted("bert")
    with pytest.raises(ValueError, match=r"PEFT methods are only supported for|No adapter loaded"):
        model.set_adapter("default")
    assert model[0].auto_model is backbone_of(model)


@pytest.mark.parametrize("method", PROMPTS)
def test_the_prompts_that_are_not_active_are_not_trained(method: str, adapted: Any) -> None:
    """They keep `requires_grad`, as PEFT leaves it, get no gradient, and no optimizer moves them."""
    model = adapted("bert", method)
    peft_model = second(model, method)
    hooked(model, method)
    encoders = peft_model.prompt_encoder
    before = {name: value.clone() for name, value in encoders.state_dict().items()}
    optimizer = torch.optim.AdamW(encoders.parameters(), lr=0.1, weight_decay=0.1)
    features = {key: value for key, value in model.tokenize(list(TEXTS)).items() if torch.is_tensor(value)}
    model(features)["sentence_embedding"].sin().sum().backward()
    assert all(parameter.grad is None for parameter in encoders["second"].parameters())
    assert any(parameter.grad is not None for parameter in encoders["default"].parameters())
    optimizer.step()
    moved = {name.partition(".")[0] for name, value in encoders.state_dict().items() if not value.equal(before[name])}
    assert moved == {"default"}


# --- deleting


@pytest.mark.parametrize("method", [*PROMPTS, "lora"])
def test_removing_the_active_adapter_makes_the_other_active(method: str, adapted: Any) -> None:
    model = adapted("bert", method)
    if method == "lora":
        backbone_of(model).add_adapter("second", METHODS["lora"](model, r=2))
        with torch.no_grad():
            fill_adapter(backbone_of(model), "second", 5, 1.0)
    else:
        second(model, method)
    handle = hooked(model, method)
    assert remove_prompt_adapter(model, "default") is handle
    assert list(backbone_of(model).peft_config) == ["second"] and backbone_of(model).active_adapter == "second"
    assert_right(model, **how(method))


@pytest.mark.parametrize("method", PROMPTS)
def test_removing_an_adapter_that_is_not_active_leaves_the_active_one(method: str, adapted: Any) -> None:
    model = adapted("bert", method)
    second(model, method)
    hooked(model, method)
    before = encoded(model)
    remove_prompt_adapter(model, "second")
    assert distance(encoded(model), before) == 0


@pytest.mark.parametrize("method", [*PROMPTS, "lora"])
@pytest.mark.parametrize("hooks", [True, False])
def test_removing_the_last_adapter_gives_the_base_model_back_without_hooks(
    method: str, hooks: bool, adapted: Any, put: Any
) -> None:
    model, base = adapted("bert", method), tiny_model("bert")
    if hooks:
        hooked(model, method)
    assert remove_prompt_adapter(model) is None
    assert type(backbone_of(model)) is type(backbone_of(base))
    assert distance(encoded(model), encoded(base)) < 1e-6
    assert_no_hooks_left(model)
    put(model, "prompt_tuning")
    hooked(model, "prompt_tuning")
    assert_right(model)


def test_an_adapter_that_is_not_there_cannot_be_removed(plain: Any, adapted: Any) -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match=r"'defualt'.*'default'"):
        remove_prompt_adapter(model, "defualt")
    with pytest.raises(ValueError, match=r"'default'.* none"):
        remove_prompt_adapter(plain("bert"))
    with pytest.raises(TypeError, match=r"a SentenceTransformer.* the str 'model'"):
        remove_prompt_adapter("model")  # type: ignore[arg-type]


def test_deleting_the_active_adapter_with_pefts_own_method_is_right_where_it_can(adapted: Any) -> None:
    model = adapted("bert")
    peft_model = second(model, "prompt_tuning")
    hooked(model, "prompt_tuning")
    try:
        peft_model.delete_adapter("default")
    except (AttributeError, TypeError, ValueError) as error:
        needs(False, f"PeftModel.delete_adapter does not know prompt learning: {type(error).__name__}: {error}")
    assert_right(model)


# --- LoRA and a prompt


def test_peft_refuses_lora_and_a_prompt_in_one_peft_model(adapted: Any) -> None:
    model = adapted("bert")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        backbone_of(model).add_adapter("lora", METHODS["lora"](model))


@pytest.mark.parametrize("method", PROMPTS)
def test_a_prompt_over_lora_layers_in_the_backbone_is_right(method: str, plain: Any, adapted: Any, put: Any) -> None:
    """`inject_adapter_in_model` puts LoRA into the backbone itself, and a PeftModel with a prompt goes around it."""
    from peft import inject_adapter_in_model

    model = plain("bert")
    inject_adapter_in_model(METHODS["lora"](model), backbone_of(model))
    seed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone_of(model).named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seed))
    put(model, method)
    hooked(model, method)
    assert distance(encoded(model), torch.cat([encoded(model, [text]) for text in TEXTS])) < 1e-5
    alone = adapted("bert", method)
    hooked(alone, method)
    assert distance(encoded(model), encoded(alone)) > 1e-3
    with without_adapter(model):
        assert distance(encoded(model), encoded(tiny_model("bert"))) < 1e-6


# --- without_adapter


@pytest.mark.parametrize("method", [*METHODS, *VARIANTS])
@pytest.mark.parametrize("hooks", [True, False])
def test_without_adapter_gives_the_base_models_embeddings_and_leaves_no_trace(
    method: str, hooks: bool, adapted: Any
) -> None:
    model = adapted("bert", method)
    base = expected(tiny_model("bert"))
    if hooks:
        hooked(model, method)
        before = encoded(model)
    else:
        before = torch.zeros(1)
    with unchanged(model):
        with without_adapter(model):
            assert_within(model, base)
            with without_adapter(model):
                assert_within(model, base)
            assert_within(model, base)
    if hooks:
        assert distance(encoded(model), before) == 0


def assert_within(model: Any, base: torch.Tensor) -> None:
    assert distance(encoded(model), base) < 1e-4
    assert distance(torch.cat([encoded(model, [text]) for text in TEXTS]), base) < 1e-4


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
def test_without_adapter_puts_everything_back_when_the_block_raises(method: str, adapted: Any) -> None:
    model = adapted("bert", method)
    hooked(model, method)
    before = encoded(model)
    with unchanged(model), pytest.raises(ZeroDivisionError), without_adapter(model):
        raise ZeroDivisionError
    assert distance(encoded(model), before) == 0


@pytest.mark.parametrize(("architecture", "side"), [("gpt2", "left"), ("mpnet", "right"), ("llama", "left")])
def test_without_adapter_on_other_backbones(architecture: str, side: str, plain: Any, adapted: Any) -> None:
    model = adapted(architecture, padding_side=side)
    hooked(model, "prompt_tuning")
    base = plain(architecture, padding_side=side)
    alone = torch.cat([encoded(base, [text]) for text in TEXTS])  # in a batch padding moves GPT-2's own positions
    with without_adapter(model):
        assert distance(encoded(model), alone) < 1e-5


def test_without_adapter_is_in_force_in_training_too_and_gives_no_gradient(adapted: Any) -> None:
    model = adapted("bert")
    hooked(model, "prompt_tuning")
    features = {key: value for key, value in model.tokenize(list(TEXTS)).items() if torch.is_tensor(value)}
    with without_adapter(model):
        found = model.train()(features)["sentence_embedding"]
    assert not found.requires_grad
    assert model(features)["sentence_embedding"].requires_grad


@pytest.mark.parametrize("frozen", [True, False])
def test_without_adapter_takes_lora_that_add_adapter_put_in(frozen: bool, plain: Any, add_adapter: Any) -> None:
    needs(RELEASE >= (3, 3), "has no add_adapter")
    model = plain("bert")
    add_adapter(model, METHODS["lora"](model))
    with torch.no_grad():
        for name, parameter in backbone_of(model).named_parameters():
            if "lora_" in name:
                parameter.fill_(0.1)
                parameter.requires_grad_(not frozen)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    before = encoded(model)
    with without_adapter(model), without_adapter(model):
        assert distance(encoded(model), encoded(tiny_model("bert"))) < 1e-6
    assert distance(encoded(model), before) == 0
    assert distance(before, encoded(tiny_model("bert"))) > 1e-3
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_without_adapter_takes_every_transformer_of_a_router(adapted: Any) -> None:
    needs(RELEASE >= (5, 0), "has no Router")
    from sentence_transformers import SentenceTransformer

    router = pipeline_modules().Router
    routes = {}
    for method, route in (("prompt_tuning", "query"), ("lora", "document")):
        part = adapted("bert", method)
        routes[route] = [part[0], part[1]]
    model = SentenceTransformer(modules=[router(routes, default_route="document")], device="cpu").eval()
    register_prompt_mask_hooks(model)
    base = encoded(tiny_model("bert"))
    before = snapshot(model)
    with without_adapter(model):
        for route in routes:
            assert distance(encoded(model, task=route), base) < 1e-6
    assert list(snapshot(model)) == list(before)
    for route in routes:
        assert distance(encoded(model, task=route), base) > 1e-3


def test_without_adapter_leaves_a_model_without_one_and_refuses_what_is_none(plain: Any) -> None:
    model = plain("bert")
    with unchanged(model), without_adapter(model):
        assert distance(encoded(model), expected(model)) < 1e-4
    with pytest.raises(TypeError, match=r"a SentenceTransformer.* None.* load it first"):
        with without_adapter(None):  # type: ignore[arg-type]
            pass
    with pytest.raises(UnsupportedModelError, match=r"a Linear.* no Transformer module"):
        with without_adapter(nn.Linear(2, 2)):
            pass


def test_pefts_own_disable_adapter_raises_or_leaves_a_trace(adapted: Any) -> None:
    """Why there is `without_adapter`; if this fails, PEFT has mended it."""
    model = adapted("bert")
    peft_model = backbone_of(model)
    before = set(vars(peft_model))
    try:
        with peft_model.disable_adapter():
            pass
    except UnboundLocalError:
        assert RELEASE >= (5, 0)
    assert "forward" in set(vars(peft_model)) - before


def test_the_handle_stays_the_models_own_after_the_block(adapted: Any) -> None:
    model = adapted("bert")
    handle = hooked(model, "prompt_tuning")
    with without_adapter(model):
        pass
    assert adopt_handle(model) is handle is peft_hooks.register_prompt_mask_hooks(model)
    assert distance(encoded(model, TEXTS[:1]), reference_embedding(model, TEXTS[0], pooling=("mean",))[None]) < 1e-4
