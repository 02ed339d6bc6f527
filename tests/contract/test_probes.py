"""What a backbone does is measured when the hooks are attached: no signature and no list of names decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import (
    UnsupportedModelError,
    add_prompt_adapter,
    check_padding_invariance,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
)
from peft_hooks.compat.kv_cache import cache_field

from ..tools.checks import TEXTS, assert_right, encoded, refused, unchanged
from ..tools.matrix import broken_in_peft
from ..tools.methods import VIRTUAL_TOKENS, backbone_of, prefix_tuning
from ..tools.miswired import Reversed, Swapped
from ..tools.reference import NoReference
from ..tools.sharing import ONCE, runs

# --- a forward without a signature ------------------------------------------------------------------------------------


def without_signature(model: Any) -> Any:
    """Make the backbone one of a class whose forward names no argument, as decorators leave it."""
    backbone = backbone_of(model)
    own = type(backbone)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return own.forward(*args, **kwargs)

    backbone.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})
    return model


@pytest.mark.parametrize("method", ["prefix_tuning", "cartridge", "prompt_tuning"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_forward_that_names_no_argument_is_right(architecture: str, method: str, plain: Any, put: Any) -> None:
    """Transformers 5.24 wraps its forwards."""
    model = without_signature(plain(architecture))
    put(model, method)
    with prompt_mask_hooks(model):
        assert_right(model)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_a_forward_that_names_no_argument_shares_its_prompt(architecture: str, plain: Any, put: Any) -> None:
    """What it does with keys and values is seen in a forward."""
    model = without_signature(plain(architecture))
    put(model, "prompt_tuning")
    with prompt_mask_hooks(model, share_prompt=True), runs(model) as seen:
        encoded(model)
        assert seen == ONCE


def test_a_forward_that_names_no_argument_and_has_no_cache_is_right(plain: Any, put: Any) -> None:
    """The twin: hooks put the prefix into its attention."""
    model = without_signature(plain("distilbert"))
    put(model, "prefix_tuning")
    with prompt_mask_hooks(model):
        assert_right(model)


# --- a prefix is keys and values of each layer ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Swapped, Reversed])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_prefix_that_does_not_come_to_its_place_is_refused(
    architecture: str, kind: type[nn.Module], plain: Any
) -> None:
    """Also while its own keys and values are all alike, as of an adapter that is not trained yet."""
    model = plain(architecture)
    wrapped = kind(backbone_of(model), prefix_tuning(model)).eval()
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.zero_()
    setattr(model[0], "model" if "model" in model[0]._modules else "auto_model", wrapped)
    message = ("PREFIX_TUNING adapter 'default'", "other rows than", "keys and values")
    with refused(model, UnsupportedModelError, *message):
        register_prompt_mask_hooks(model)


@pytest.mark.parametrize("method", ["prefix_tuning", "cartridge"])
@pytest.mark.parametrize("layers", [2, 3])
def test_gemma_3_is_right_or_refused_with_any_number_of_layers(layers: int, method: str, plain: Any, put: Any) -> None:
    """With two, PEFT 0.18 and 0.19 mix up keys and values without a word."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"][:layers]
    model = plain("gemma3_text", num_hidden_layers=layers, layer_types=kinds)
    put(model, method)
    if broken_in_peft("gemma3_text", method):
        with refused(model, UnsupportedModelError, "the backbone 'gemma3_text'"):
            register_prompt_mask_hooks(model)
        return
    with prompt_mask_hooks(model):
        assert_right(model)


@pytest.mark.parametrize("window", [3, 6])
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_window_that_is_shorter_than_prefix_and_text_is_right_or_refused(
    architecture: str, window: int, adapted: Any
) -> None:
    """Three positions are fewer than the virtual tokens alone."""
    model = adapted(architecture, "prefix_tuning", sliding_window=window)
    try:
        handle = register_prompt_mask_hooks(model)
    except UnsupportedModelError as error:
        assert f"the backbone {architecture!r}" in str(error)
        return
    with handle:
        try:
            assert_right(model)
        except NoReference:  # its own cache takes no prefix here, the hooks' rows in front do: proven at attaching
            assert check_padding_invariance(model, TEXTS).ok


def test_the_prefix_probe_draws_no_random_number_and_puts_everything_back(adapted: Any) -> None:
    """The generator of the process goes on as if nothing had been."""
    model = adapted("bert", "prefix_tuning").train()
    state = torch.get_rng_state()
    encoder = backbone_of(model).prompt_encoder["default"]
    with unchanged(model), prompt_mask_hooks(model):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone_of(model).prompt_encoder["default"] is encoder


# --- backbones that are no transformer of the usual kind --------------------------------------------------------------

SEQ_TO_SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}
ODD = {
    "fnet": {},
    "mamba": {"state_size": 4, "conv_kernel": 4, "time_step_rank": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "falcon_mamba": {"state_size": 4, "time_step_rank": 4},
    "bart": SEQ_TO_SEQ,
    "mbart": SEQ_TO_SEQ,
    "ibert": {},
    "gemma4_text": {"num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize("method", ["PrefixTuningConfig", "PromptTuningConfig"])
@pytest.mark.parametrize("architecture", ODD)
def test_any_backbone_runs_with_the_adapter_or_is_refused_by_name_when_it_is_put_on(
    architecture: str, method: str, plain: Any
) -> None:
    """No error of another library at attaching, and none when texts are encoded."""
    import peft

    model = plain(architecture, **ODD[architecture])
    try:
        encoded(model, TEXTS[:3])
    except TypeError as error:
        pytest.skip(f"cannot encode without an adapter: {error}")
    config = getattr(peft, method)(num_virtual_tokens=VIRTUAL_TOKENS)
    try:
        handle = add_prompt_adapter(model, config)
    except UnsupportedModelError as error:
        assert repr(architecture) in str(error)
        assert "LORA" in str(error) or "reads padding" in str(error)
        assert not hasattr(backbone_of(model), "peft_config")
        return
    with handle:
        assert torch.isfinite(encoded(model, TEXTS[:3])).all()


def test_a_backbone_that_cannot_run_without_the_adapter_either_says_nothing_about_it(adapted: Any) -> None:
    """Its own error is the user's to see."""

    class Broken(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            raise RuntimeError("of its own")

    model = adapted("bert")
    backbone_of(model).base_model.embeddings.LayerNorm = Broken()
    register_prompt_mask_hooks(model).remove()


# --- what holds keys and values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cache", "past_key_values", "what it will be called"])
def test_keys_and_values_are_known_by_what_they_are(name: str) -> None:
    """An output's hidden states are a tuple, too."""
    from transformers import DynamicCache

    hidden = {"last_hidden_state": torch.zeros(1, 2, 3), "hidden_states": (torch.zeros(1, 2, 3),) * 2}
    pairs = ((torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)),) * 2
    assert cache_field(hidden) is None
    assert cache_field({**hidden, name: DynamicCache()}) == name
    assert cache_field({**hidden, name: pairs}) == name
