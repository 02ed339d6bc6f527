"""Contract: a SparseEncoder's embedding counts the text's tokens only, the same alone and in a batch."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peft_hooks
from peft_hooks import (
    Hook,
    HookRegistry,
    add_prompt_adapter,
    check_padding_invariance,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
)

from ..tools.checks import RELEASE, TASK, TEXTS, distance, needs, options_for
from ..tools.reference import _cache, float64_by_default, key_values, plain_backbone, prompt_rows

pytestmark = pytest.mark.skipif(RELEASE < (5, 0), reason="SparseEncoder came with Sentence Transformers 5.0")
ATTRIBUTE = "model" if RELEASE >= (5, 4) else "auto_model"


def logits_of(model: Any, transformer: Any, text: str) -> tuple[Tensor, int]:
    """Compute by hand the logits of one text, virtual tokens' rows first, and how many those are."""
    wrapped = getattr(transformer, ATTRIBUTE)
    plain = plain_backbone(wrapped)
    ids = torch.tensor([transformer.tokenizer(text)["input_ids"]])
    logits: Tensor
    with torch.no_grad(), float64_by_default():
        virtual, inputs = 0, {"input_ids": ids}
        kind = str(wrapped.active_peft_config.peft_type.value)
        past = 0
        if kind in ("PREFIX_TUNING", "CARTRIDGE"):
            pairs = key_values(wrapped)
            past, inputs = pairs[0][0].shape[2], {**inputs, "past_key_values": _cache(plain, pairs)}
            if RELEASE < (5, 4):  # transformers 4: the head hands no cache on
                both = torch.ones(1, past + ids.shape[1], dtype=torch.int64)
                logits = plain.cls(plain.bert(attention_mask=both, **inputs).last_hidden_state)[0]
                return logits, 0
        elif kind != "LORA":
            rows = prompt_rows(wrapped, TASK).unsqueeze(0)
            virtual = rows.shape[1]
            inputs = {"inputs_embeds": torch.cat([rows, plain.get_input_embeddings()(ids)], dim=1)}
        mask = torch.ones(1, past + virtual + ids.shape[1], dtype=torch.int64)
        logits = plain(attention_mask=mask, return_dict=True, **inputs).logits[0]
    assert logits.dtype == torch.float64
    return logits, virtual


def by_hand(model: Any, text: str, strategy: str = "max", virtual_tokens: str = "auto") -> Tensor:
    """Compute a SPLADE embedding by hand."""
    logits, virtual = logits_of(model, model[0], text)
    rows = (logits if virtual_tokens == "pool" else logits[virtual:]).clamp(min=0).log1p()
    return rows.amax(dim=0) if strategy == "max" else rows.sum(dim=0)


def encoded(model: Any, texts: tuple[str, ...], **options: Any) -> Tensor:
    """Encode in one batch, densely."""
    found: Tensor = model.encode(list(texts), batch_size=len(texts), convert_to_sparse_tensor=False, **options)
    return found


def assert_sparse(model: Any, strategy: str = "max", virtual_tokens: str = "auto") -> None:
    """Assert that the embeddings are those by hand, in one batch and each alone."""
    truth = torch.stack([by_hand(model, text, strategy, virtual_tokens) for text in TEXTS])
    assert distance(encoded(model, TEXTS), truth) <= 1e-4
    assert distance(torch.cat([encoded(model, (text,)) for text in TEXTS]), truth) <= 1e-4


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "mpnet", "modernbert", "electra"])
def test_splade_counts_the_texts_tokens(architecture: str, strategy: str, sparse: Any, put_sparse: Any) -> None:
    """Words are weighted by the text's tokens alone, which attend to the virtual ones."""
    model = sparse(architecture, strategy)
    put_sparse(model[0], "prompt_tuning")
    with prompt_mask_hooks(model):
        assert_sparse(model, strategy)


@pytest.mark.parametrize("method", ["p_tuning", "multitask_prompt_tuning", "prefix_tuning", "cartridge"])
def test_every_method_is_right_or_refused(method: str, sparse: Any, put_sparse: Any) -> None:
    """Prefix methods, too, where the masked-language model hands no cache on (transformers 4): hooks put them in."""
    model = sparse("bert")
    put_sparse(model[0], method)
    with prompt_mask_hooks(model, **options_for(method)):
        assert_sparse(model)


@pytest.mark.parametrize("virtual_tokens", ["pool", "ignore", "strip"])
def test_policies(virtual_tokens: str, sparse: Any, put_sparse: Any) -> None:
    """With "pool" virtual tokens weigh words too; with the others the text's do alone."""
    model = sparse("bert")
    put_sparse(model[0], "prompt_tuning")
    with prompt_mask_hooks(model, virtual_tokens=virtual_tokens):
        assert_sparse(model, virtual_tokens=virtual_tokens)


@pytest.mark.parametrize("task_type", ["TOKEN_CLS", "SEQ_CLS"])
def test_other_task_types_of_peft(task_type: str, sparse: Any, put_sparse: Any) -> None:
    """PEFT's other task types put the same prompt before a masked-language model."""
    model = sparse("bert")
    put_sparse(model[0], "prompt_tuning", task_type)
    with prompt_mask_hooks(model):
        assert_sparse(model)


def test_left_padding(sparse: Any, put_sparse: Any) -> None:
    """On the left, positions are counted over what is not padding."""
    model = sparse("bert")
    put_sparse(model[0], "prompt_tuning")
    model.tokenizer.padding_side = "left"
    with prompt_mask_hooks(model):
        assert_sparse(model)


def test_chunks_of_pooling(sparse: Any, put_sparse: Any) -> None:
    """Pooling in chunks, with active dimensions cut, sees the same rows."""
    model = sparse("bert", chunk_size=3)
    put_sparse(model[0], "prompt_tuning")
    with prompt_mask_hooks(model):
        assert_sparse(model)
        found = encoded(model, TEXTS, max_active_dims=5)
    assert (found > 0).sum(dim=1).max() <= 5


def test_add_prompt_adapter(sparse: Any) -> None:
    """An adapter is put on with a task type that PEFT can run on a masked-language model."""
    from peft import PromptTuningConfig

    model = sparse("bert")
    add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=3))
    model.eval()
    assert type(getattr(model[0], ATTRIBUTE)).__name__ == "PeftModelForFeatureExtraction"
    assert_sparse(model)


def test_two_passes_and_a_copy(sparse: Any, put_sparse: Any) -> None:
    """A second pass over one batch and a deep copy of the model give the same."""
    model = sparse("bert")
    put_sparse(model[0], "prompt_tuning")
    with prompt_mask_hooks(model):
        features = model.tokenize(list(TEXTS)) if RELEASE < (5, 4) else model.preprocess(list(TEXTS))
        mask = features["attention_mask"].clone()
        with torch.no_grad():
            first = model(features)["sentence_embedding"].clone()
            assert torch.equal(model(features)["sentence_embedding"], first)
            assert torch.equal(features["attention_mask"], mask)
        assert torch.equal(encoded(copy.deepcopy(model), TEXTS), encoded(model, TEXTS))


def test_without_hooks_it_crashes(sparse: Any, put_sparse: Any) -> None:
    """What this is about: 6.2 and 5.1 crash, 5.4 to 6.1 weigh words by virtual tokens."""
    model = sparse("bert")
    put_sparse(model[0], "prompt_tuning")
    if (5, 4) <= RELEASE < (6, 2):
        assert distance(encoded(model, TEXTS), torch.stack([by_hand(model, text) for text in TEXTS])) > 1e-2
    else:
        with pytest.raises(RuntimeError, match="must match the size"):
            encoded(model, TEXTS)


def test_a_router_with_words_looked_up_on_one_side(masked_lm: Any, splade: Any, put_sparse: Any) -> None:
    """Queries that are looked up have no virtual tokens, documents through the Transformer are right."""
    from sentence_transformers import SparseEncoder

    if RELEASE >= (5, 4):
        from sentence_transformers.base.modules import Router
        from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
    else:
        from sentence_transformers.models import Router
        from sentence_transformers.sparse_encoder.models import SparseStaticEmbedding
    needs(RELEASE >= (5, 0), "no Router before 5.0")
    transformer = masked_lm("bert")
    put_sparse(transformer, "prompt_tuning")
    words = SparseStaticEmbedding(tokenizer=transformer.tokenizer, frozen=True)
    router = Router.for_query_document(query_modules=[words], document_modules=[transformer, splade()])
    model = SparseEncoder(modules=[router], device="cpu").eval()
    before = model.encode_query(list(TEXTS), convert_to_sparse_tensor=False)
    truth = []
    for text in TEXTS:
        logits, virtual = logits_of(model, transformer, text)
        truth.append(logits[virtual:].clamp(min=0).log1p().amax(dim=0))
    with prompt_mask_hooks(model):
        found = model.encode_document(list(TEXTS), batch_size=6, convert_to_sparse_tensor=False)
        assert distance(found, torch.stack(truth)) <= 1e-4
        assert torch.equal(model.encode_query(list(TEXTS), convert_to_sparse_tensor=False), before)


class Grow(Hook):
    """Multiplies an embedding by the number of texts in its batch."""

    def after(self, call: Any, output: Any) -> Any:
        found = output["sentence_embedding"]
        return {**output, "sentence_embedding": found * len(found)}


def test_the_check_of_a_user_compares_sparse_embeddings(sparse: Any, put_sparse: Any) -> None:
    """``check_padding_invariance`` is content with hooks, and not with an embedding that grows with its batch."""
    model = sparse()
    put_sparse(model[0], "prompt_tuning")
    with prompt_mask_hooks(model):
        assert check_padding_invariance(model, TEXTS)
        with HookRegistry(model).attached(Grow(), to="1"):
            assert not check_padding_invariance(model, TEXTS)


def test_a_model_as_the_hub_has_them_is_saved_and_loaded(tmp_path: Path, sparse: Any, put_sparse: Any) -> None:
    """Its modules.json names the class that a SparseEncoder's Transformer had before 5.4."""
    from sentence_transformers import SparseEncoder

    sparse().save_pretrained(str(tmp_path / "hub"))
    modules = json.loads((tmp_path / "hub" / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    (tmp_path / "hub" / "modules.json").write_text(json.dumps(modules))
    model = SparseEncoder(str(tmp_path / "hub"), device="cpu").eval()
    put_sparse(model[0], "prompt_tuning")
    register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "tuned")
    loaded: Any = peft_hooks.load(tmp_path / "tuned", device="cpu")
    assert type(loaded) is SparseEncoder
    assert float((encoded(loaded, TEXTS) - encoded(model, TEXTS)).abs().max()) < 1e-6


def test_an_adapter_in_one_route_of_an_inference_free_model_is_saved_and_loaded(
    tmp_path: Path, splade: Any, sparse: Any, put_sparse: Any
) -> None:
    """``save`` raised IndexError: it knew the Transformers of a folder by one class name."""
    from sentence_transformers import SparseEncoder

    if RELEASE >= (5, 4):
        from sentence_transformers.base.modules import Router
        from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
    else:
        from sentence_transformers.models import Router
        from sentence_transformers.sparse_encoder.models import SparseStaticEmbedding
    sparse().save_pretrained(str(tmp_path / "base"))
    base = SparseEncoder(str(tmp_path / "base"), device="cpu")
    words = SparseStaticEmbedding(tokenizer=base[0].tokenizer, frozen=True)
    router = Router.for_query_document(query_modules=[words], document_modules=[base[0], splade()])
    model = SparseEncoder(modules=[router], device="cpu", similarity_fn_name="dot").eval()
    put_sparse(base[0], "prompt_tuning")
    register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "tuned")
    loaded: Any = peft_hooks.load(tmp_path / "tuned", device="cpu")
    for task in ("query", "document"):
        found = [one.encode(list(TEXTS), task=task, convert_to_sparse_tensor=False) for one in (model, loaded)]
        assert float((torch.as_tensor(found[0]) - torch.as_tensor(found[1])).abs().max()) < 1e-6
    notes = json.loads((tmp_path / "tuned" / "peft_hooks.json").read_text())
    assert len(notes["embeddings"]["numbers"]) == 2 * len(notes["embeddings"]["texts"])  # both routes
