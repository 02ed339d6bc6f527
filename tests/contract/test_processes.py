"""Replicas, processes, dtypes and quantised backbones: the hooks go along, and the embeddings stay right."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import check_padding_invariance, prompt_mask_hooks, register_prompt_mask_hooks

from ..tools import ddp_worker
from ..tools.checks import TEXTS, distance, encoded, expected, options_for

ROOT = Path(__file__).parents[2]


# --- replicas of DataParallel ---------------------------------------------------------------------------------------


def replicate(model: nn.Module) -> Any:
    """Make a replica as ``torch.nn.parallel.replicate`` does for each GPU, which takes no CPU."""
    made = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in made.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, made[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.detach())
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer)
    return made[model]


@pytest.mark.parametrize(("architecture", "side"), [("bert", "right"), ("llama", "left")])
def test_replicas_of_data_parallel_run_the_hooks_in_their_threads(architecture: str, side: str, adapted: Any) -> None:
    """Each replica has a part of the batch, padded to another length than the others'."""
    model = adapted(architecture, padding_side=side)
    parts = [list(TEXTS[:2]), list(TEXTS[2:4]), list(TEXTS[4:])]

    def run(texts: list[str]) -> Tensor:
        with torch.no_grad():
            return replica(texts)["sentence_embedding"]

    def replica(texts: list[str]) -> Any:
        return replicate(model)(dict(model.tokenize(texts)))

    with prompt_mask_hooks(model), ThreadPoolExecutor(3) as pool:
        found = torch.cat(list(pool.map(run, parts)))
    assert distance(found, expected(model)) <= 1e-4


# --- two processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    """DDP on gloo, started by torchrun: each process pads its own half to another length."""
    architecture, side = "llama", "left"
    file = tmp_path / "gradients.pt"
    worker = ["-m", "tests.tools.ddp_worker", str(file), architecture, side]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*launcher, *worker], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Tensor] = torch.load(file, weights_only=True)
    model = ddp_worker.trained(architecture, side)
    ddp_worker.step(ddp_worker.Distance(model), model, list(TEXTS))
    truth = ddp_worker.gradients(ddp_worker.Distance(model))
    assert truth, "no gradient reached the prompt"
    assert found.keys() == truth.keys()
    for name, gradient in truth.items():
        assert float(gradient.abs().max()) > 1e-4
        assert distance(found[name], gradient) <= 1e-5


# --- dtypes, and a quantised backbone -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("before", [True, False])
def test_another_dtype_before_or_after_attaching(dtype: torch.dtype, before: bool, adapted: Any) -> None:
    """``model.to(dtype)``: the embeddings have the dtype's precision, alone and in a batch."""
    model = adapted("bert")
    truth = expected(model)
    if before:
        model.to(dtype)
    register_prompt_mask_hooks(model)
    if not before:
        model.to(dtype)
    tolerance = {torch.float64: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype] * float(truth.abs().max())
    assert check_padding_invariance(model, TEXTS, tolerance=tolerance)
    found = encoded(model).float()
    assert distance(found, truth) <= tolerance


def test_autocast_gives_the_half_precision_embedding_alone_and_in_a_batch(adapted: Any) -> None:
    """``torch.autocast`` to bfloat16 around encoding."""
    model = adapted("bert")
    truth = expected(model)
    with prompt_mask_hooks(model), torch.autocast("cpu", torch.bfloat16):
        tolerance = 6e-2 * float(truth.abs().max())
        assert check_padding_invariance(model, TEXTS, tolerance=tolerance)
        assert distance(encoded(model).float(), truth) <= tolerance


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("before", [True, False])
def test_dynamic_int8_keeps_the_hooks_and_the_invariance(method: str, before: bool, adapted: Any) -> None:
    """``quantize_dynamic`` replaces every Linear; each batch has scales of its own, so int8 alone moves it a little."""
    model = adapted("bert", method)
    truth = expected(model, **options_for(method))
    if not before:
        register_prompt_mask_hooks(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    register_prompt_mask_hooks(quantised)
    tolerance = 5e-2 * float(truth.abs().max())
    assert distance(encoded(quantised), truth) <= tolerance
    assert check_padding_invariance(quantised, TEXTS, tolerance=tolerance)
