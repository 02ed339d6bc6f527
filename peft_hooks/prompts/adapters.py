"""``add_prompt_adapter``: put an adapter where the forward really runs, and attach the hooks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from .._arguments import in_words
from .._public import public
from ..compat import backbones
from ..compat import cross_encoders as cross
from ..compat import peft_state as state
from ..compat import sentence_transformers as releases
from ..compat.pipeline import Pipeline, read_pipeline
from ..errors import UnsupportedModelError
from ..hooks.undo import attempt, surely
from .attach import register_prompt_mask_hooks
from .handle import HookHandle, adopt_handle
from .plan import HookOptions, options_of

if TYPE_CHECKING:
    from peft import PeftConfig
    from typing_extensions import Unpack


@public
def add_prompt_adapter(
    model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **options: Unpack[HookOptions]
) -> HookHandle:
    """Put a PEFT adapter on the Transformer of a Sentence Transformers model, make it active, and attach the hooks.

    Sentence Transformers' own ``add_adapter`` refuses prompt learning, which ``transformers.integrations.peft`` calls
    out of scope because it cannot be injected into a module; and assigning to ``model[0].auto_model`` has no effect
    since 5.4. Values that PEFT cannot infer from the backbone, or infers wrongly (``token_dim`` of DistilBERT and
    ALBERT, key-value heads of a prefix: https://github.com/huggingface/peft/pull/2883), are filled in; values set in
    the config are kept. The config itself is not changed. If anything is refused, the model stays as it was.

    Args:
        model: A ``SentenceTransformer``, with or without an adapter. A second one must be of the same PEFT method.
        peft_config: A ``PromptTuningConfig``, ``PromptEncoderConfig``, ``MultitaskPromptTuningConfig``,
            ``PrefixTuningConfig``, ``CartridgeConfig`` or ``LoraConfig``.
        adapter_name: The adapter's name.
        **options: As in ``register_prompt_mask_hooks``; if hooks are already on, the same ones or none.

    Returns:
        The handle of the hooks.

    Raises:
        TypeError: If ``model`` is not a module, ``peft_config`` not a PEFT config, ``adapter_name`` not a name, or an
            option is unknown.
        UnsupportedModelError: If the embeddings cannot be correct with this backbone and adapter.
        ValueError: If the name is taken, the config has no virtual tokens, or PEFT refuses the config.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("distilbert")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        {'...prompt_encoder.default.embedding.weight': (4, 32)}
    """
    if not isinstance(adapter_name, str) or not adapter_name:
        raise TypeError(f"adapter_name={adapter_name!r}: give a name, such as 'default'")
    given, (model, transformer) = model, _the_transformer(model)
    config = _filled_in(peft_config, transformer)
    handle, former = adopt_handle(model), releases.backbone_of(transformer)
    wanted = options_of(options) if options or handle is None else handle.options
    if handle is not None and handle.options != wanted:
        register_prompt_mask_hooks(model, **options)  # raises, and says how to replace

    def step() -> HookHandle:
        if hasattr(former, "peft_config"):
            if adapter_name in former.peft_config:
                raise ValueError(f"an adapter named {adapter_name!r} already exists: give another adapter_name")
            former.add_adapter(adapter_name, config)
            former.set_adapter(adapter_name)
        else:
            from peft import get_peft_model

            releases.put_backbone(transformer, get_peft_model(former, config, adapter_name))
        if handle is None:
            return register_prompt_mask_hooks(given, **options)
        handle.refresh()
        return handle

    return attempt(step, _Former(model, transformer, handle).restore)


@public
def remove_prompt_adapter(model: nn.Module, adapter_name: str = "default") -> HookHandle | None:
    """Delete an adapter. PEFT up to 0.17 raises for prompt learning, and later releases leave a model that cannot run.

    If it was the active one, the first of the others becomes active. Deleting the last one also removes the
    ``PeftModel`` and the hooks; the backbone takes its place, frozen as PEFT left it.

    Args:
        model: A ``SentenceTransformer`` with an adapter.
        adapter_name: Which adapter.

    Returns:
        The handle of the hooks, or None if there are none (any more).

    Raises:
        TypeError: If ``model`` is not a module.
        UnsupportedModelError: If it does not have exactly one Transformer, or ``model.add_adapter()`` put the adapter
            in.
        ValueError: If there is no adapter of that name.

    Example:
        >>> from peft import PromptTuningConfig
        >>> from peft_hooks import add_prompt_adapter, remove_prompt_adapter
        >>> from peft_hooks.testing import tiny_model
        >>> model = tiny_model("bert")
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=4))
        >>> handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=8), "long")
        >>> remove_prompt_adapter(model, "long") is handle
        True
        >>> remove_prompt_adapter(model) is None, handle.active
        (True, False)
    """
    model, transformer = _the_transformer(model)
    handle, peft_model = adopt_handle(model), releases.backbone_of(transformer)
    names = state.adapter_names(transformer)
    if adapter_name not in names or not state.is_peft_model(peft_model):
        known = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"there is no adapter named {adapter_name!r} on this model; there are: {known}")
    surely(lambda: _take_away(transformer, peft_model, adapter_name, handle))
    return handle if handle is not None and handle.active else None


def _take_away(transformer: Any, peft_model: Any, adapter_name: str, handle: HookHandle | None) -> None:
    """Delete an adapter, and with the last one the hooks and the ``PeftModel``. Safe to repeat if interrupted."""
    others = [name for name in peft_model.peft_config if name != adapter_name]
    if others:
        if peft_model.active_adapter == adapter_name:
            peft_model.set_adapter(others[0])
        state.forget_adapter(peft_model, adapter_name)
        if handle is not None:
            handle.refresh()
        return
    if handle is not None:
        handle.remove()
    backbone = releases.plain_backbone(transformer)
    if releases.backbone_of(transformer) is not peft_model:
        return
    if peft_model.active_peft_config.is_prompt_learning:
        state.unwrap_heads(backbone)
    else:
        peft_model.base_model.unload()
        vars(backbone).pop("peft_config", None)
    releases.put_backbone(transformer, backbone)


class _Former:
    """A snapshot of a Transformer's backbone, its adapters, which parameters are frozen, and the hooks."""

    def __init__(self, model: nn.Module, transformer: Any, handle: HookHandle | None) -> None:
        self._model, self._transformer, self._handle = model, transformer, handle
        self._backbone: Any = releases.backbone_of(transformer)
        self._hooks = None if handle is None else handle.former(Pipeline.of(model))
        self._attributes = set(vars(self._backbone))
        self._adapters = list(getattr(self._backbone, "peft_config", ()))
        self._active = getattr(self._backbone, "active_adapter", None)
        self._frozen = {parameter: parameter.requires_grad for parameter in self._backbone.parameters()}
        # Of every module: SEQ_CLS wraps the head to train and save it, and LoRA puts its layers into the backbone.
        self._children = [(module, dict(module.named_children())) for module in self._backbone.modules()]

    def restore(self) -> None:
        """Restore everything. Safe to repeat if interrupted."""
        if releases.backbone_of(self._transformer) is not self._backbone:
            releases.put_backbone(self._transformer, self._backbone)
        if self._adapters:
            self._forget_added()
        self._put_modules_back()
        for parameter, trainable in self._frozen.items():
            parameter.requires_grad = trainable
        if self._hooks is not None:
            self._hooks()
            return
        handle = adopt_handle(self._model)
        if handle is not None:
            handle.remove()

    def _forget_added(self) -> None:
        added = [name for name in state.names_in(self._backbone) if name not in self._adapters]
        if self._backbone.active_adapter in added:
            self._backbone.set_adapter(self._active)
        for name in added:
            state.forget_adapter(self._backbone, name)

    def _put_modules_back(self) -> None:
        for module, children in self._children:
            now = dict(module.named_children())
            for name, child in children.items():
                if now.get(name) is not child:
                    setattr(module, name, child)
        for key in set(vars(self._backbone)) - self._attributes:
            delattr(self._backbone, key)


def _the_transformer(model: Any) -> tuple[nn.Module, Any]:
    """Return the module that the hooks of ``model`` go on, and its only Transformer."""
    read = read_pipeline(model)
    if len(read.encoders) != 1:
        places = ", ".join(repr(encoder.path) for encoder in read.encoders)
        raise UnsupportedModelError(
            f"expected a Sentence Transformers model with one Transformer module, got {in_words(model)} with "
            f"{places}: put the adapter on by hand, then call register_prompt_mask_hooks(model)"
        )
    (encoder,) = read.encoders
    if encoder.adapted and not hasattr(encoder.outer, "active_peft_config"):
        raise UnsupportedModelError(
            "the backbone has an adapter that model.add_adapter() put in, next to which there cannot be a PeftModel: "
            "remove it with `model.delete_adapter(name)`, or load the model again and add to that"
        )
    return read.root, encoder.module


def _filled_in(peft_config: Any, transformer: Any) -> Any:
    """Return a copy of the config, completed with values read from the backbone."""
    from peft import PeftConfig as Config

    if not isinstance(peft_config, Config):
        raise TypeError(
            f"expected a PEFT config such as PromptTuningConfig(num_virtual_tokens=10), got {in_words(peft_config)}"
        )
    config: Any = copy.deepcopy(peft_config)
    tokens = config.num_virtual_tokens if config.is_prompt_learning else 1
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(
            f"num_virtual_tokens={tokens!r}: give how many virtual tokens there are, such as "
            f"{type(config).__name__}(num_virtual_tokens=10)"
        )
    config.task_type = config.task_type or cross.task_type(transformer)
    backbone = releases.plain_backbone(transformer)
    if config.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not hasattr(backbone, "prepare_inputs_for_generation"):
        raise ValueError(
            f'task_type="{config.task_type}" is for models that generate text, and the backbone is '
            f"{in_words(backbone)}: leave task_type out"
        )
    if config.is_prompt_learning:
        for key, value in backbones.backbone_sizes(transformer, releases.method_of(config)).items():
            if getattr(config, key, None) is None:
                setattr(config, key, value)
    return config
