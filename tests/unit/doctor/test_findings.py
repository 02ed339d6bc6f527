"""The checks of ``diagnose`` on hand-made tensors, each code with its healthy twin beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from peft_hooks.doctor.diagnosis import Diagnosis, Run
from peft_hooks.doctor.findings import CODES, Finding, Seen, check_seen, text_rows_moved
from peft_hooks.doctor.report import as_text

from ...tools.wording import Golden, assert_says

TEXT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
VIRTUAL = 2


def seen(**changes: Any) -> Seen:
    """Two texts behind two virtual tokens, with everything right."""
    whole = torch.nn.functional.pad(TEXT, (VIRTUAL, 0), value=1)
    rows = torch.arange(2 * 6 * 3).reshape(2, 6, 3).float()
    right = Seen("Transformer '0'", "Pooling '1'", IDS, TEXT.bool(), "i64", rows, (2, 6, 3), whole, whole.bool())
    return replace(right, **changes)


def codes(one: Seen, **options: Any) -> list[str]:
    return [found.code for found in check_seen(one, **options)]


def only(one: Seen) -> Finding:
    (found,) = check_seen(one)
    return found


def told(found: Finding) -> str:
    """Write all of a finding that is English."""
    return "\n".join((found.sentence, found.measured, found.fix))


def test_with_everything_right_nothing_is_found() -> None:
    assert codes(seen()) == []


def test_a_mask_that_is_too_short_is_ph001(golden: Golden) -> None:
    found = only(seen(mask=TEXT))
    assert found.code == "PH001"
    assert found.place == "Pooling '1'"
    golden("findings", told(found))
    assert_says(found.measured, "6 embeddings | mask of 4 | 4 tokens")


def test_a_mask_that_is_too_long_is_ph001() -> None:
    found = only(seen(mask=torch.ones(2, 8, dtype=torch.int64)))
    assert found.code == "PH001"
    assert_says(found.measured, "6 embeddings | mask of 8 | 4 tokens")


def test_no_mask_at_all_is_no_mask_of_another_length() -> None:
    assert codes(seen(mask=None)) == []


def test_padding_that_counts_is_ph002_with_how_much(golden: Golden) -> None:
    found = only(seen(counted=torch.ones(2, 6, dtype=torch.bool)))
    assert found.code == "PH002"
    golden("findings", told(found))
    assert_says(found.measured, "2 of 2 padding positions | 2 tokens")


def test_text_and_virtual_tokens_that_do_not_count_are_no_padding() -> None:
    assert codes(seen(counted=torch.zeros(2, 6, dtype=torch.bool))) == []


def test_a_float_mask_where_integers_went_in_is_ph003(golden: Golden) -> None:
    found = only(seen(mask=torch.ones(2, 6)))
    assert found.code == "PH003"
    golden("findings", told(found))
    assert_says(found.measured, "i64 | Transformer '0' | f32 | Pooling '1'")


def test_a_float_mask_that_the_user_gave_is_his_own() -> None:
    assert codes(seen(mask=torch.ones(2, 6), given="f32")) == []


def test_a_bool_mask_is_fine() -> None:
    assert codes(seen(mask=torch.ones(2, 6, dtype=torch.bool))) == []


def test_cls_that_reads_a_virtual_token_is_ph006(golden: Golden) -> None:
    first = torch.zeros(2, 6, dtype=torch.bool)
    first[:, 0] = True
    found = only(seen(first=first))
    assert found.code == "PH006"
    golden("findings", told(found))
    assert_says(found.measured, "position 0 | 2 virtual tokens | 2 of 2 texts | begins at 2")


def test_cls_that_reads_the_texts_own_first_token_is_right() -> None:
    first = torch.zeros(2, 6, dtype=torch.bool)
    first[:, VIRTUAL] = True
    assert codes(seen(first=first)) == []


def test_who_chose_position_0_gets_it() -> None:
    first = torch.zeros(2, 6, dtype=torch.bool)
    first[:, 0] = True
    assert codes(seen(first=first), pools_position_0=True) == []


def test_a_texts_rows_are_found_in_a_batch_by_its_tokens() -> None:
    batch = seen()
    alone = seen(ids=IDS[1:, :2], text_mask=TEXT[1:, :2].bool(), rows=batch.rows[1:, :4])
    assert text_rows_moved(batch, alone) == 0.0
    assert text_rows_moved(batch, replace(alone, rows=alone.rows + 0.5)) == 0.5
    assert text_rows_moved(batch, replace(alone, rows=alone.rows * float("nan"))) == float("inf")


def test_every_code_has_a_name_and_a_finding_knows_it(golden: Golden) -> None:
    assert list(CODES) == [f"PH{number:03}" for number in range(1, len(CODES) + 1)]
    found = only(seen(mask=TEXT))
    assert found.to_dict() == {
        "code": "PH001",
        "name": CODES["PH001"],
        "place": "Pooling '1'",
        "sentence": found.sentence,
        "measured": found.measured,
        "fix": found.fix,
        "fixed": False,
    }
    golden("findings", "\n".join(f"{code}: {name}" for code, name in CODES.items()))


CALL = "peft_hooks.register_prompt_mask_hooks(model)"


def diagnosis(*findings: Finding, **more: Any) -> Diagnosis:
    run = Run("right", True, False, 3e-7, 1e-4)
    model = {"class": "M", "modules": [], "adapters": [], "hooks": None, "padding_side": "right", "max_seq_length": 8}
    return Diagnosis(tuple(findings), more.pop("runs", (run,)), 1e-4, 6, model, CALL, **more)


def test_the_verdict_of_a_healthy_model_says_how_closely(golden: Golden) -> None:
    assert diagnosis()
    golden("verdicts", diagnosis().verdict)
    assert_says(diagnosis().verdict, "6 embeddings | the same | 3e-07")


def test_the_verdict_says_that_the_hooks_make_it_right_only_if_that_was_measured(golden: Golden) -> None:
    found = only(seen(mask=TEXT))
    assert not diagnosis(found)
    golden("verdicts", diagnosis(found).verdict)
    assert_says(diagnosis(found).verdict, "1 finding")
    assert "measured" not in diagnosis(found).verdict
    fixed = replace(found, fix=CALL, fixed=True)
    golden("verdicts", diagnosis(fixed).verdict)
    assert_says(diagnosis(fixed).verdict, f"1 finding | {CALL} | fixes | measured")


def test_the_verdict_says_what_the_hooks_leave(golden: Golden) -> None:
    found = replace(only(seen(mask=TEXT)), fix=CALL, fixed=True)
    rest = replace(found, code="PH008", fix="else", fixed=False)
    verdict = diagnosis(found, rest, left=("PH008",)).verdict
    golden("verdicts", verdict)
    assert_says(verdict, f"2 findings | {CALL} | PH001 | measured | Left: PH008")


def test_the_verdict_says_that_the_hooks_refuse_or_do_not_help(golden: Golden) -> None:
    found = only(seen(mask=TEXT))
    refused = diagnosis(found, refusal="no").verdict
    golden("verdicts", refused)
    assert_says(refused, "1 finding | hooks refuse")
    hooked = Run("right", True, True, 0.1, 1e-4)
    useless = diagnosis(found, runs=(hooked,)).verdict
    golden("verdicts", useless)
    assert_says(useless, "1 finding | hooks do not help")


def test_the_report_of_a_diagnosis(golden: Golden) -> None:
    """Of hand-made numbers, so that its words alone are golden; the releases, which are those installed, are not."""
    counts = only(seen(counted=torch.ones(2, 6, dtype=torch.bool)))
    fixed = replace(only(seen(mask=TEXT)), fix=CALL, fixed=True)
    for title, one in (("healthy", diagnosis()), ("problems found", diagnosis(fixed, counts, left=("PH002",)))):
        golden("report", re.sub(r"(?sm)\A.*?(?=^model )", "<installed releases>\n", as_text(one)), title=title)
        assert_says(" ".join(as_text(one).split()), one.verdict)


def test_a_run_without_a_number_is_not_the_same_and_fits_into_json() -> None:
    for difference, shown in ((None, "nothing, it raises"), (float("inf"), "NaN"), (0.5, "0.5000")):
        run = Run("left", False, False, difference, 1e-4)
        assert not run.same
        assert run.shown == shown
        assert run.to_dict()["difference"] in (None, 0.5)
