"""Backbones with recurrent layers, which padding before a text leaves in another state; and those that read padding."""

from __future__ import annotations

from typing import Any

import pytest

from peft_hooks import (
    UnsupportedModelError,
    check_padding_invariance,
    register_prompt_mask_hooks,
    without_adapter,
)

from ..tools.checks import TEXTS, assert_right, encoded, refused

_LINEAR = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}

# No mixtures of experts: PyTorch multiplies their matrices in no float64, which the reference needs.
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_LINEAR, "mlp_only_layers": [0, 1, 2, 3]},
    "qwen3_5_text": _LINEAR,
    "olmo_hybrid": {**_LINEAR, "linear_num_key_heads": 4},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {"mamba_d_ssm": 32, **_MAMBA, "mamba_n_heads": 4},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 32,
    },
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    "kimi_linear": {
        "first_k_dense_replace": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "num_key_value_heads": 4,
    },
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
}
_SIZES = {"num_hidden_layers": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="session")
def hybrid(adapted: Any) -> Any:
    """Return a tiny model with a prompt, or skip where the release has no such architecture."""

    def make(architecture: str, side: str) -> Any:
        try:
            return adapted(architecture, "prompt_tuning", padding_side=side, **{**_SIZES, **HYBRIDS[architecture]})
        except (ValueError, KeyError, ImportError, AttributeError, NotImplementedError) as error:
            pytest.skip(f"{architecture} is not in this release, or not in this size: {error}")

    return make


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", HYBRIDS)
def test_a_text_is_the_same_alone_and_in_a_batch_on_either_side(architecture: str, side: str, hybrid: Any) -> None:
    """And equal to one made by hand from a single text in float64, with no padding and no PEFT."""
    model = hybrid(architecture, side)
    try:
        handle = register_prompt_mask_hooks(model)
    except UnsupportedModelError as error:
        if "cannot run with virtual tokens" in str(error):  # older ones take no embeddings with the arguments of PEFT
            pytest.skip(str(error))
        assert "reads padding" in str(error)
        assert not plain_is_right(model)
        return
    with handle:
        assert_right(model)


def plain_is_right(model: Any) -> bool:
    """Tell whether the release's own backbone is right, padded on the right: in older ones RecurrentGemma is not."""
    former, model.tokenizer.padding_side = model.tokenizer.padding_side, "right"
    try:
        with without_adapter(model):
            return bool(check_padding_invariance(model, TEXTS))
    finally:
        model.tokenizer.padding_side = former


READERS: dict[str, dict[str, Any]] = {
    "convbert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "fnet": {},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": 3},
    "yoso": {},
}


@pytest.mark.parametrize("method", ["prompt_tuning", "lora"])
@pytest.mark.parametrize("architecture", READERS)
def test_a_backbone_that_reads_padding_is_refused_by_name(architecture: str, method: str, adapted: Any) -> None:
    """Its plain model does, too: no hook can help, and nothing is said of any other."""
    if method == "lora" and architecture == "fnet":
        pytest.skip("FNet has no layers that LoRA's defaults name")
    model = adapted(architecture, method, **READERS[architecture])
    try:
        with without_adapter(model):
            encoded(model)
    except TypeError as error:  # FNet takes no mask, which releases before 3.0 give to any backbone
        pytest.skip(f"cannot encode without an adapter: {error}")
    with refused(model, UnsupportedModelError, repr(architecture), "no hook can change"):
        register_prompt_mask_hooks(model)
