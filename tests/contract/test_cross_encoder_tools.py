"""Contract: the library's other tools on a CrossEncoder work, or say by name what to use instead."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import peft_hooks
from peft_hooks import (
    LoadError,
    UnsupportedModelError,
    check_padding_invariance,
    diagnose,
    prompt_mask_hooks,
    register_prompt_mask_hooks,
    remove_prompt_adapter,
    trace_shapes,
    without_adapter,
)
from peft_hooks.testing import tiny_transformer

from ..tools import cross
from ..tools.checks import RELEASE, distance, needs
from ..tools.methods import Unavailable
from ..tools.wording import assert_says

PAIRS = [list(pair) for pair in cross.PAIRS]
HAS_FOLDER = RELEASE >= (5, 4)


def adapted(base: Path | None = None, architecture: str = "bert") -> Any:
    """Build a tiny CrossEncoder with a prompt and a head trained beside it; with ``base``, from that folder."""
    from sentence_transformers import CrossEncoder

    model = cross.tiny_cross_encoder(architecture)
    if base is not None:
        cross.backbone_of(model).save_pretrained(base)
        model.tokenizer.save_pretrained(base)
        model = CrossEncoder(str(base), device="cpu")
        cross.backbone_of(model).eval()
    try:
        wrapped = cross.put_adapter(model, "prompt_tuning")
    except Unavailable as error:
        pytest.skip(str(error))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    return model


def base_scores() -> torch.Tensor:
    """Return the scores of the model as it was before any adapter."""
    return cross.scores(cross.tiny_cross_encoder())


def test_the_check_of_a_user_compares_the_scores_of_pairs() -> None:
    """It is content with hooks and not without, and shows a pair as one."""
    model = adapted(architecture="llama")
    report = check_padding_invariance(model, PAIRS)
    assert not report
    assert_says(str(report), "4 scores depend on their batch")
    assert report.worst.text in [" | ".join(pair) for pair in PAIRS]
    with prompt_mask_hooks(model):
        assert check_padding_invariance(model, PAIRS)


@pytest.mark.parametrize("pairs", [["a cat", "a dog"], [["a cat", "a dog"], ["alone"]]])
def test_the_check_of_a_user_wants_pairs(pairs: Any) -> None:
    """Single texts have no score."""
    wrong = pairs[-1] if isinstance(pairs[0], list) else pairs[0]
    with pytest.raises(TypeError) as caught:
        check_padding_invariance(adapted(), pairs)
    assert_says(caught.value, f"CrossEncoder | pairs | got {wrong!r} | at least two (text, text) pairs")


def test_a_trace_shows_the_virtual_tokens() -> None:
    """Before 4.0 a CrossEncoder is no module; its backbone is traced."""
    model = adapted()
    with prompt_mask_hooks(model), trace_shapes(model) as trace:
        cross.scores(model)
    assert_says(str(trace), "4 virtual tokens | 21 positions | 25")
    assert trace.failure is None


def test_without_adapter_scores_as_the_model_before_it() -> None:
    """The prompt and the head that was trained beside it are off in the block, and on after it."""
    model = adapted()
    register_prompt_mask_hooks(model)
    tuned = cross.scores(model)
    with without_adapter(model):
        assert torch.equal(cross.scores(model), base_scores())
    assert torch.equal(cross.scores(model), tuned)
    assert distance(tuned, base_scores().double()) > 0.1


def test_removing_the_adapter_gives_the_model_before_it() -> None:
    """The head is unwrapped, the hooks are gone."""
    model = adapted()
    register_prompt_mask_hooks(model)
    assert remove_prompt_adapter(model) is None
    assert torch.equal(cross.scores(model), base_scores())
    assert not any("modules_to_save" in name for name, _ in cross.backbone_of(model).named_parameters())
    assert not any(module._forward_hooks for module in cross.backbone_of(model).modules())


@pytest.mark.parametrize("plain", [False, True])
def test_a_saved_one_is_loaded_with_its_head_and_hooks(tmp_path: Path, plain: bool) -> None:
    """By ``save`` or by Sentence Transformers' own, since a CrossEncoder is a folder of modules."""
    needs(HAS_FOLDER, "a CrossEncoder's folder does not say what it is")
    model = adapted(tmp_path / "base")
    register_prompt_mask_hooks(model, virtual_tokens="pool")
    if plain:
        model.save_pretrained(str(tmp_path / "tuned"))
    else:
        peft_hooks.save(model, tmp_path / "tuned")
    again = peft_hooks.load(tmp_path / "tuned", device="cpu", **({"virtual_tokens": "pool"} if plain else {}))
    assert type(again) is type(model)
    assert distance(cross.scores(again), cross.scores(model).double()) <= 1e-6
    assert register_prompt_mask_hooks(again, virtual_tokens="pool").active


TO_LOAD = (
    "`model = CrossEncoder(base_model)`, `model.model = PeftModel.from_pretrained(model.model, path)` (since 5.4 "
    "`model[0].model` in place of `model.model`) and `register_prompt_mask_hooks(model)`"
)


def test_saving_says_what_to_do_where_a_folder_would_not_say_what_it_is(tmp_path: Path) -> None:
    """Before 5.4; and nothing is written."""
    needs(not HAS_FOLDER, "a CrossEncoder is saved")
    with pytest.raises(UnsupportedModelError) as caught:
        peft_hooks.save(adapted(), tmp_path / "tuned")
    assert_says(caught.value, f"CrossEncoder | `model.model.save_pretrained(path)` | {TO_LOAD}")
    assert not any(tmp_path.iterdir())


def test_an_adapter_alone_is_refused_with_the_lines_that_load_it_and_they_do(tmp_path: Path) -> None:
    """A SentenceTransformer with mean pooling, which it would become, was never trained."""
    from peft import PeftModel
    from sentence_transformers import CrossEncoder

    model = adapted(tmp_path / "base")
    cross.backbone_of(model).save_pretrained(tmp_path / "tuned")
    with pytest.raises(LoadError) as caught:
        peft_hooks.load(tmp_path / "tuned", device="cpu")
    assert_says(caught.value, f"{tmp_path / 'tuned'} | CrossEncoder | {TO_LOAD}")
    again = CrossEncoder(str(tmp_path / "base"), device="cpu")
    cross.put_backbone(again, PeftModel.from_pretrained(cross.backbone_of(again), str(tmp_path / "tuned")).eval())
    with prompt_mask_hooks(again), prompt_mask_hooks(model):
        assert distance(cross.scores(again), cross.scores(model).double()) <= 1e-6


def test_the_doctor_names_what_compares_scores() -> None:
    """It compares embeddings alone."""
    with pytest.raises(UnsupportedModelError) as caught:
        diagnose(adapted())
    assert_says(
        caught.value,
        "CrossEncoder | no embeddings | SentenceTransformer | peft_hooks.check_padding_invariance(model, texts)",
        "peft_hooks.trace_shapes(model)",
    )


@pytest.fixture
def _trainer() -> None:
    needs(RELEASE >= (4, 0), "a CrossEncoder has no trainer")
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed: `pip install peft_hooks[train]`")


@pytest.mark.usefixtures("_trainer")
def test_prompt_trainer_names_the_trainer_of_a_cross_encoder() -> None:
    """It would reload checkpoints with the wrong class, and miss the head."""
    from peft_hooks import PromptTrainer

    with pytest.raises(UnsupportedModelError) as caught:
        PromptTrainer(model=adapted())
    assert_says(
        caught.value,
        "PromptTrainer | a SentenceTransformer | got a CrossEncoder",
        "CrossEncoderTrainer | resume | CrossEncoder(path)",
    )


@pytest.mark.usefixtures("_trainer")
@pytest.mark.filterwarnings("ignore")  # the releases' own, about their own arguments
def test_a_cross_encoder_is_trained_by_its_own_trainer(tmp_path: Path) -> None:
    """The prompt and the head move, the backbone does not, and the scores stay right."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

    model = adapted(tmp_path / "base")
    register_prompt_mask_hooks(model)
    before = {name: parameter.detach().clone() for name, parameter in cross.backbone_of(model).named_parameters()}
    first, second = zip(*cross.PAIRS, strict=True)
    dataset = Dataset.from_dict({"first": list(first), "second": list(second), "label": [0, 1, 2, 0]})
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    args = CrossEncoderTrainingArguments(str(tmp_path / "run"), max_steps=2, learning_rate=0.1, **quiet)
    if HAS_FOLDER:
        from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
    else:
        from sentence_transformers.cross_encoder.losses.CrossEntropyLoss import CrossEntropyLoss
    CrossEncoderTrainer(model=model, args=args, train_dataset=dataset, loss=CrossEntropyLoss(model)).train()
    cross.backbone_of(model).eval()
    moved = {
        name
        for name, parameter in cross.backbone_of(model).named_parameters()
        if not torch.equal(parameter.detach().cpu(), before[name])
    }
    assert any("prompt_encoder" in name for name in moved)
    assert all("prompt_encoder" in name or "modules_to_save" in name for name in moved)
    assert check_padding_invariance(model, PAIRS)


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_cross_encoder_with_labels_of_its_own_comes_back(labels: int, tmp_path: Path) -> None:
    """Its base's folder has no head at all, and no number of labels."""
    from sentence_transformers import CrossEncoder

    needs(HAS_FOLDER, "does not save what kind of model it is")
    base = tiny_transformer("bert", tmp_path / "base")
    torch.manual_seed(0)
    model = CrossEncoder(str(base), num_labels=labels, device="cpu")
    cross.backbone_of(model).eval()
    cross.put_adapter(model, "prompt_tuning")
    register_prompt_mask_hooks(model)
    peft_hooks.save(model, tmp_path / "tuned")
    loaded: Any = peft_hooks.load(tmp_path / "tuned", device="cpu")
    assert loaded.num_labels == labels
    assert distance(cross.scores(loaded), cross.scores(model).double()) < 1e-6
