"""``PromptTrainer``: Sentence Transformers' trainer, able to load its own checkpoints of prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ._public import public
from .checkpoints import training as checkpoints
from .compat import sentence_transformers as releases
from .errors import HookError, UnsupportedModelError
from .prompts.handle import options_on

try:
    from sentence_transformers import SentenceTransformerTrainer
except ImportError as error:
    raise ImportError(
        "PromptTrainer needs the SentenceTransformerTrainer of Sentence Transformers 3.0 or later; with earlier ones, "
        "train with `model.fit(...)`, which needs nothing from peft_hooks but the hooks"
    ) from error


@public
class PromptTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """``SentenceTransformerTrainer`` for a model with a PEFT adapter: it can resume and load the best checkpoint.

    Sentence Transformers reloads a checkpoint with ``SentenceTransformer(path)``, which refuses prompt learning
    (LoRA was fixed: https://github.com/huggingface/sentence-transformers/issues/3402; for prompts see
    https://github.com/huggingface/peft/issues/2256):
    ``resume_from_checkpoint`` raises, and ``load_best_model_at_end``, since 5.0, logs an error and keeps the last
    weights. This trainer adds ``trainable_state.safetensors`` to each checkpoint and loads it into the existing model.
    The file holds every parameter that is trained, including those that PEFT does not save: the encoder of P-tuning,
    the projection of prefix tuning, and the loss's own parameters (SoftmaxLoss), whose gradients it clears after each
    step because releases before 6.2 do not. A resumed run ends with the weights of an uninterrupted one.

    ``resume_from_checkpoint=True`` uses the newest complete checkpoint: one during which the process was killed is
    skipped with a warning, and refused if it is given by its path.

    Args:
        *args: As in ``SentenceTransformerTrainer``.
        **kwargs: As in ``SentenceTransformerTrainer``.

    Raises:
        ImportError: Before Sentence Transformers 3.0, which has no trainer.
        HookError: If the model has a prompt-learning adapter and no hooks.
        UnsupportedModelError: If the model is a CrossEncoder, SparseEncoder or MultiVectorEncoder, which have trainers
            of their own, or if weights of the backbone would be trained alongside a prompt, which no checkpoint of PEFT
            contains.
        FileNotFoundError: When it loads a checkpoint that has no ``trainable_state.safetensors``.
        ValueError: When it loads a checkpoint of other parameters, or an incomplete one.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from peft import PromptTuningConfig
        >>> from sentence_transformers import SentenceTransformerTrainingArguments
        >>> from sentence_transformers.losses import CosineSimilarityLoss
        >>> from peft_hooks import PromptTrainer, add_prompt_adapter
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> pairs = Dataset.from_dict({"a": ["a cat", "rain"], "b": ["the dog", "the moon"], "score": [0.9, 0.1]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"use_cpu": True, "report_to": "none", "save_steps": 1}
        ...     args = SentenceTransformerTrainingArguments(folder, max_steps=1, **options)
        ...     trainer = PromptTrainer(model=model, args=args, train_dataset=pairs, loss=CosineSimilarityLoss(model))
        ...     _ = trainer.train()
        ...     trainer.train(resume_from_checkpoint=True).global_step
        {'train_runtime': ...}
        1
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_other_kinds(args[0] if args else kwargs.get("model"))
        super().__init__(*args, **kwargs)
        _refuse(_unwrapped(self.model))
        self.add_callback(_ClearGradients())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        state = {name: parameter.detach().cpu().contiguous() for name, parameter in self._trained().items()}
        save_file(state, Path(output_dir or self.args.output_dir) / checkpoints.TRAINED)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as ``SentenceTransformerTrainer`` does, but resume only from complete checkpoints."""
        needed = (checkpoints.TRAINED, checkpoints.PROGRESS, *self._of_steps())
        if resume_from_checkpoint is True:
            found = checkpoints.newest_whole(Path(self.args.output_dir), needed)
            resume_from_checkpoint = True if found is None else str(found)
        elif resume_from_checkpoint and (Path(resume_from_checkpoint) / checkpoints.TRAINED).is_file():
            _refuse_cut_off(Path(resume_from_checkpoint), needed)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _of_steps(self) -> tuple[str, ...]:
        """Return the files besides the weights that this run writes; with other engines they have other names."""
        others = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return () if others or self.args.save_only_model else checkpoints.STEPS

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        if self.args.should_save:
            checkpoints.begin(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial, *args, **kwargs)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        path = Path(checkpoint_path) / checkpoints.TRAINED
        if not path.is_file():
            raise FileNotFoundError(
                f"{checkpoint_path} has no {path.name}: give a checkpoint that PromptTrainer wrote. To continue from a "
                f"model that was only saved, load it and start a new training run"
            )
        _refuse_cut_off(path.parent, (path.name,))
        copy_into(self._trained(), load_file(path), str(path))

    def _load_rng_state(self, checkpoint: Any) -> None:
        # Before 4.46 transformers loads its file of random states in a way that torch 2.6 and later refuse.
        with torch.serialization.safe_globals(_numpy_globals()):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        """Load the best checkpoint; unlike upstream, raise errors instead of only logging them."""
        checkpoint = self.state.best_model_checkpoint
        self._load_from_checkpoint(checkpoint)
        with contextlib.suppress(Exception):  # only for the model card
            self.model.model_card_data.set_best_model_step(int(checkpoint.rsplit("-", 1)[-1]))

    def _trained(self) -> dict[str, nn.Parameter]:
        """Return every parameter that is trained: the model's, then those of the loss alone."""
        losses = self.loss if isinstance(self.loss, Mapping) else {"": self.loss}
        parts = {"model": _unwrapped(self.model), **{f"loss:{name}": loss for name, loss in losses.items()}}
        found: dict[nn.Parameter, str] = {}
        for part, module in parts.items():
            for name, parameter in module.named_parameters() if isinstance(module, nn.Module) else ():
                if parameter.requires_grad:
                    found.setdefault(parameter, f"{part}:{name}")
        return {name: parameter for parameter, name in found.items()}


class _ClearGradients(TrainerCallback):  # type: ignore[misc]
    """Clear the gradients of the loss's own parameters after each step.

    Before 6.2 only the model's are cleared: SoftmaxLoss's classifier keeps adding up the gradients of all batches since
    the start, and so does ContrastiveTensionLoss's second prompt; a resumed run, which has none, would end elsewhere.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if optimizer is not None:
            optimizer.zero_grad()


def _refuse_cut_off(checkpoint: Path, needed: tuple[str, ...]) -> None:
    reason = checkpoints.why_cut_off(checkpoint, needed)
    if reason is not None:
        raise ValueError(
            f"{checkpoint} is incomplete: {reason}. Training was interrupted while writing it: give an earlier "
            f"checkpoint, or True for the newest complete one"
        )


def copy_into(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], where: str) -> None:
    """Copy a saved state into the parameters of the same names, all of them or none.

    Args:
        parameters: The parameters by name.
        state: Tensors of the same names and shapes.
        where: The file, for the message.

    Raises:
        ValueError: If names or shapes differ.
    """
    here = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    saved = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if here != saved:
        differing = sorted(name for name in here.keys() | saved.keys() if here.get(name) != saved.get(name))
        lines = [f"  {name}: {_shown(saved.get(name))} saved, {_shown(here.get(name))} here" for name in differing[:5]]
        raise ValueError(
            f"{where} has other parameters than are trained here: give the model the adapter, and the loss, of the "
            f"run that wrote it\n" + "\n".join(lines)
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def _numpy_globals() -> list[Any]:
    """Return the types in a saved state of NumPy's random generator, which newer releases of transformers allow too."""
    core = np._core if hasattr(np, "_core") else np.core
    return [core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


def _shown(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _unwrapped(model: Any) -> Any:
    return getattr(model, "_orig_mod", model)  # torch.compile


def _refuse_other_kinds(model: Any) -> None:
    kinds = [kind.__name__ for kind in type(model).__mro__]
    other = next((kind for kind in ("CrossEncoder", "SparseEncoder", "MultiVectorEncoder") if kind in kinds), None)
    if other is not None:
        raise UnsupportedModelError(
            f"PromptTrainer trains a SentenceTransformer, got a {other}: train it with {other}Trainer, which needs "
            f"nothing from peft_hooks but the hooks. That trainer can neither resume nor load the best checkpoint: it "
            f"does both with {other}(path), which refuses prompts"
        )


def _refuse(model: nn.Module) -> None:
    """Raise if a prompt would be trained without hooks, or together with weights that PEFT does not save."""
    for path, transformer in releases.transformers_of(model):
        if not releases.prompt_configs(transformer):
            continue
        if options_on(model) is None:
            raise HookError(
                "the model has a prompt and no hooks: call register_prompt_mask_hooks(model) before training"
            )
        backbone = releases.plain_backbone(transformer)
        trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
        if trained:
            # Measured with 5.1.2; 5.0.0, 5.2.3 and 5.3.0 tie weights in the same lines (5.3.0 refuses transformers 5).
            raise UnsupportedModelError(
                f"{type(transformer).__name__} {path!r}: {len(trained)} parameters of the backbone would be trained "
                f"besides the prompt, {trained[0]!r} the first, but PEFT saves only the prompt. "
                f"DenoisingAutoEncoderLoss of 5.0 to 5.3 causes this: give it `tie_encoder_decoder=False`, and "
                f"`parameter.requires_grad_(False)` to each of them"
            )
