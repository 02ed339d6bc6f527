"""What each PEFT method does on the installed releases, measured on tiny models: ``doctor`` with no model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..compat import sentence_transformers as releases
from ..doctor.report import RIGHT, WRONG, Page
from ..errors import UnsupportedModelError
from ..prompts.adapters import _filled_in
from ..prompts.attach import prompt_mask_hooks
from ..testing import TEXTS, tiny_model

VIRTUAL_TOKENS = 4
TOLERANCE = 1e-4
POOLINGS = ("mean", "cls")
BACKBONES = (("bert", "right"), ("llama", "left"))

# A method by its name for a reader, its config in PEFT, and what this needs.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": VIRTUAL_TOKENS}),
    "P-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": VIRTUAL_TOKENS, "encoder_hidden_size": 24}),
    "multitask": ("MultitaskPromptTuningConfig", {"num_virtual_tokens": VIRTUAL_TOKENS, "num_tasks": 2}),
    "prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": VIRTUAL_TOKENS}),
    "cartridge": ("CartridgeConfig", {"num_virtual_tokens": VIRTUAL_TOKENS, "num_frozen_tokens": 1}),
    "LoRA": ("LoraConfig", {"r": 2, "init_lora_weights": False}),
}


@dataclass(frozen=True)
class Cell:
    """What came of one method, on one backbone, with one pooling.

    Attributes:
        method: As in ``METHODS``.
        backbone: The architecture.
        padding: Where its tokenizer pads.
        pooling: The pooling mode.
        hooks: Whether the hooks were on.
        outcome: ``"right"``, ``"wrong"``, ``"raises"``, ``"refused"``, or ``"missing"`` where PEFT has no such method.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as what JSON can hold."""
        return asdict(self)


def cells(say: Callable[[str], contextlib.AbstractContextManager[None]]) -> Iterator[Cell]:
    """Measure every cell of the table."""
    for backbone, padding in BACKBONES:
        with say(f"Trying {len(METHODS)} methods on a tiny {backbone}"):
            found = [cell for method in METHODS for cell in _measure(method, backbone, padding)]
        yield from found


def _measure(method: str, backbone: str, padding: str) -> Iterator[Cell]:
    for pooling in POOLINGS:
        for hooks in (False, True):
            where = (method, backbone, padding, pooling, hooks)
            try:
                model = build(method, backbone, padding, pooling)
            except _MissingError as error:
                yield Cell(*where, "missing", detail=str(error))
                continue
            try:
                yield _outcome(where, distance(model, method, pooling, hooks))
            except UnsupportedModelError as error:
                yield Cell(*where, "refused", detail=str(error))
            except Exception as error:  # whatever the libraries raise is what a user sees
                first = (str(error).strip().splitlines() or [""])[0]
                yield Cell(*where, "raises", detail=f"{type(error).__name__}: {first}")


class _MissingError(Exception):
    """The installed PEFT has no such method."""


def _outcome(where: tuple[str, str, str, str, bool], apart: float) -> Cell:
    return Cell(*where, "right" if apart <= TOLERANCE else "wrong", apart)


def build(method: str, backbone: str, padding: str, pooling: str) -> Any:
    """Return a tiny model with an adapter, put on as a user does: without asking whether it can be right."""
    import peft

    name, options = METHODS[method]
    if not hasattr(peft, name):
        raise _MissingError(f"peft {peft.__version__} has no {name}")
    model = tiny_model(backbone, padding_side=padding, pooling=pooling)
    transformer = releases.transformers_of(model)[0][1]
    if method == "LoRA":
        options = {**options, "target_modules": ["query", "value"] if backbone == "bert" else ["q_proj", "v_proj"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = _filled_in(getattr(peft, name)(task_type="FEATURE_EXTRACTION", **options), transformer)
        adapted = peft.get_peft_model(releases.backbone_of(transformer), config)
        with torch.no_grad():  # as large as words, so that what goes wrong shows; cartridges begin at zero
            for parameter in adapted.parameters():
                if parameter.requires_grad and method != "LoRA":
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
        releases.put_backbone(transformer, adapted)
    return model.eval()


def distance(model: Any, method: str, pooling: str, hooks: bool) -> float:
    """Return how far embeddings, alone and in one batch, are from those computed by hand. Infinite for NaN."""
    options = {"task_id": 0} if method == "multitask" else {}
    with prompt_mask_hooks(model, **options) if hooks else contextlib.nullcontext():
        together = model.encode(list(TEXTS), batch_size=len(TEXTS), convert_to_tensor=True)
        alone = [model.encode([text], convert_to_tensor=True)[0] for text in TEXTS]
    truth = torch.stack([by_hand(model, text, pooling, options) for text in TEXTS])
    found = (torch.as_tensor(together), torch.stack(list(alone)))
    return max(float((one - truth).abs().nan_to_num(nan=float("inf")).max()) for one in found)


def by_hand(model: Any, text: str, pooling: str, options: dict[str, int]) -> Tensor:
    """Compute one embedding from PEFT's own forward on a text without padding, where no mask can be wrong."""
    transformer: Any = releases.transformers_of(model)[0][1]
    encoded = transformer.tokenizer(text, return_tensors="pt")
    peft_model, ids = releases.backbone_of(transformer), encoded["input_ids"]
    # Only a task is needed, which PEFT has no way to be given.
    with prompt_mask_hooks(model, **options) if options else contextlib.nullcontext(), torch.no_grad():
        rows = peft_model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0]
    embedding: Tensor = rows.mean(dim=0) if pooling == "mean" else rows[rows.size(0) - ids.size(1)]
    return embedding


def show_native(console: Console, cells: Sequence[Cell]) -> None:
    """Show what each PEFT method does on the installed releases."""
    page = Page(console)
    page.versions()
    page.title("What each PEFT method does with these releases")
    page.say(
        "Measured just now on tiny random models. Right: the embedding of every text, alone and in a padded batch, is "
        "the one computed by hand. Wrong by: the largest difference of a component."
    )
    errors = list(dict.fromkeys(cell.detail for cell in cells if cell.detail))
    for backbone, padding in dict.fromkeys((cell.backbone, cell.padding) for cell in cells):
        page.console.print()
        page.say(f"{backbone}, padded on the {padding}", style="bold")
        rows = [cell for cell in cells if cell.backbone == backbone]
        page.console.print(_native_table(rows, errors))
    for number, error in enumerate(errors, 1):
        page.say(error, indent=4, first=f"[{number}]", style="dim")
    page.title("Verdict")
    for title, hooks in (("Without hooks", False), ("With hooks", True)):
        count = _count([cell for cell in cells if cell.hooks is hooks])
        console.print(Text.assemble((f"{title:<15}", "bold"), count))


def _native_table(cells: Sequence[Cell], errors: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nmethod", no_wrap=True, min_width=13)
    for pooling in dict.fromkeys(cell.pooling for cell in cells):
        table.add_column(f"{pooling} pooling\nwithout hooks", no_wrap=True, min_width=13)
        table.add_column("\nwith hooks", no_wrap=True, min_width=10)
    for method in dict.fromkeys(cell.method for cell in cells):
        table.add_row(method, *(_cell_text(cell, errors) for cell in cells if cell.method == method))
    return table


def _cell_text(cell: Cell, errors: Sequence[str]) -> Text:
    number = f" [{errors.index(cell.detail) + 1}]" if cell.detail else ""
    if cell.outcome == "wrong":
        return Text(f"wrong by {(cell.distance or 0):.2f}", WRONG)
    styles = {"right": RIGHT, "raises": WRONG, "refused": "", "missing": "dim"}
    return Text(cell.outcome + number, styles[cell.outcome])


def _count(cells: Iterable[Cell]) -> str:
    outcomes = [cell.outcome for cell in cells if cell.outcome != "missing"]
    counts = {kind: outcomes.count(kind) for kind in ("right", "wrong", "raises", "refused")}
    shown = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    return f"{shown} (of {len(outcomes)})"
