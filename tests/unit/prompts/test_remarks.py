"""What the table of a handle adds of the whole pipeline, in words that are golden; elsewhere facts are asserted."""

from __future__ import annotations

from typing import Any

import pytest

from peft_hooks import prompt_mask_hooks
from peft_hooks.testing import TEXTS

from ...tools.wording import Golden, assert_says


@pytest.mark.parametrize(
    ("architecture", "method", "options", "facts"),
    [
        ("llama", "prompt_tuning", {}, "Transformer '0' | once for all rows"),
        ("llama", "prompt_tuning", {"share_prompt": "keep"}, "Transformer '0' | kept between forwards"),
        ("llama", "prompt_tuning", {"share_prompt": False}, "Transformer '0' | for every row"),
        ("bert", "prompt_tuning", {}, "Transformer '0' | for every row | both sides"),
        ("distilbert", "prefix_tuning", {}, "Transformer '0' | attention of 2 layers"),
    ],
    ids=["shared", "kept", "switched off", "both sides", "prefix"],
)
def test_a_remark_says_what_is_done_and_where(
    architecture: str, method: str, options: Any, facts: str, adapted: Any, golden: Golden
) -> None:
    model = adapted(architecture, method)
    with prompt_mask_hooks(model, **options) as handle:
        model.encode(list(TEXTS))
        (remark,) = handle.describe().remarks
    golden("remarks", remark)
    assert_says(remark, facts)
