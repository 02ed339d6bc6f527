"""Helpers for tests of hooks: tiny random models of any architecture, hand-made features, assertions.

The pytest plugin, ``peft_hooks.pytest_plugin``, has fixtures for the same purpose.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .assertions import assert_no_hooks_left, assert_padding_invariant, assert_shapes
from .models import (
    IDS,
    POOLING_MODES,
    SPECIAL,
    TEXTS,
    VOCABULARY,
    backbone_class,
    config_arguments,
    fill_weights,
    make_pooling,
    make_tokenizer,
    pipeline_modules,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

__all__ = [
    "POOLING_MODES",
    "TEXTS",
    "assert_no_hooks_left",
    "assert_padding_invariant",
    "assert_shapes",
    "tiny_features",
    "tiny_model",
    "tiny_transformer",
]


def tiny_transformer(architecture: str, path: str | Path, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Write a tiny random transformer and its tokenizer to a directory that ``models.Transformer(path)`` loads.

    The weights depend only on ``seed``, and are large enough that attention matters and that different texts get
    clearly different embeddings.

    Args:
        architecture: The architecture's name in transformers (``config.model_type``), like ``"bert"`` or ``"qwen3"``.
        path: The directory to write to; created if missing.
        seed: Seed of the weights.
        **config_overrides: Anything that the architecture's config takes, like ``num_hidden_layers=1``.

    Returns:
        The directory.

    Raises:
        ValueError: If the installed transformers does not have the architecture.

    Example:
        >>> import tempfile
        >>> from peft_hooks.testing import tiny_transformer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = tiny_transformer("bert", folder, num_hidden_layers=1)
        ...     (path / "config.json").is_file()
        True
    """
    import transformers

    try:
        config = transformers.AutoConfig.for_model(architecture, **config_arguments(architecture, config_overrides))
    except ValueError as error:
        if "Unrecognized model identifier" not in str(error):
            raise
        raise ValueError(
            f"transformers {transformers.__version__} has no architecture {architecture!r} "
            "(phi3 needs transformers >= 4.41, modernbert >= 4.48, gemma3_text >= 4.50, qwen3 >= 4.51)"
        ) from error
    backbone = backbone_class(config)(config)
    fill_weights(backbone, seed)
    backbone.save_pretrained(path)
    make_tokenizer(architecture).save_pretrained(path)
    return Path(path)


def tiny_model(
    architecture: str = "bert",
    *,
    pooling: str | tuple[str, ...] = "mean",
    padding_side: str = "right",
    path: str | Path | None = None,
    include_prompt: bool = True,
    normalize: bool = False,
    max_seq_length: int | None = None,
    **config: Any,
) -> SentenceTransformer:
    """Build a tiny random SentenceTransformer: a transformer, pooling, and optionally normalization.

    Args:
        architecture: The architecture's name in transformers, like ``"bert"`` or ``"qwen3"``.
        pooling: One or more pooling modes; several are concatenated in the order of ``POOLING_MODES``, which is the
            only order that Sentence Transformers before 5.4 knows.
        padding_side: ``"right"`` or ``"left"``.
        path: The directory that the transformer is written to; by default a temporary one, which is removed again.
        include_prompt: Whether pooling counts a prompt's tokens.
        normalize: Whether to add a Normalize module at the end.
        max_seq_length: The length at which texts are truncated; by default what the release infers.
        **config: ``seed``, and anything that the architecture's config takes.

    Returns:
        The model, on the CPU, in eval mode.

    Raises:
        ValueError: If the installed transformers does not have the architecture, or a pooling mode is unknown.

    Example:
        >>> from peft_hooks.testing import tiny_model
        >>> tiny_model("gpt2", pooling=("mean", "lasttoken"), padding_side="left").encode(["a cat", "rain"]).shape
        (2, 64)
    """
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    with tempfile.TemporaryDirectory() as temporary:
        directory = tiny_transformer(architecture, temporary if path is None else path, **config)
        transformer = modules.Transformer(str(directory), max_seq_length=max_seq_length)
    transformer.tokenizer.padding_side = padding_side
    backbone = getattr(transformer, "model", None) or transformer.auto_model
    chain = [transformer, make_pooling(int(backbone.config.hidden_size), pooling, include_prompt)]
    if normalize:
        chain.append(modules.Normalize())
    return SentenceTransformer(modules=chain, device="cpu").eval()


def tiny_features(
    batch: int = 2, seq: int = 6, hidden: int = 8, virtual_tokens: int = 3, padding: str = "right"
) -> dict[str, Tensor]:
    """Make the features that a Transformer module returns when its backbone has a prompt-learning adapter.

    Row ``i`` of the batch has ``seq - i`` real tokens (at least one); the rest is padding.

    Args:
        batch: The number of texts.
        seq: The length of the longest text.
        hidden: The width of an embedding.
        virtual_tokens: How many more positions ``token_embeddings`` has than ``attention_mask``.
        padding: ``"right"`` or ``"left"``.

    Returns:
        ``input_ids`` and ``attention_mask`` (``int64[batch, seq]``), and ``token_embeddings``
        (``float32[batch, virtual_tokens + seq, hidden]``).

    Example:
        >>> from peft_hooks.testing import tiny_features
        >>> features = tiny_features(batch=2, seq=3, hidden=8, virtual_tokens=4, padding="left")
        >>> features["attention_mask"]
        tensor([[1, 1, 1],
                [0, 1, 1]])
        >>> features["token_embeddings"].shape
        torch.Size([2, 7, 8])
    """
    import torch

    lengths = (seq - torch.arange(batch)).clamp(min=1).unsqueeze(1)
    positions = torch.arange(seq).unsqueeze(0)
    real = positions < lengths if padding == "right" else positions >= seq - lengths
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(SPECIAL), len(VOCABULARY), (batch, seq), generator=generator)
    return {
        "input_ids": torch.where(real, ids, IDS["pad_token_id"]),
        "attention_mask": real.to(torch.int64),
        "token_embeddings": torch.randn(batch, virtual_tokens + seq, hidden, generator=generator),
    }


# As with the names in `peft_hooks`, reprs and errors should name the module that users import from.
for _name in __all__:
    if callable(globals()[_name]):
        globals()[_name].__module__ = __name__
