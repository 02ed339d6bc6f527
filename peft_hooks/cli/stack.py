"""``doctor`` with no model: what each PEFT method does on the installed releases, measured on tiny models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..compat import backbones
from ..compat import sentence_transformers as releases
from ..doctor.invariance import apart
from ..doctor.report import RIGHT, WRONG, Page
from ..errors import UnsupportedModelError
from ..prompts.attach import prompt_mask_hooks
from ..testing import TEXTS, tiny_model

TOLERANCE = 1e-4
POOLINGS = ("mean", "cls")
BACKBONES = (("bert", "right"), ("llama", "left"))

# The name of a method in the table, its config in PEFT, and the options that the config needs.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 4}),
    "P-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 24}),
    "multitask": ("MultitaskPromptTuningConfig", {"num_virtual_tokens": 4, "num_tasks": 2}),
    "prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "cartridge": ("CartridgeConfig", {"num_virtual_tokens": 4, "num_frozen_tokens": 1}),
    "LoRA": ("LoraConfig", {"r": 2, "init_lora_weights": False}),
}
_LORA_LAYERS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Cell:
    """The result of one method, on one backbone, with one pooling.

    Attributes:
        method: The method, as in ``METHODS``.
        backbone: The architecture.
        padding: The side on which its tokenizer pads.
        pooling: The pooling mode.
        hooks: Whether the hooks were on.
        outcome: ``"right"``, ``"wrong"``, ``"raises"``, ``"refused"``, or ``"missing"`` if PEFT has no such method.
        distance: For right and wrong: how far the embeddings are from those computed by hand, alone and in a batch.
        detail: The error.
    """

    method: str
    backbone: str
    padding: str
    pooling: str
    hooks: bool
    outcome: str
    distance: float | None = None
    detail: str = ""

    @property
    def expected(self) -> bool:
        """Whether the outcome is one that the hooks allow."""
        return self.outcome in ("right", "refused", "missing")


def cells(say: Callable[[str], contextlib.AbstractContextManager[None]]) -> Iterator[Cell]:
    """Measure every cell of the table."""
    for backbone, padding in BACKBONES:
        with say(f"Trying {len(METHODS)} methods on a tiny {backbone}"):
            columns = [(pooling, hooks) for pooling in POOLINGS for hooks in (False, True)]
            found = [_measured(method, backbone, padding, *column) for method in METHODS for column in columns]
        yield from found


def _measured(method: str, backbone: str, padding: str, pooling: str, hooks: bool) -> Cell:
    import peft

    where = (method, backbone, padding, pooling, hooks)
    if not hasattr(peft, METHODS[method][0]):
        return Cell(*where, "missing", detail=f"peft {peft.__version__} has no {METHODS[method][0]}")
    try:
        apart = _distance(_adapted(method, backbone, padding, pooling), method, pooling, hooks)
    except UnsupportedModelError as error:
        return Cell(*where, "refused", detail=str(error))
    except Exception as error:  # a user sees whatever the libraries raise
        first = (str(error).strip().splitlines() or [""])[0]
        return Cell(*where, "raises", detail=f"{type(error).__name__}: {first}")
    return Cell(*where, "right" if apart <= TOLERANCE else "wrong", apart)


def _adapted(method: str, backbone: str, padding: str, pooling: str) -> Any:
    """Return a tiny model with an adapter, attached without checking whether it can be right."""
    import peft

    model = tiny_model(backbone, padding_side=padding, pooling=pooling)
    transformer = releases.transformers_of(model)[0][1]
    name, options = METHODS[method]
    config = getattr(peft, name)(task_type="FEATURE_EXTRACTION", **options)
    if config.is_prompt_learning:
        for key, size in backbones.backbone_sizes(transformer, releases.method_of(config)).items():
            setattr(config, key, size)
    else:
        config.target_modules = _LORA_LAYERS[backbone]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(releases.backbone_of(transformer), config)
        for parameter in adapted.parameters():
            # As large as word embeddings, so that errors show; cartridges start at zero.
            if parameter.requires_grad and config.is_prompt_learning:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    releases.put_backbone(transformer, adapted)
    return model.eval()


def _distance(model: Any, method: str, pooling: str, hooks: bool) -> float:
    """Return how far embeddings, alone and in one batch, are from those computed by hand; infinity for NaN."""
    task = 0 if method == "multitask" else None
    with prompt_mask_hooks(model, task_id=task) if hooks else contextlib.nullcontext():
        together = model.encode(list(TEXTS), batch_size=len(TEXTS), convert_to_tensor=True)
        alone = torch.stack([model.encode([text], convert_to_tensor=True)[0] for text in TEXTS])
    truth = torch.stack([_by_hand(model, text, pooling, task) for text in TEXTS])
    return max(apart(torch.as_tensor(together), truth), apart(alone, truth))


def _by_hand(model: Any, text: str, pooling: str, task: int | None) -> Tensor:
    """Compute one embedding with PEFT's own forward, on a text without padding, where no mask can be wrong."""
    transformer: Any = releases.transformers_of(model)[0][1]
    encoded = transformer.tokenizer(text, return_tensors="pt")
    peft_model, ids = releases.backbone_of(transformer), encoded["input_ids"]
    # The hooks are only needed to choose a task, for which PEFT has no option here.
    with prompt_mask_hooks(model, task_id=task) if task is not None else contextlib.nullcontext(), torch.no_grad():
        rows = peft_model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0]
    embedding: Tensor = rows.mean(dim=0) if pooling == "mean" else rows[rows.size(0) - ids.size(1)]
    return embedding


def show(console: Console, found: Sequence[Cell]) -> None:
    """Show what each PEFT method does on the installed releases."""
    page = Page(console)
    page.versions()
    page.title("What each PEFT method does with these releases")
    page.say(
        "Measured just now on tiny random models. Right: the embedding of every text, alone and in a padded batch, "
        "equals the one computed by hand. Wrong by: the largest difference of any component."
    )
    errors = list(dict.fromkeys(cell.detail for cell in found if cell.detail))
    for backbone, padding in BACKBONES:
        console.print()
        page.say(f"{backbone}, padded on the {padding}", style="bold")
        console.print(_table([cell for cell in found if cell.backbone == backbone], errors))
    for number, error in enumerate(errors, 1):
        page.say(error, indent=4, first=f"[{number}]", style="dim")
    page.title("Verdict")
    for title, hooks in (("Without hooks", False), ("With hooks", True)):
        outcomes = [cell.outcome for cell in found if cell.hooks is hooks and cell.outcome != "missing"]
        kinds = [kind for kind in ("right", "wrong", "raises", "refused") if kind in outcomes]
        counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds)
        console.print(Text.assemble((f"{title:<15}", "bold"), f"{counts} (of {len(outcomes)})"))


def _table(found: Sequence[Cell], errors: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nmethod", no_wrap=True, min_width=13)
    for pooling in POOLINGS:
        table.add_column(f"{pooling} pooling\nwithout hooks", no_wrap=True, min_width=13)
        table.add_column("\nwith hooks", no_wrap=True, min_width=10)
    for method in METHODS:
        table.add_row(method, *(_shown(cell, errors) for cell in found if cell.method == method))
    return table


def _shown(cell: Cell, errors: Sequence[str]) -> Text:
    if cell.outcome == "wrong":
        return Text(f"wrong by {cell.distance:.2f}", WRONG)
    number = f" [{errors.index(cell.detail) + 1}]" if cell.detail else ""
    styles = {"right": RIGHT, "raises": WRONG, "missing": "dim"}
    return Text(cell.outcome + number, styles.get(cell.outcome, ""))
