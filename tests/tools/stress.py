"""Try hostile use: ``python -m tests.tools.stress [INTERRUPTS] [EDITS] [KILLS] [SEED]`` prints the outcomes.

After Ctrl-C at a random line of attaching, encoding, training, saving or loading, the model and the folder must be as
before the call or as after it. After a random edit, a saved folder must be refused with an explanation, or give the
same embeddings. After a process is killed at a random line of ``save``, the folder must hold the former model or the
new one. The exit status says whether any trial went wrong.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import peft_hooks
from peft_hooks import PeftHooksError, register_prompt_mask_hooks
from peft_hooks.compat.quiet import quiet
from peft_hooks.testing import TEXTS, tiny_transformer
from peft_hooks.testing.models import pipeline_modules

from .interrupts import HOME, SCENARIOS, Interrupt, trials
from .methods import fill_adapter, put_adapter

NEAR = 1e-5
METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "lora")


def build(base: Path, method: str, seed: int = 0) -> Any:
    """Build a model that saves every kind of file: with a Dense, prompts, left padding and hooks."""
    from sentence_transformers import SentenceTransformer

    modules = pipeline_modules()
    torch.manual_seed(0)
    first = modules.Transformer(str(base), max_seq_length=40)
    chain = [first, modules.Pooling(32, "mean"), modules.Dense(32, 24), modules.Normalize()]
    model = SentenceTransformer(modules=chain, device="cpu", prompts={"query": "search query : "}).eval()
    model.tokenizer.padding_side = "left"
    peft_model = put_adapter(model, method)
    if seed:
        with torch.no_grad():
            fill_adapter(peft_model, "default", seed, 0.5)
    register_prompt_mask_hooks(model)
    return model


def vectors(model: Any) -> torch.Tensor:
    texts = list(TEXTS)
    return torch.cat(
        [model.encode(texts, convert_to_tensor=True), model.encode(texts[:1], convert_to_tensor=True)]
    ).cpu()


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= NEAR)


def load(folder: Path) -> Any:
    return peft_hooks.load(folder, device="cpu")


# --- interrupts


def step(model: Any) -> None:
    """Train the adapter for one step."""
    model.train()
    features = (model.preprocess if hasattr(model, "preprocess") else model.tokenize)(list(TEXTS[:3]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(dict(features))["sentence_embedding"].sum().backward()
    for parameter in trained:
        parameter.grad = None
    model.eval()


def interrupted(call: Callable[[], Any], chance: random.Random) -> str | None:
    """Press Ctrl-C at a random line of a call; return the line, or None if the call completed."""
    with Interrupt() as counted:
        call()
    number = chance.randint(1, len(counted.lines))
    try:
        with Interrupt(number):
            call()
    except KeyboardInterrupt:
        return counted.lines[number - 1]
    return None


def interrupts_of_use(base: Path, count: int, chance: random.Random) -> Iterator[str]:
    """Yield the outcomes of interrupting encoding, training, saving and loading."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        models = {method: (build(base, method), build(base, method, seed=5)) for method in METHODS}
        for number in range(count):
            first, second = models[METHODS[number % len(METHODS)]]
            truths = [vectors(first), vectors(second)]
            if number % len(METHODS) == 0:
                shutil.rmtree(folder, ignore_errors=True)
            peft_hooks.save(first, folder)
            calls = {
                "encode": lambda one=second: vectors(one),
                "train": lambda one=second: step(one),
                "save": lambda one=second: peft_hooks.save(one, folder),
                "load": lambda: load(folder),
            }
            name = list(calls)[number // len(METHODS) % len(calls)]
            where = interrupted(calls[name], chance)
            second.eval()
            problem = None
            if not near(vectors(second), truths[1]):
                problem = "the model is different"
            found = vectors(load(folder))
            if not any(near(found, truth) for truth in truths):
                problem = "the folder has neither model"
            peft_hooks.save(second, folder)
            if not near(vectors(load(folder)), truths[1]):
                problem = "a later save holds a different model"
            left = [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]
            if left:
                problem = f"left behind: {left}"
            yield f"{name}: {'right' if problem is None else f'WRONG, {problem} ({where})'}"


def interrupts_of_attaching(count: int, chance: random.Random) -> Iterator[str]:
    """Yield the outcomes of interrupting everything that attaches, switches and removes."""
    names = list(SCENARIOS)
    each = max(1, count // len(names))
    for name in names:
        came = trials(
            SCENARIOS[name], lambda lines: sorted(chance.sample(range(1, len(lines) + 1), min(each, len(lines))))
        )
        for result, where in came:
            yield "attach and remove: " + (
                "right" if result in ("before", "after") else f"WRONG, {name}, {where}: {result}"
            )


# --- edits

VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    64,
    2.5,
    10**7,
    -(10**9),
    1e300,
    "",
    "left",
    "mean",
    "cls",
    "a/b",
    [],
    {},
    [1],
    "nan",
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places_in(inner, (*path, key))


def edit_json(file: Path, chance: random.Random) -> str:
    content = json.loads(file.read_text())
    place = chance.choice(list(places_in(content)) or [()])
    held = content
    for key in place[:-1]:
        held = held[key]
    if place and chance.random() < 0.2:
        del held[place[-1]]
        what = "deleted"
    elif place:
        old = held[place[-1]]
        nearby = [old + 1, old - 1, old * 2] if isinstance(old, (int, float)) and not isinstance(old, bool) else []
        held[place[-1]] = what = chance.choice([*VALUES, *nearby])
    else:
        content = what = chance.choice(VALUES)
    file.write_text(json.dumps(content))
    return f"{file.name} {place}: {what!r}"


def edit_weights(file: Path, chance: random.Random) -> str:
    held = load_file(file)
    name = chance.choice(list(held))
    change = chance.choice(["long", "bool", "half", "scale", "inf", "rows", "gone", "more"])
    tensor = held[name].float()
    changed: dict[str, Callable[[], torch.Tensor]] = {
        "long": tensor.long,
        "bool": tensor.bool,
        "half": tensor.half,
        "scale": lambda: tensor * 1.01,
        "inf": lambda: tensor.masked_fill(torch.rand_like(tensor) < 0.1, float("inf")),
        "rows": lambda: tensor[: max(1, len(tensor) - 1)],
        "more": lambda: torch.cat([tensor, tensor]),
    }
    if change == "gone":
        del held[name]
    else:
        held[name] = changed[change]().contiguous()
    save_file(held, file, {"format": "pt"})
    return f"{file.name} {name}: {change}"


def edit_bytes(file: Path, chance: random.Random) -> str:
    content = bytearray(file.read_bytes())
    kind = chance.choice(["flip", "cut", "gone", "twice", "empty"])
    if kind == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        content = content[: chance.randrange(len(content) + 1)]
    elif kind == "twice":
        content = content * 2
    elif kind == "empty":
        content = bytearray()
    file.unlink()
    if kind != "gone":
        file.write_bytes(bytes(content))
    return f"{file.name}: {kind}"


def edit(folder: Path, chance: random.Random) -> str:
    """Change one file at random."""
    file = chance.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    if file.suffix == ".json" and chance.random() < 0.8:
        return edit_json(file, chance)
    if file.suffix == ".safetensors" and chance.random() < 0.7:
        return edit_weights(file, chance)
    return edit_bytes(file, chance)


def edits(base: Path, count: int, chance: random.Random) -> Iterator[str]:
    """Yield the outcomes of random edits to saved folders."""
    with tempfile.TemporaryDirectory() as temporary:
        saved: dict[str, tuple[Path, torch.Tensor]] = {}
        for method in METHODS:
            model, folder = build(base, method), Path(temporary) / method
            peft_hooks.save(model, folder)
            saved[method] = folder, vectors(model)
        changed = Path(temporary) / "changed"
        for number in range(count):
            method = METHODS[number % len(METHODS)]
            folder, truth = saved[method]
            shutil.rmtree(changed, ignore_errors=True)
            shutil.copytree(folder, changed)
            what = edit(changed, chance)
            yield f"{outcome(changed, truth)}\0{method}, {what}"


def outcome(folder: Path, truth: torch.Tensor) -> str:
    """Load a folder and return the outcome: ``equal``, ``refused``, or ``WRONG`` with a reason."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = vectors(load(folder))
        except PeftHooksError as error:
            return "refused" if len(str(error)) > 20 else f"WRONG, no explanation: {error}"
        except Exception as error:
            return f"WRONG, {type(error).__name__}: {error}"[:200]
    told = any("peft_hooks" in str(one.message) or "are not those" in str(one.message) for one in said)
    if near(found, truth):
        return "equal"
    return "reported by a warning" if told else "WRONG, silently a different model"


# --- kills


def killed(call: Callable[[], Any]) -> bool:
    """Run a call in another process; return whether it was killed."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        with contextlib.suppress(BaseException):
            call()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def dying(at: int, call: Callable[[], Any], inside: str = HOME) -> None:
    """Run a call, and kill this process at the n-th line executed in the library, or in the given file or folder."""
    left = at

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(inside):
            return None
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    call()
    sys.settrace(None)


def kills(base: Path, count: int, chance: random.Random) -> Iterator[str]:
    """Yield the outcomes of killing processes while they save over another model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        first, second = build(base, "p_tuning"), build(base, "prompt_tuning", seed=3)
        truths = {"the former model": vectors(first), "the new model": vectors(second)}
        peft_hooks.save(first, folder)
        kept = Path(shutil.copytree(folder, Path(temporary) / "kept"))
        with Interrupt() as counted:
            peft_hooks.save(copy.deepcopy(second), Path(temporary) / "other")
        for _ in range(count):
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            at = chance.randint(1, len(counted.lines))
            died = killed(lambda at=at: dying(at, lambda: peft_hooks.save(second, folder)))
            try:
                found = vectors(load(folder))
                has = next((name for name, truth in truths.items() if near(found, truth)), None)
                peft_hooks.save(second, folder)
                right = near(vectors(load(folder)), truths["the new model"])
                came = has if has is not None and right else f"WRONG, neither at line {at}"
            except Exception as error:
                came = f"WRONG, {type(error).__name__} at line {at}: {error}"
            yield came if died else f"{came}, not killed"


def report(title: str, came: Iterator[str]) -> int:
    """Print the counts and what went wrong; return how many trials did."""
    counts: Counter[str] = Counter()
    wrong = 0
    for line in came:
        result, _, where = line.partition("\0")
        counts["WRONG" if "WRONG" in result else result] += 1
        if "WRONG" in result:
            wrong += 1
            print(f"    {result} {where}", flush=True)
    print(
        f"{title}: {sum(counts.values())} ({', '.join(f'{number} {name}' for name, number in sorted(counts.items()))})"
    )
    return wrong


def main(interrupts: int = 2000, changes: int = 1000, deaths: int = 100, seed: int = 0) -> int:
    """Run all trials, print the counts, and return how many trials went wrong."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = tiny_transformer("bert", Path(temporary) / "base")
        wrong = report("edits of a saved folder", edits(base, changes, chance))
        wrong += report("kills while saving", kills(base, deaths, chance) if hasattr(os, "fork") else iter(()))
        wrong += report("interrupts of use", interrupts_of_use(base, interrupts // 2, chance))
        wrong += report("interrupts of attaching", interrupts_of_attaching(interrupts // 2, chance))
    print(f"{wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(*map(int, sys.argv[1:5]))))
