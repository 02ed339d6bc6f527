"""How traces look: texts that are golden, and pages that parse and need nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_hooks import ShapeTrace, add_prompt_adapter, trace_shapes
from peft_hooks.testing import TEXTS, tiny_model

from ...tools.wording import Golden, assert_says

VOID = {"meta", "br", "line", "rect", "circle", "path"}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return self.dense(hidden)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layer = nn.ModuleList([Layer() for _ in range(3)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        for layer in self.layer:
            hidden = layer(hidden, attention_mask)
        return {"last_hidden_state": hidden}


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects what is referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def shown(self) -> str:
        return "\n".join(self.words)


def check_page(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    assert page.references == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert not any(sign in outside for sign in ("http:", "https:", "url(", "@import"))
    return page


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def encoder_trace(length: int = 5, **options: Any) -> ShapeTrace:
    model = Encoder()
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[0, 3:] = 0
    with trace_shapes(model, **options) as trace:
        model(torch.zeros(2, length, dtype=torch.int64), attention_mask=mask)
    return trace


@pytest.fixture(scope="module")
def prompted() -> ShapeTrace:
    from peft import PromptTuningConfig

    model: Any = tiny_model("bert")
    add_prompt_adapter(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5))
    features = (model.preprocess if hasattr(model, "preprocess") else model.tokenize)(list(TEXTS[:4]))
    with torch.no_grad(), trace_shapes(model, stats=True) as trace:
        model(dict(features))
    return trace


def failing_trace() -> ShapeTrace:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), nn.Tanh())
    with trace_shapes(model) as trace, pytest.raises(RuntimeError):
        model(torch.zeros(2, 4))
    return trace


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_folds_layers_that_do_the_same(golden: Golden) -> None:
    text = str(encoder_trace(stats=True))
    golden("trace", text)
    summary, _, model, embed, layer, dense, folded = text.splitlines()
    assert_says(summary, "Encoder | 1 forward | 8 calls | 8 modules")
    assert_says(model, "Encoder | input_ids i64[2,5] | attention_mask i64[2,5] | 8/10 | last_hidden_state f32[2,5,4]")
    assert_says(embed, "embed | Embedding | input i64[2,5] | output f32[2,5,4]")
    assert_says(layer, "layer.0 | Layer | hidden f32[2,5,4] | attention_mask i64[2,5] | 8/10 | output f32[2,5,4]")
    assert_says(dense, "layer.0.dense | Linear | input f32[2,5,4] | output f32[2,5,4]")
    assert_says(folded, "layer.1 | layer.2")


def test_text_names_what_is_not_shown(golden: Golden) -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    with trace_shapes(model, max_calls=1) as trace:
        for _ in range(2):
            model[0].forward(torch.zeros(3))
    golden("trace", trace)
    summary, _, row, _, outer, inner, kept = str(trace).splitlines()
    assert_says(summary, "Sequential | 1 forward | 1 call | 1 module")
    assert_says(row, "0.0 | ReLU | input f32[3] | output f32[3]")
    assert_says(outer, "Sequential '' | not called | forward() directly")
    assert_says(inner, "Sequential '0' | not called | forward() directly")
    assert_says(kept, "1 further call | '0.0' | max_calls")


def test_text_tells_forwards_apart(golden: Golden) -> None:
    model = nn.Sequential(nn.ReLU())
    with trace_shapes(model, depth=0) as trace:
        model(torch.zeros(1))
        model(torch.zeros(2))
    golden("trace", trace)
    summary, first, second = str(trace).split("\n\n")
    assert_says(summary, "Sequential | 2 forwards | 2 calls | 1 module")
    assert_says(first, "forward 1 | input f32[1] | output f32[1]")
    assert_says(second, "forward 2 | input f32[2] | output f32[2]")


def test_text_of_an_empty_trace(golden: Golden) -> None:
    with trace_shapes(nn.ReLU()) as trace:
        pass
    golden("trace", trace)
    golden("trace", repr(trace))
    assert_says(trace, "ReLU | 0 forwards | 0 calls")
    assert_says(repr(trace), "ShapeTrace | ReLU | 0 calls")
    assert "Shapes in ReLU" in check_page(trace._repr_html_()).shown


def test_text_ends_with_the_failure(golden: Golden) -> None:
    trace = failing_trace()
    rows = str(trace).split("\n\n")[1]
    golden("trace", rows)
    golden("trace", repr(trace))
    assert [(line.split()[0], "!" in line, "output f32[2,4]" in line) for line in rows.splitlines()] == [
        ("(model)", True, False),
        ("0", False, True),
        ("1", True, False),
        ("1.0", False, True),
        ("1.1", True, False),
    ]
    assert str(trace).endswith(str(trace.failure))
    assert_says(repr(trace), "ShapeTrace | Sequential | 5 calls | Linear '1.1'")


def test_virtual_tokens_are_named_in_the_text(prompted: ShapeTrace, golden: Golden) -> None:
    lines = str(prompted).splitlines()
    golden("trace", lines[1])
    assert_says(lines[1], "5 virtual tokens | 18 positions | 23")
    assert_says(lines[2], "PROMPT_TUNING | 'default' | '0.")


def test_table_has_a_row_for_each_call_or_folds() -> None:
    trace = encoder_trace()
    assert trace.table().row_count == 5
    assert trace.table(fold=False).row_count == 8


# -- data --------------------------------------------------------------------------------------------------------------


def test_json_holds_what_the_trace_holds(tmp_path: Path, prompted: ShapeTrace) -> None:
    prompted.to_json(tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert data["virtual_tokens"] == 5
    assert len(data["rows"]) == len(prompted)
    ids = next(leaf for leaf in data["rows"][1]["inputs"] if leaf["name"].endswith("input_ids"))
    assert {key: ids[key] for key in ("shape", "dtype", "device")} == {
        "shape": [4, 18],
        "dtype": "int64",
        "device": "cpu",
    }


def test_a_failure_is_in_the_json() -> None:
    data = json.loads(json.dumps(failing_trace().to_dict()))
    assert data["failure"]["path"] == "1.1"
    assert data["failure"]["kind"] == "width"
    assert [bound["size"] for bound in data["failure"]["bounds"]] == [4, 3]


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_a_trace_does_not_differ_from_its_like(golden: Golden) -> None:
    diff = encoder_trace().diff(encoder_trace())
    assert not diff
    golden("diff", diff)
    assert_says(diff, "no difference | 8 calls")
    assert diff.first is None


def test_a_difference_names_the_first_divergence_and_every_change(golden: Golden) -> None:
    diff = encoder_trace(5).diff(encoder_trace(6))
    assert diff
    assert diff.sizes == {(5, 6): 20}
    golden("diff", diff)
    summary, first, size, *rest = str(diff).splitlines()
    assert_says(summary, "20 tensors | 8 of 8 calls")
    assert_says(first, "first | Encoder '' in | input_ids i64[2,5] | i64[2,6]")
    assert_says(size, "5 -> 6 | +1 | 20 times")
    assert_says(rest[-1], "Encoder '' out | last_hidden_state f32[2,5,4] | f32[2,6,4]")
    assert diff.table().row_count == 20


def test_an_adapted_model_is_aligned_with_its_base() -> None:
    from peft import PromptTuningConfig

    model: Any = tiny_model("bert")
    features = (model.preprocess if hasattr(model, "preprocess") else model.tokenize)(list(TEXTS[:4]))
    with trace_shapes(model) as base:
        model(dict(features))
    add_prompt_adapter(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5))
    with trace_shapes(model) as adapted:
        model(dict(features))
    diff = base.diff(adapted)
    assert diff.only_before == ()
    assert {row.module for row in diff.only_after} <= {"PromptEmbedding", "Embedding", "BertModel"}
    assert next(iter(diff.sizes)) == (18, 23)
    assert diff.first is not None
    assert diff.first.path.endswith("embeddings") or diff.first.module.startswith("PeftModel")


def test_a_failing_run_is_compared_as_far_as_it_got(golden: Golden) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with trace_shapes(model) as works:
        model(torch.zeros(2, 4))
    with trace_shapes(model) as fails, pytest.raises(RuntimeError):
        model(torch.zeros(2, 5))
    diff = works.diff(fails)
    golden("diff", diff)
    assert_says(diff.first, "Sequential '' in | input f32[2,4] | f32[2,5]")
    assert [row.where for row in diff.only_before] == ["ReLU '1'"]
    assert_says(diff.failure, "Linear '0' | RuntimeError | call 1 of forward 1")


# -- pages -------------------------------------------------------------------------------------------------------------


def test_the_page_is_one_well_formed_file(tmp_path: Path, prompted: ShapeTrace) -> None:
    prompted.to_html(tmp_path / "trace.html")
    page = check_page((tmp_path / "trace.html").read_text(encoding="utf-8"))
    for words in ("Transformer", "Pooling", "f32[4,23,32]", "keeps 35 of 72", "virtual tokens", "2 \u00d7 BertLayer"):
        assert words in page.shown
    assert page.tags.count("svg") == 1


def test_the_page_of_a_failure_shows_where_and_why() -> None:
    trace = failing_trace()
    page = check_page(trace._repr_html_())
    assert trace.failure is not None
    for words in ("raised RuntimeError", trace.failure.cause, "2 was not reached"):
        assert words in page.shown
    assert 'class="boxbad"' in trace._repr_html_()


def test_the_page_of_a_difference_is_well_formed(tmp_path: Path) -> None:
    encoder_trace(5).diff(encoder_trace(6)).to_html(tmp_path / "diff.html")
    assert "20 tensors differ" in check_page((tmp_path / "diff.html").read_text(encoding="utf-8")).shown


def test_names_are_escaped() -> None:
    kind = type("<script>", (nn.ReLU,), {})
    model = nn.Sequential(kind())
    with trace_shapes(model) as trace:
        model(torch.zeros(1))
    check_page(trace._repr_html_())


def test_many_forwards_are_drawn_up_to_a_few() -> None:
    model = nn.Sequential(nn.ReLU())
    with trace_shapes(model) as trace:
        for _ in range(9):
            model(torch.zeros(2))
    page = check_page(trace._repr_html_())
    assert page.tags.count("svg") == 4
    assert "5 more forwards are in the tree below." in page.shown
