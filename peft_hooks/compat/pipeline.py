"""Read a Sentence Transformers model once, into plain records, or raise an error that says what to give."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from .._arguments import in_words, loading
from ..errors import UnsupportedModelError
from . import backbones
from . import cross_encoders as cross
from . import sentence_transformers as releases
from .st_modules import steps_of


@dataclass(frozen=True, eq=False)
class Encoder:
    """A module that takes texts, and what is inside it.

    Attributes:
        path: Its path; for a CrossEncoder before 5.4, that of the backbone.
        module: The Transformer module, or the stand-in for a CrossEncoder before 5.4.
        entry: The module that the text goes into: the Transformer, or the CrossEncoder's backbone.
        outer: What it runs: the ``PeftModel``, or the backbone if there is none.
        backbone: The transformers model, without PEFT around it.
        prompts: The configs of the prompt-learning adapters by name.
        adapted: Whether there is an adapter of any kind.
    """

    path: str
    module: Any
    entry: nn.Module
    outer: Any
    backbone: Any
    prompts: dict[str, Any]
    adapted: bool

    @classmethod
    def of(cls, path: str, module: Any) -> Encoder:
        """Read a Transformer module, or the stand-in for a CrossEncoder."""
        return cls(
            path,
            module,
            module if isinstance(module, nn.Module) else module.model,
            releases.backbone_of(module),
            releases.plain_backbone(module),
            releases.prompt_configs(module),
            releases.has_adapter(module),
        )

    @cached_property
    def positions(self) -> int | None:
        """How many tokens the backbone has positions for; None if there is no limit."""
        return backbones.position_count(self.module)

    @property
    def is_transformer(self) -> bool:
        """Whether it is a Transformer module, not a CrossEncoder before 5.4."""
        return self.entry is self.module


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The parts of a Sentence Transformers model at one time, read once for refusing, planning and attaching.

    Attributes:
        root: The module that hooks go on.
        modules: Every module inside, with its first path.
        encoders: The modules that take texts.
        poolings: The Pooling modules, with their paths.
        steps: The modules that are called one after another, including those in the routes of a Router.
    """

    root: nn.Module
    modules: tuple[tuple[str, nn.Module], ...]
    encoders: tuple[Encoder, ...]
    poolings: tuple[tuple[str, nn.Module], ...]
    steps: tuple[tuple[str, nn.Module], ...]

    @classmethod
    def of(cls, root: nn.Module) -> Pipeline:
        """Read a model, which may have no encoder at all."""
        return cls(
            root,
            tuple(root.named_modules()),
            tuple(Encoder.of(path, module) for path, module in cross.inputs_of(root)),
            tuple(releases.poolings_of(root)),
            tuple(steps_of(root)),
        )

    @cached_property
    def path_of(self) -> dict[nn.Module, str]:
        """The path of each module."""
        return {module: path for path, module in self.modules}


def read_pipeline(model: Any) -> Pipeline:
    """Read a Sentence Transformers model.

    Raises:
        TypeError: If ``model`` is not a module: a name, a list, a class, None.
        UnsupportedModelError: If it is a module without a Transformer: a ``PeftModel``, an ``AutoModel``.
    """
    root = cross.root_of(model)
    if not isinstance(root, nn.Module):
        raise TypeError(f"expected a SentenceTransformer, got {in_words(model)}: {loading(model)}")
    found = Pipeline.of(root)
    if not found.encoders:
        raise UnsupportedModelError(_no_transformer(model))
    return found


def _encoders() -> tuple[type, ...]:
    """Return the classes of models that encode texts with arbitrary modules, as far as the release has them."""
    library = sys.modules.get("sentence_transformers")
    found = (getattr(library, name, None) for name in ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"))
    return tuple(kind for kind in found if isinstance(kind, type))


def _no_transformer(model: nn.Module) -> str:
    """Return a message about a module without a Transformer that says what to give instead."""
    if isinstance(model, _encoders()):
        parts = ", ".join(type(module).__name__ for module in model.children()) or "none"
        return (
            f"this {type(model).__name__} has no Transformer module (its modules: {parts}), so there is nothing that a "
            f"PEFT adapter could be on: no hooks are needed"
        )
    kind = releases.peft_class()
    what = "its backbone or its adapter"
    if kind is not None and isinstance(model, kind):
        what = "the PeftModel; peft_hooks.add_prompt_adapter(model, peft_config) puts an adapter into one"
    return (
        f"expected a Sentence Transformers model, got {in_words(model)}, which has no Transformer module: give the "
        f"SentenceTransformer itself, not {what}"
    )
