"""Whole models of every kind, as the contract needs them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks.compat.quiet import quiet
from peft_hooks.testing import tiny_transformer
from peft_hooks.testing.models import config_arguments, fill_weights, make_tokenizer, pipeline_modules

from ..tools.checks import RELEASE
from ..tools.cross import Pipe
from ..tools.methods import METHODS, Unavailable, fill_adapter
from ..tools.training import ANCHORS, POSITIVES, SCORES, losses_of_the_release

Make = Callable[..., Any]


@pytest.fixture
def quietly() -> Iterator[None]:
    """Let transformers say nothing of what it loads."""
    with quiet():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny transformer, the base of every model that is saved."""
    return tiny_transformer("bert", tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="session")
def build(put: Make) -> Make:
    """Build a model on a base: every kind of module, prompts, an own length, left padding."""

    def make(base: Path, method: str | None = "prompt_tuning", *, dense: bool = True) -> Any:
        from sentence_transformers import SentenceTransformer

        modules = pipeline_modules()
        first = modules.Transformer(str(base), max_seq_length=40)
        torch.manual_seed(0)
        narrower = [modules.Dense(32, 24, activation_function=nn.Tanh())] if dense else []
        chain = [first, modules.Pooling(32, "mean"), *narrower, modules.Normalize()]
        prompts = {"query": "search query : ", "passage": "passage : "}
        model = SentenceTransformer(modules=chain, device="cpu", prompts=prompts, default_prompt_name="query").eval()
        model.tokenizer.padding_side = "left"
        if method is not None:
            put(model, method)
        return model

    return make


@pytest.fixture(scope="session")
def make_trainer() -> Make:
    """Make a trainer that saves every second step."""

    def make(trainer_class: Any, model: Any, folder: Path, loss: Any = None, **options: Any) -> Any:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainingArguments

        rest = {key: options.pop(key) for key in ("evaluator", "callbacks") if key in options}
        defaults = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05}
        quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "seed": 3}
        args = SentenceTransformerTrainingArguments(str(folder), **{**defaults, **quiet, **options})
        dataset = Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES, "label": SCORES})
        loss = loss or losses_of_the_release().CosineSimilarityLoss(model)
        return trainer_class(model=model, args=args, train_dataset=dataset, loss=loss, **rest)

    return make


@pytest.fixture(scope="session")
def masked_lm() -> Make:
    """Make the module of a SparseEncoder that gives a logit per token and word."""

    def make(architecture: str) -> Any:
        from transformers import AutoConfig, AutoModelForMaskedLM

        try:
            config = AutoConfig.for_model(architecture, **config_arguments(architecture, {}))
        except ValueError:
            pytest.skip(f"the installed transformers has no {architecture}")
        backbone = AutoModelForMaskedLM.from_config(config)
        fill_weights(backbone, 0)
        with tempfile.TemporaryDirectory() as path:
            backbone.save_pretrained(path)
            make_tokenizer(architecture).save_pretrained(path)
            if RELEASE >= (5, 4):
                from sentence_transformers.base.modules import Transformer

                return Transformer(path, transformer_task="fill-mask")
            from sentence_transformers.sparse_encoder.models import MLMTransformer

            return MLMTransformer(path)

    return make


@pytest.fixture(scope="session")
def splade() -> Make:
    """Make the pooling module of a SparseEncoder."""

    def make(strategy: str = "max", **options: Any) -> Any:
        if RELEASE >= (5, 4):
            from sentence_transformers.sparse_encoder.modules import SpladePooling
        else:
            from sentence_transformers.sparse_encoder.models import SpladePooling
        return SpladePooling(strategy, **options)

    return make


@pytest.fixture(scope="session")
def sparse(masked_lm: Make, splade: Make) -> Make:
    """Build a tiny SparseEncoder."""

    def make(architecture: str = "bert", strategy: str = "max", **options: Any) -> Any:
        from sentence_transformers import SparseEncoder

        return SparseEncoder(modules=[masked_lm(architecture), splade(strategy, **options)], device="cpu").eval()

    return make


@pytest.fixture(scope="session")
def put_sparse() -> Make:
    """Put an adapter with parameters that matter on the Transformer of a SparseEncoder, or skip."""

    def put(transformer: Any, method: str, task_type: str = "FEATURE_EXTRACTION") -> Any:
        from peft import get_peft_model

        attribute = "model" if RELEASE >= (5, 4) else "auto_model"
        backbone = getattr(transformer, attribute)
        try:
            config = METHODS[method](Pipe(backbone))
        except Unavailable as error:
            pytest.skip(str(error))
        config.task_type = task_type
        adapter = get_peft_model(backbone, config).eval()
        with torch.no_grad():
            fill_adapter(adapter, "default", 0, 1.0)
        setattr(transformer, attribute, adapter)
        return adapter

    return put


@pytest.fixture(scope="session")
def multi_vector(plain: Make, put: Make) -> Make:
    """Build a tiny MultiVectorEncoder: a Transformer, a Dense on tokens, a mask and Normalize."""

    def make(architecture: str = "bert", method: str | None = "prompt_tuning", **options: Any) -> Any:
        from sentence_transformers import MultiVectorEncoder
        from sentence_transformers.base.modules import Dense
        from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
        from sentence_transformers.sentence_transformer.modules import Normalize

        expansion = options.pop("query_expansion", None)
        base = plain(architecture, padding_side=options.pop("padding_side", "right"))
        if method is not None:
            put(base, method)
        torch.manual_seed(0)
        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        dense = Dense(32, 8, bias=False, activation_function=nn.Identity(), **names)
        modules = [base[0], dense, MultiVectorMask(**options), Normalize(module_input_name="token_embeddings")]
        model = MultiVectorEncoder(modules=modules, device="cpu").eval()
        if expansion is not None:
            model[0].query_expansion = expansion
        return model

    return make


@pytest.fixture(scope="session")
def routed() -> Make:
    """Build a model that goes one of two ways."""

    def make(before: list[Any], after: list[Any], **routes: list[Any]) -> Any:
        from sentence_transformers import SentenceTransformer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old home of classes that have a new one since 5.4
            if RELEASE >= (5, 0):
                from sentence_transformers.models import Router

                router = Router(routes)
            else:
                from sentence_transformers.models import Asym

                router = Asym(routes)
        return SentenceTransformer(modules=[*before, router, *after], device="cpu").eval()

    return make
