"""The page of a trace, made of a template: what models, errors and hooks say is text in it and no markup."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_hooks import Hook, HookRegistry, ShapeTrace, trace_shapes
from peft_hooks.hooks.call import Call

MARKUP = "<b>&'\"</b>"
PARTS = files("peft_hooks.tracing.render")


class Raises(Hook):
    """Raises with markup in its message."""

    def before(self, call: Call) -> None:
        raise ValueError(MARKUP)


def traced(model: nn.Module, *widths: int) -> ShapeTrace:
    """Trace one forward for each width, whatever it raises."""
    with trace_shapes(model) as trace:
        for width in widths:
            try:
                model(torch.zeros(2, width))
            except (RuntimeError, ValueError):
                continue
    return trace


def named(kind: str = MARKUP) -> Any:
    """Return a model whose class and whose module's class and path are markup."""
    layer = type(kind, (nn.Linear,), {})(4, 4)
    model = type(kind, (nn.Sequential,), {})()
    model.add_module(kind, layer)
    return model


@pytest.mark.parametrize("part", ["page", "difference", "error of a hook", "error of a layer"])
def test_what_others_named_is_no_markup(part: str, tmp_path: Path) -> None:
    model = named()
    if part == "error of a hook":
        HookRegistry(model).attach(Raises(), to=MARKUP)
    trace = traced(model, 5 if part == "error of a layer" else 4)
    assert (trace.failure is not None) is part.startswith("error")
    shown: Any = trace.diff(traced(named(), 5)) if part == "difference" else trace
    for text in (shown._repr_html_(), written(shown, tmp_path)):
        outside = re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", text, flags=re.DOTALL)
        assert "&lt;b&gt;" in outside
        assert "<b>&" not in text
        assert not re.search(r'title="[^"]*<', text)


def written(shown: Any, folder: Path) -> str:
    """Return the page that is written."""
    shown.to_html(folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_a_failure_beyond_the_forwards_that_are_drawn_is_drawn_in_place_of_the_last() -> None:
    page = traced(nn.Sequential(nn.Linear(4, 4)), 4, 4, 4, 4, 4, 5)._repr_html_()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [*(f"Forward {number}" for number in (1, 2, 3, 6)), "All modules"]
    assert page.count('class="card bad"') == 1
    assert "2 more forwards are in the tree below." in page


def test_a_body_for_a_notebook_is_no_whole_page_and_has_its_own_style() -> None:
    page = traced(nn.Sequential(nn.Linear(4, 4)), 4)._repr_html_()
    assert page.startswith('<div class="pht"><style>')
    assert "<body" not in page
    assert "min-height" not in page


def test_every_class_of_the_template_and_the_picture_has_a_look() -> None:
    """What is renamed in one file is renamed in the other."""
    style = (PARTS / "trace.css").read_text(encoding="utf-8")
    used = set(re.findall(r'class="([\w ]+)"', traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), 4, 5)._repr_html_()))
    known = set(re.findall(r"\.([a-z]+)", style)) | {"done"}
    assert not {name for names in used for name in names.split()} - known
    assert style.count("{") == style.count("}")


def test_every_colour_that_is_used_is_set_for_light_and_for_dark() -> None:
    style = (PARTS / "trace.css").read_text(encoding="utf-8")
    used, light = set(re.findall(r"var\(--(\w+)\)", style)), style.partition("@media")[0]
    dark = style.partition("prefers-color-scheme: dark")[2].partition("\n}")[0]
    assert used <= set(re.findall(r"--(\w+):", light))
    assert used - set(re.findall(r"--(\w+):", dark)) == {"sans", "mono"}


def test_the_legend_has_the_signs_that_are_drawn_and_no_others() -> None:
    """A plain model has no masks and no virtual tokens, so there is nothing to say about them."""
    page = traced(nn.Sequential(nn.Linear(4, 4)), 4)._repr_html_()
    legend = page.partition('class="card legend"')[2].partition("</div>")[0]
    assert "<i" not in legend
    assert "mask" not in legend
    broken = traced(nn.Sequential(nn.Linear(4, 4)), 5)._repr_html_()
    assert "where the forward failed" in broken.partition('class="card legend"')[2]
