"""The checks of ``diagnose`` on the model itself: adapters, hooks and positions. Each yields findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..compat import backbones
from ..compat import sentence_transformers as releases
from ..hooks.table import silence
from ..prompts.handle import options_on
from ..prompts.prefix_probe import way_of_prefix
from .findings import Finding
from .watch import hooked_paths, modules_of

TRAIN_ANOTHER = (
    'config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=16)\n'
    "peft_hooks.add_prompt_adapter(model, config)  # and train it"
)


def check_adapters(model: nn.Module, virtual: Mapping[str, int]) -> Iterator[Finding]:
    """Yield adapters that do nothing: never called (PH004), bypassed (PH005), or ignored by the backbone (PH010).

    Args:
        model: The model.
        virtual: The number of virtual tokens that came out of each Transformer that ran, by path.
    """
    transformers = releases.transformers_of(model)
    running = [releases.backbone_of(transformer) for _, transformer in transformers]
    kind = releases.peft_class()
    for path, module in model.named_modules():
        if kind is not None and isinstance(module, kind) and all(module is not backbone for backbone in running):
            yield from _never_called(path, module, running)
    for path, transformer in transformers:
        if releases.forward_skips_prompts(releases.backbone_of(transformer)):
            yield from _passed_by(path, transformer, virtual.get(path))
        else:
            yield from _switched_off(model, path, transformer, virtual.get(path))
            yield from _ignored(path, transformer)


def _never_called(path: str, adapter: Any, running: list[Any]) -> Iterator[Finding]:
    config = adapter.active_peft_config
    inside = any(adapter.get_base_model() is getattr(backbone, "base_model", backbone) for backbone in running)
    if inside and not config.is_prompt_learning:
        return  # LoRA's layers are in the backbone itself, so they work anyway
    method = releases.method_of(config)
    tokens = f"{config.num_virtual_tokens} virtual tokens" if config.is_prompt_learning else "layers"
    parent, _, name = path.rpartition(".")
    where = f"model[{parent}]" if parent.isdigit() else f"model.get_submodule({parent!r})"
    fix = "peft_hooks.add_prompt_adapter(model, config)  # puts it where the forward runs"
    if name == "auto_model":
        fix = f'adapter = {where}._modules.pop("auto_model")\n{where}.model = adapter'
    yield Finding(
        "PH004",
        f"{type(adapter).__name__} {path!r}",
        f"The {method} adapter is in the model, but the forward never goes through it, so it does nothing. Since 5.4 "
        f"Sentence Transformers runs {parent}.model, and assigning to auto_model has no effect.",
        f"0 of its {tokens} came out of the Transformer",
        fix,
    )


def _passed_by(path: str, transformer: Any, virtual: int | None) -> Iterator[Finding]:
    backbone = releases.backbone_of(transformer)
    for name, config in releases.prompt_configs(transformer).items():
        yield Finding(
            "PH005",
            f"{type(backbone).__name__} of Transformer {path!r}",
            f"The {releases.method_of(config)} adapter {name!r} has no task type, and the forward of a plain PeftModel "
            f"calls the base model without the prompt: the adapter does nothing.",
            f"{config.num_virtual_tokens} virtual tokens in its config, {virtual or 0} among the embeddings",
            'set "task_type": "FEATURE_EXTRACTION" in adapter_config.json, then load it again',
        )


def _switched_off(model: nn.Module, path: str, transformer: Any, virtual: int | None) -> Iterator[Finding]:
    expected = releases.active_virtual_tokens(transformer)
    if virtual != 0 or not expected or options_on(model) is not None:  # hooks may have cut them off
        return
    yield Finding(
        "PH005",
        f"{type(releases.backbone_of(transformer)).__name__} of Transformer {path!r}",
        "The adapter is switched off, so it does nothing.",
        f"{expected} virtual tokens in its config, 0 among the embeddings",
        "encode outside of the disable_adapter() block",
    )


def _ignored(path: str, transformer: Any) -> Iterator[Finding]:
    for name, config in releases.prompt_configs(transformer).items():
        if releases.method_of(config) in releases.PREFIX_METHODS:
            way = way_of_prefix(transformer, name)
            if way.cache is None:
                continue
            without = "" if way.places is None else " without hooks"
            yield Finding(
                "PH010",
                f"Transformer {path!r}",
                f"The {releases.method_of(config)} adapter {name!r} puts a prefix before the text's keys and "
                f"values, which this backbone does not use{without}: the adapter does nothing.",
                f"the backbone {backbones.model_type(transformer)!r} {way.reason or way.cache}",
                TRAIN_ANOTHER if way.places is None else "peft_hooks.register_prompt_mask_hooks(model)",
            )


def paths_to_count(model: nn.Module) -> set[str]:
    """Return the modules whose calls ``check_hooks`` needs: those with hooks, their children, parents and siblings."""
    hooked, modules = hooked_paths(model), modules_of(model)
    inside = {path for path, _ in model.named_modules() if path and path.rpartition(".")[0] in hooked}
    around = {path.rpartition(".")[0] for path in hooked if path}
    beside = {path for path, _ in model.named_modules() if path and path.rpartition(".")[0] in around}
    return {path for path in hooked | inside | around | beside if _has_forward(modules[path])}


def _has_forward(module: nn.Module) -> bool:
    """Tell whether a module is ever called: ``ModuleList`` and ``ModuleDict`` only hold others."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def check_hooks(model: nn.Module, hooked: set[str], calls: Counter[str]) -> Iterator[Finding]:
    """PH008: yield the modules with hooks whose parent calls ``forward`` in a way that skips them.

    Args:
        model: The model.
        hooked: The paths that have hooks.
        calls: How often the hooks on ``paths_to_count`` were called while texts were encoded.
    """
    modules = modules_of(model)
    inactive = {path for path in hooked if _is_inactive_prompt(modules, path)}
    for path in sorted(hooked - inactive):
        module = modules[path]
        if calls[path] or not _has_forward(module):
            continue
        around = path.rpartition(".")[0]
        if path and _is_choice(modules[around]):
            continue  # the other route of a Router
        note = silence(model, path, calls).removeprefix("never fired: ")
        inner = next((at for at in sorted(calls) if at.startswith(f"{path}.") and calls[at]), None) if path else "0"
        target = inner or around
        yield Finding(
            "PH008",
            f"{type(module).__name__} {path!r}",
            "A hook on this module never fires: the forward does not call the module in a way that runs hooks.",
            f"0 calls while texts were encoded; {note}",
            f"peft_hooks.HookRegistry(model).attach(hook, to={target!r})",
        )


def _is_inactive_prompt(modules: Mapping[str, Any], path: str) -> bool:
    around, _, name = path.rpartition(".")
    if around.rpartition(".")[2] != "prompt_encoder":
        return False
    return bool(name != getattr(modules[around.rpartition(".")[0]], "active_adapter", name))


def _is_choice(module: nn.Module) -> bool:
    return type(module).__name__ in ("Router", "Asym")


def room_for_text(transformer: Any) -> tuple[int, int] | None:
    """Return the backbone's positions and the virtual tokens if these and the longest text do not fit; else None."""
    config, positions = releases.active_config(transformer), backbones.position_count(transformer)
    if config is None or positions is None or not getattr(config, "is_prompt_learning", False):
        return None
    longest, virtual = transformer.max_seq_length, int(config.num_virtual_tokens)
    return None if longest is not None and longest + virtual <= positions else (positions, virtual)


def check_positions(path: str, transformer: Any, tried: str) -> Iterator[Finding]:
    """PH009: yield the Transformer if a text can be so long that no positions are left for the virtual tokens.

    Args:
        path: The path of the Transformer.
        transformer: The module.
        tried: What happened to a text of that length.
    """
    found = room_for_text(transformer)
    if found is None:
        return
    positions, virtual = found
    longest = transformer.max_seq_length
    limit = f"texts are truncated to {longest} tokens" if longest is not None else "texts are not truncated"
    yield Finding(
        "PH009",
        f"Transformer {path!r}",
        f"Long texts and the virtual tokens together do not fit into the backbone's positions: {limit}, and nothing "
        f"subtracts the virtual tokens from that.",
        f"{positions} positions, {virtual} of them for virtual tokens; {tried}",
        f"model.max_seq_length = {positions - virtual}",
    )
