"""What the doctor puts on modules: it sees what goes in and comes out, around the hooks of others, and goes again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import Hook, HookRegistry, diagnose
from peft_hooks.doctor.taps import tapped
from peft_hooks.testing import TEXTS, tiny_model


class Scripted(nn.Module):
    """Turns an embedding by a scripted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = torch.jit.script(nn.Linear(32, 32))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": self.turn(features["sentence_embedding"])}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hooked_module_with_a_scripted_one_inside_is_diagnosed() -> None:
    """PyTorch takes no hook on a scripted module, and the doctor raised for it."""
    model: Any = tiny_model("bert")
    model.append(Scripted())
    HookRegistry(model).attach(Hook(), to="2")
    found = diagnose(model, TEXTS[:2])
    assert found.ok, str(found)


def test_the_hooks_of_others_are_between_what_came_and_what_it_got() -> None:
    """One sees what the caller gave, the next what the forward gets, the last what the caller is given."""
    layer, seen = nn.Identity(), {}
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    layer.register_forward_hook(lambda module, args, output: output * 10)
    with tapped(
        [("layer", layer)],
        given=lambda path, module, args, kwargs: seen.update(given=(path, args[0].item())),
        received=lambda path, module, args, kwargs: seen.update(received=(path, args[0].item())),
        returned=lambda path, module, output: seen.update(returned=(path, output.item())),
    ):
        assert layer(torch.tensor(1)).item() == 20
    assert seen == {"given": ("layer", 1), "received": ("layer", 2), "returned": ("layer", 20)}


def test_what_one_returns_of_an_output_replaces_it() -> None:
    layer = nn.Identity()
    with tapped([("", layer)], returned=lambda path, module, output: output + 5):
        assert layer(torch.tensor(1)).item() == 6
    assert layer(torch.tensor(1)).item() == 1


def test_an_error_while_they_are_put_on_leaves_none() -> None:
    """Such as of a generator that finds the modules."""
    layer = nn.Identity()

    def modules() -> Any:
        yield "", layer
        raise LookupError

    with pytest.raises(LookupError), tapped(modules(), given=print, received=print, returned=print):
        pass
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
