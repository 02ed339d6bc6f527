"""Working programs of many kinds: a trace must record them and change nothing."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

Program = tuple[nn.Module, Callable[[], Any]]
PROGRAMS: list[Callable[[], Program]] = []


def program(make: Callable[[], Program]) -> Callable[[], Program]:
    """Add a program to the list."""
    PROGRAMS.append(make)
    return make


class Does(nn.Module):
    """A module with parts whose forward calls a function with the module and its inputs."""

    def __init__(self, does: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.does = does
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.does(self, *args, **kwargs)


def calls(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    return model, lambda: model(*args, **kwargs)


@program
def a_net_that_calls_itself() -> Program:
    def does(self: Any, x: Tensor, depth: int = 4) -> Tensor:
        return self(self.lin(x), depth - 1) if depth else x

    return calls(Does(does, lin=nn.Linear(3, 3)), torch.randn(2, 3))


@program
def a_scripted_child() -> Program:
    return calls(nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 2))), torch.randn(2, 3))


@program
def a_traced_child() -> Program:
    return calls(nn.Sequential(torch.jit.trace(nn.Linear(3, 3), torch.randn(1, 3)), nn.ReLU()), torch.randn(2, 3))


@program
def a_packed_sequence() -> Program:
    packed = rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    return calls(nn.LSTM(3, 5), packed)


@program
def lazy_layers() -> Program:
    return calls(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), torch.randn(5, 3))


@program
def a_weight_norm() -> Program:
    return calls(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4))), torch.randn(2, 3))


@program
def an_orthogonal_weight() -> Program:
    return calls(nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3))), torch.randn(2, 3))


@program
def a_compiled_child() -> Program:
    return calls(nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager"), nn.ReLU()), torch.randn(2, 3))


@program
def a_quantised_layer() -> Program:
    warnings.simplefilter("ignore")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return calls(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}), torch.randn(2, 8))


@program
def an_encoder_on_nested_tensors() -> Program:
    """With hooks on its layers PyTorch leaves its fast path, so the comparison allows for the last bits to differ."""
    warnings.simplefilter("ignore")
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    x = torch.randn(2, 5, 8)
    return encoder, lambda: encoder(x, src_key_padding_mask=padding)[~padding].detach().round(decimals=4)


@program
def a_strided_nested_tensor() -> Program:
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)])
    return calls(Does(lambda self, x: self.lin(x).to_padded_tensor(0.0), lin=nn.Linear(4, 2)), nested)


@program
def a_jagged_nested_tensor() -> Program:
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=torch.jagged)
    return calls(Does(lambda self, x: self.lin(x).values(), lin=nn.Linear(4, 2)), nested)


class Slots:
    """An object without a ``__dict__``; its subclass is named like a cache."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class SlotsCache(Slots):
    __slots__ = ()


@program
def an_object_with_slots() -> Program:
    def does(self: Any, x: Tensor, cache: Any) -> Tensor:
        return self.lin(x) + cache.keys

    return calls(Does(does, lin=nn.Linear(3, 3)), torch.randn(2, 3), SlotsCache(torch.ones(3)))


@dataclasses.dataclass
class Unset:
    """A dataclass with a field that is never set."""

    hidden: Tensor
    pooled: Tensor = dataclasses.field(init=False)


@program
def a_dataclass_with_an_unset_field() -> Program:
    return calls(Does(lambda self, x: self.part(x).hidden, part=Does(lambda self, x: Unset(x))), torch.randn(2, 3))


class Raising(Mapping[str, Any]):
    """A mapping whose values raise when they are read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["late"])

    def __len__(self) -> int:
        return 1


@program
def a_mapping_whose_values_raise() -> Program:
    return calls(Does(lambda self, x, late: self.lin(x), lin=nn.Linear(3, 2)), torch.randn(2, 3), Raising())


@program
def a_key_that_cannot_be_printed() -> Program:
    return calls(Does(lambda self, x: x["\udcff\n"] * 2), {"\udcff\n": torch.ones(2)})


@program
def a_thousand_tensors() -> Program:
    many = [torch.ones(1)] * 1000
    return calls(Does(lambda self, x: sum(self.part(x)), part=Does(lambda self, x: many)), torch.ones(1))


@program
def a_generator() -> Program:
    return calls(
        Does(lambda self, x: sum(self.part(x)), part=Does(lambda self, x: (x * i for i in range(3)))), torch.ones(1)
    )


@program
def a_forward_under_vmap() -> Program:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    x = torch.randn(4, 3)
    return model, lambda: torch.vmap(model)(x)


@program
def gradients_of_functions() -> Program:
    model = nn.Linear(3, 1)
    x = torch.randn(3)
    return model, lambda: torch.func.grad(lambda x: model(x).sum())(x)


@program
def a_functional_call() -> Program:
    model = nn.Sequential(nn.Linear(3, 2))
    x, own = torch.randn(2, 3), {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}
    return model, lambda: torch.func.functional_call(model, own, (x,))


@program
def weights_that_are_shared() -> Program:
    part = nn.Linear(3, 3)
    return calls(nn.Sequential(part, nn.ReLU(), part), torch.randn(2, 3))


@program
def an_error_that_is_caught() -> Program:
    def does(self: Any, x: Tensor) -> Tensor:
        try:
            return self.wide(x)
        except RuntimeError:
            return self.narrow(x)

    return calls(Does(does, wide=nn.Linear(5, 2), narrow=nn.Linear(3, 2)), torch.randn(2, 3))


def _training(reentrant: bool) -> Program:
    def does(self: Any, x: Tensor) -> Tensor:
        return checkpoint(self.lin, x, use_reentrant=reentrant).sum()

    model = Does(does, lin=nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    x = torch.randn(2, 3, requires_grad=True)

    def step() -> Tensor:
        model.zero_grad()
        model(x).backward()
        return model.lin[0].weight.grad.clone()

    return model, step


@program
def gradient_checkpointing() -> Program:
    return _training(reentrant=False)


@program
def reentrant_checkpointing() -> Program:
    return _training(reentrant=True)


@program
def autocast() -> Program:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    x = torch.randn(2, 3)

    def call() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    return model, call


@program
def inference_mode() -> Program:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    x = torch.randn(2, 3)
    return model, torch.inference_mode()(lambda: model(x))


@program
def sparse_tensors() -> Program:
    return calls(
        Does(lambda self, x: torch.sparse.mm(x, self.weight), weight=nn.Parameter(torch.randn(3, 2))),
        torch.eye(3).to_sparse(),
    )


@program
def complex_numbers() -> Program:
    return calls(nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)), torch.randn(2, 3, dtype=torch.complex64))


@program
def a_moduledict_and_a_list() -> Program:
    def does(self: Any, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.heads["a"](x)

    parts = nn.ModuleList([nn.Linear(3, 3), nn.ReLU()])
    return calls(Does(does, parts=parts, heads=nn.ModuleDict({"a": nn.Linear(3, 1)})), torch.randn(2, 3))


@program
def an_embedding_bag() -> Program:
    return calls(nn.EmbeddingBag(9, 3), torch.tensor([1, 2, 4, 5]), torch.tensor([0, 2]))


@program
def a_hook_of_the_users() -> Program:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return calls(model, torch.randn(2, 3))
