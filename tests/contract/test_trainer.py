"""Training for real: the trainer of 3.0 and later with checkpoints, and `model.fit`, which every release has."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_hooks import HookError, UnsupportedModelError, register_prompt_mask_hooks

from ..tools.checks import RELEASE, assert_right, needs
from ..tools.training import ANCHORS, POSITIVES, SCORES, losses_of_the_release, weights
from ..tools.wording import assert_says

pytestmark = pytest.mark.filterwarnings("ignore")  # the releases' own, about their own arguments


@pytest.fixture(autouse=True)
def _no_precision_of_the_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what accelerate was told: a run in bf16 leaves it in the environment and in a state of the process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    if importlib.util.find_spec("accelerate") is not None:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def trainer_class() -> Any:
    """`PromptTrainer`, where the release has a trainer and the package `datasets` is there."""
    needs(RELEASE >= (3, 0), "has no trainer")
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed: `pip install peft_hooks[train]`")
    from peft_hooks import PromptTrainer

    return PromptTrainer


@pytest.fixture(scope="session")
def hooked(adapted: Any) -> Any:
    """Build a tiny BERT with an adapter and hooks."""

    def make(method: str = "prompt_tuning", **options: Any) -> Any:
        model = adapted("bert", method, **options)
        register_prompt_mask_hooks(model)
        return model

    return make


def evaluator(scores: list[float] = SCORES) -> Any:
    """Make what measures a model during training."""
    if RELEASE >= (5, 4):
        from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    else:
        from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator
    return EmbeddingSimilarityEvaluator(ANCHORS, POSITIVES, scores, name="tiny", write_csv=False)


def assert_equal(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Assert that two states are the same to the last bit."""
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.equal(found[name], tensor), f"{name} differs by {(found[name] - tensor).abs().max():.1e}"


# --- the trainer ----------------------------------------------------------------------------------------------------


def test_a_whole_run_trains_the_prompt_and_nothing_else(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """bf16, checkpointed activations, accumulated gradients and an evaluator at once; the model is right after it."""
    model = hooked()
    before, frozen = weights(model), weights(model, trained=False)
    # The trainer of transformers 5.17 hands 6.1 an argument that it does not know, with any model.
    run = {"bf16": True, "gradient_checkpointing": RELEASE != (6, 1), "gradient_accumulation_steps": 2, "eval_steps": 2}
    trainer = make_trainer(
        trainer_class,
        model,
        tmp_path,
        evaluator=evaluator(),
        **run,
        eval_strategy="steps",
        per_device_train_batch_size=2,
    )
    trainer.train()
    measured = [log for log in trainer.state.log_history if "eval_tiny_spearman_cosine" in log]
    assert [log["step"] for log in measured] == [2, 4]
    assert all(not torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    assert_equal(weights(model, trained=False), frozen)
    vars(model).pop("forward")  # accelerate leaves bfloat16 on for good, with or without an adapter
    assert_right(model.eval())


@pytest.mark.parametrize(
    "method", ["prompt_tuning", "p_tuning", "multitask_prompt_tuning", "prefix_tuning_projection", "cartridge", "lora"]
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    method: str, trainer_class: Any, tmp_path: Path, adapted: Any, make_trainer: Any
) -> None:
    """To the last bit, with dropout, whatever PEFT saves of the method."""
    options = {"task_id": 1} if method == "multitask_prompt_tuning" else {}

    def fresh() -> Any:
        model = adapted("bert", method)
        register_prompt_mask_hooks(model, **options)
        return model

    whole, resumed = fresh(), fresh()
    start = weights(whole)
    make_trainer(trainer_class, whole, tmp_path / "whole").train()
    make_trainer(trainer_class, resumed, tmp_path / "resumed").train(
        resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2")
    )
    assert any(not torch.equal(start[name], tensor) for name, tensor in weights(whole).items())
    assert_equal(weights(resumed), weights(whole))


def test_a_resumed_run_goes_on_with_the_losss_own_parameters(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """SoftmaxLoss has a classifier, which no release keeps in a checkpoint."""

    def run(folder: str, **resume: Any) -> dict[str, Tensor]:
        from datasets import Dataset

        torch.manual_seed(0 if not resume else 1)
        model = hooked()
        loss = losses_of_the_release().SoftmaxLoss(model, sentence_embedding_dimension=32, num_labels=3)
        trainer = make_trainer(trainer_class, model, tmp_path / folder, loss)
        labels = [int(2 * score) for score in SCORES]
        trainer.train_dataset = trainer.train_dataset.remove_columns("label").add_column("label", labels)
        assert isinstance(trainer.train_dataset, Dataset)
        trainer.train(**resume)
        return {**weights(model), "classifier": loss.classifier.weight.detach().clone()}

    truth = run("whole")
    assert_equal(run("resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2")), truth)


@pytest.fixture(scope="session")
def best_of_four(make_trainer: Any) -> Any:
    """Train four steps that are measured backwards, so that a former one is the best."""

    def make(trainer_class: Any, model: Any, folder: Path) -> Any:
        each = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_tiny_spearman_cosine"}
        backwards = evaluator([1 - score for score in SCORES])
        trainer = make_trainer(trainer_class, model, folder, evaluator=backwards, **each, **best)
        trainer.train()
        assert Path(trainer.state.best_model_checkpoint).name != "checkpoint-4"
        return trainer

    return make


def saved_prompt(checkpoint: Path) -> Tensor:
    """Read what PEFT wrote."""
    from safetensors.torch import load_file

    (file,) = checkpoint.rglob("adapter_model.safetensors")
    (prompt,) = load_file(file).values()
    return prompt


def test_the_best_checkpoint_is_loaded_at_the_end(
    trainer_class: Any, tmp_path: Path, hooked: Any, best_of_four: Any
) -> None:
    """What is in its files, not the last weights; the parameters are the same objects, and the hooks are on."""
    model = hooked()
    parameters = list(model.parameters())
    trainer = best_of_four(trainer_class, model, tmp_path)
    (loaded,) = weights(model).values()
    assert torch.equal(loaded, saved_prompt(Path(trainer.state.best_model_checkpoint)))
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert_right(model.eval())


def test_the_librarys_own_trainer_cannot_resume(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """It loads the folder anew, which no release can; why there is a subclass."""
    from sentence_transformers import SentenceTransformerTrainer

    make_trainer(trainer_class, hooked(path=tmp_path / "base"), tmp_path).train()
    trainer = make_trainer(SentenceTransformerTrainer, hooked(path=tmp_path / "base"), tmp_path)
    reason = "create_and_replace" if RELEASE >= (3, 3) else "Unrecognized model"
    with pytest.raises((ValueError, AttributeError), match=reason):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_librarys_own_trainer_keeps_the_last_weights_for_the_best(
    trainer_class: Any, tmp_path: Path, hooked: Any, best_of_four: Any
) -> None:
    """From 5.0 on, with no more than an error in the log."""
    from sentence_transformers import SentenceTransformerTrainer

    needs(RELEASE >= (5, 0), "loads the best prompt by transformers' own way")
    model = hooked(path=tmp_path / "base")
    trainer = best_of_four(SentenceTransformerTrainer, model, tmp_path)
    (last,) = weights(model).values()
    assert not torch.equal(last, saved_prompt(Path(trainer.state.best_model_checkpoint)))
    assert torch.equal(last, saved_prompt(tmp_path / "checkpoint-4"))


def test_a_checkpoint_of_another_trainer_is_refused(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """By name, with the file that is missing."""
    trainer = make_trainer(trainer_class, hooked(), tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        trainer._load_from_checkpoint(str(tmp_path))
    assert_says(caught.value, f"{tmp_path} | trainable_state.safetensors | PromptTrainer | load it")


def test_a_checkpoint_of_another_adapter_is_refused_and_changes_nothing(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """By name, with both shapes."""
    make_trainer(trainer_class, hooked(), tmp_path).train()
    other = hooked(adapter={"num_virtual_tokens": 3})
    before, trainer = weights(other), make_trainer(trainer_class, other, tmp_path)
    with pytest.raises(ValueError, match="other parameters than are trained") as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_says(caught.value, "prompt_encoder.default.embedding.weight | [4, 32] saved | [3, 32] here")
    assert_equal(weights(other), before)


# --- a process that dies in a checkpoint


def dying_trainer(trainer_class: Any, where: str, before: bool) -> Any:
    """Make a trainer whose process is killed at a step of writing checkpoint-4."""

    class Dying(trainer_class):  # type: ignore[misc]
        pass

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before and self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        found = getattr(super(Dying, self), where)(*args, **kwargs)
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(Dying, where, step)
    return Dying


def killed(step: Any) -> bool:
    """Run a step in another process; tell whether it was killed."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's other threads do not exist here
        with contextlib.suppress(BaseException):
            step()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


CUTS = [
    ("_save", True),
    ("_save", False),
    ("_save_optimizer_and_scheduler", False),
    ("_save_rng_state", True),
    ("_save_rng_state", False),
]


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("where", "before"), CUTS)
def test_a_checkpoint_that_the_process_was_killed_in_is_passed_over_and_told(
    where: str, before: bool, again: bool, trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """The newest whole one is taken, also when a whole one was being written over; the run ends as one from there."""
    folder = tmp_path / "run"
    if again:
        make_trainer(trainer_class, hooked(), folder, max_steps=6).train()
        shutil.rmtree(folder / "checkpoint-6")
    resume = {"resume_from_checkpoint": str(folder / "checkpoint-2")} if again else {}
    dying = make_trainer(dying_trainer(trainer_class, where, before), hooked(), folder, max_steps=6)
    assert killed(lambda: dying.train(**resume))
    assert not (again and where == "_save" and before) or (folder / "checkpoint-4" / "optimizer.pt").is_file()
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    truth = hooked()
    make_trainer(trainer_class, truth, tmp_path / "truth", max_steps=6).train(str(tmp_path / "checkpoint-2"))
    resumed = hooked()
    trainer = make_trainer(trainer_class, resumed, folder, max_steps=6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=True)
    told = [str(warning.message) for warning in caught if "newest complete checkpoint" in str(warning.message)]
    if not (where == "_save" and before and not again):  # then nothing was begun
        assert f"resumes from {folder / 'checkpoint-2'}, the newest complete" in told[0]
        assert str(folder / "checkpoint-4") in told[0]
    assert_equal(weights(resumed), weights(truth))


DAMAGES = ["trainable_state.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_in_which_a_file_is_missing_or_cut_is_passed_over(
    name: str, cut: bool, trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """And refused by name if it is given by its path, or if it is the only one."""
    make_trainer(trainer_class, hooked(), tmp_path).train()
    file = tmp_path / "checkpoint-4" / name
    held = file.read_bytes()
    file.unlink()
    if cut:
        file.write_bytes(held[: len(held) // 2])
    reason = f"{name} is incomplete" if cut else f"it has no {name.replace('state.pth', 'state*.pth')}"
    trainer = make_trainer(trainer_class, hooked(), tmp_path)
    before = weights(trainer.model)
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint-4") as caught:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert name in str(caught.value) or reason in str(caught.value)
    assert_equal(weights(trainer.model), before)
    with pytest.warns(UserWarning, match=re.escape(reason)):
        trainer.train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path / "checkpoint-2")
    file.unlink()
    with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path} is complete"):
        make_trainer(trainer_class, hooked(), tmp_path).train(resume_from_checkpoint=True)


def test_checkpoints_of_the_model_alone_are_whole_where_no_more_is_written(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """`save_only_model=True` leaves out the optimizer on purpose; a run that needs it does not begin it anew."""
    make_trainer(trainer_class, hooked(), tmp_path, save_only_model=True).train()
    trainer = make_trainer(trainer_class, hooked(), tmp_path, save_only_model=True, max_steps=5)
    assert trainer.train(True).global_step == 5
    with pytest.raises(ValueError, match=r"it has no optimizer.pt"):
        make_trainer(trainer_class, hooked(), tmp_path).train(resume_from_checkpoint=True)


def test_no_checkpoint_at_all_is_said_as_ever(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """By the library's own words."""
    with pytest.raises(ValueError, match=r"No valid checkpoint found in output directory"):
        make_trainer(trainer_class, hooked(), tmp_path).train(resume_from_checkpoint=True)


def test_a_best_checkpoint_that_is_cut_is_refused(
    trainer_class: Any, tmp_path: Path, hooked: Any, best_of_four: Any
) -> None:
    """By its name, and the weights stay."""
    model = hooked()
    trainer = best_of_four(trainer_class, model, tmp_path)
    file = Path(trainer.state.best_model_checkpoint) / "trainable_state.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    before = weights(model)
    with pytest.raises(ValueError, match=r"trainable_state.safetensors is incomplete"):
        trainer._load_best_model()
    assert_equal(weights(model), before)


# --- what is refused


def test_a_prompt_without_hooks_is_refused(trainer_class: Any, tmp_path: Path, adapted: Any, make_trainer: Any) -> None:
    """It would train on batches that change its embeddings."""
    with pytest.raises(HookError) as caught:
        make_trainer(trainer_class, adapted("bert"), tmp_path)
    assert_says(caught.value, "no hooks | register_prompt_mask_hooks(model)")


def test_a_backbone_that_is_trained_beside_its_prompt_is_refused(
    trainer_class: Any, tmp_path: Path, make_trainer: Any, hooked: Any
) -> None:
    """No file of PEFT keeps it; DenoisingAutoEncoderLoss unfreezes it on 5.0 to 5.3."""
    model = hooked()
    register = model[0].model if "model" in model[0]._modules else model[0].auto_model
    register.base_model.encoder.requires_grad_(True)
    with pytest.raises(UnsupportedModelError) as caught:
        make_trainer(trainer_class, model, tmp_path)
    assert_says(caught.value, "parameters of the backbone")
    assert "'encoder.layer.0.attention.self.query.weight' the first" in str(caught.value)


def test_a_model_without_an_adapter_is_trained_as_ever(
    trainer_class: Any, tmp_path: Path, plain: Any, make_trainer: Any
) -> None:
    """Nothing is asked of it."""
    model = plain("bert")
    before = weights(model)
    make_trainer(trainer_class, model, tmp_path).train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(model).items())


# --- what training is made of ---------------------------------------------------------------------------------------


def gradient(model: Any, anchors: list[str] = ANCHORS, scores: list[float] = SCORES, **autocast: Any) -> Tensor:
    """Return the prompt's gradient of one batch, dropout on and seeded."""
    loss = losses_of_the_release().CosineSimilarityLoss(model.train())
    (prompt,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    prompt.grad = None
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
        value = loss([model.tokenize(anchors), model.tokenize(POSITIVES[: len(anchors)])], torch.tensor(scores))
    value.backward()
    found: Tensor = prompt.grad
    return found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gradient_checkpointing_does_not_change_gradients(
    when: str, reentrant: bool, plain: Any, put: Any, hooked: Any
) -> None:
    """Switched on before the adapter is put on, or after the hooks."""
    truth = gradient(hooked())
    model = plain("bert")
    for step in ("before", "after"):
        if when == step:
            backbone = model[0].model if "model" in model[0]._modules else model[0].auto_model
            backbone.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if step == "before":
            put(model, "prompt_tuning")
            register_prompt_mask_hooks(model)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert torch.allclose(gradient(model), truth, rtol=1e-5, atol=1e-7)


def test_autocast_gives_a_gradient_in_float32_that_is_about_right(hooked: Any) -> None:
    """bfloat16 has 8 bits: measured, 2 % of the gradient's length."""
    model = hooked()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    truth, found = gradient(model).clone(), gradient(model, bf16=True)
    assert found.dtype == torch.float32
    assert float((found - truth).norm() / truth.norm()) <= 0.1


@pytest.mark.parametrize("evaluated", [False, True])
def test_fit_trains_the_prompt(evaluated: bool, tmp_path: Path, hooked: Any) -> None:
    """`model.fit`, which 2.7 has alone, and later releases run by their trainer."""
    from sentence_transformers import InputExample
    from torch.utils.data import DataLoader

    if RELEASE >= (3, 0) and importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed: `pip install peft_hooks[train]`")
    model = hooked()
    before, frozen = weights(model), weights(model, trained=False)
    examples = [
        InputExample(texts=[anchor, positive], label=score)
        for anchor, positive, score in zip(ANCHORS, POSITIVES, SCORES, strict=True)
    ]
    batches: Any = DataLoader(examples, batch_size=4)  # type: ignore[arg-type]
    measure = {"evaluator": evaluator(), "evaluation_steps": 2} if evaluated else {}
    objectives = [(batches, losses_of_the_release().CosineSimilarityLoss(model))]
    model.fit(objectives, epochs=1, optimizer_params={"lr": 0.05}, show_progress_bar=False, **measure)
    assert all(not torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    assert_equal(weights(model, trained=False), frozen)
    assert_right(model.eval())
