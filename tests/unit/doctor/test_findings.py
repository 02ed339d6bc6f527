"""The checks of ``diagnose`` on hand-made tensors, each code with its healthy twin beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from peft_hooks.doctor.diagnosis import Diagnosis, Run
from peft_hooks.doctor.findings import CODES, Finding, Seen, check_seen, text_rows_moved

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


def test_with_everything_right_nothing_is_found() -> None:
    assert codes(seen()) == []


def test_a_mask_that_is_too_short_is_ph001() -> None:
    found = only(seen(mask=TEXT))
    assert found.code == "PH001"
    assert found.place == "Pooling '1'"
    assert found.measured == "6 embeddings per text and a mask of 4, for 4 tokens"


def test_a_mask_that_is_too_long_is_ph001() -> None:
    found = only(seen(mask=torch.ones(2, 8, dtype=torch.int64)))
    assert found.code == "PH001"
    assert found.measured == "6 embeddings per text and a mask of 8, for 4 tokens"


def test_no_mask_at_all_is_no_mask_of_another_length() -> None:
    assert codes(seen(mask=None)) == []


def test_padding_that_counts_is_ph002_with_how_much() -> None:
    found = only(seen(counted=torch.ones(2, 6, dtype=torch.bool)))
    assert found.code == "PH002"
    assert found.measured == "2 of 2 padding positions counted; in one text 2 besides its 2 tokens"


def test_text_and_virtual_tokens_that_do_not_count_are_no_padding() -> None:
    assert codes(seen(counted=torch.zeros(2, 6, dtype=torch.bool))) == []


def test_a_float_mask_where_integers_went_in_is_ph003() -> None:
    found = only(seen(mask=torch.ones(2, 6)))
    assert found.code == "PH003"
    assert found.measured == "i64 went into Transformer '0', f32 reached Pooling '1'"


def test_a_float_mask_that_the_user_gave_is_his_own() -> None:
    assert codes(seen(mask=torch.ones(2, 6), given="f32")) == []


def test_a_bool_mask_is_fine() -> None:
    assert codes(seen(mask=torch.ones(2, 6, dtype=torch.bool))) == []


def test_cls_that_reads_a_virtual_token_is_ph006() -> None:
    first = torch.zeros(2, 6, dtype=torch.bool)
    first[:, 0] = True
    found = only(seen(first=first))
    assert found.code == "PH006"
    assert found.measured == ("position 0 of 2 virtual tokens was read in 2 of 2 texts; the text begins at 2")


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


def test_every_code_has_a_name_and_a_finding_knows_it() -> None:
    assert list(CODES) == [f"PH{number:03}" for number in range(1, len(CODES) + 1)]
    assert only(seen(mask=TEXT)).to_dict() == {
        "code": "PH001",
        "name": "mask and embeddings differ in length",
        "place": "Pooling '1'",
        "sentence": only(seen(mask=TEXT)).sentence,
        "measured": "6 embeddings per text and a mask of 4, for 4 tokens",
        "fix": only(seen(mask=TEXT)).fix,
        "fixed": False,
    }


CALL = "peft_hooks.register_prompt_mask_hooks(model)"


def diagnosis(*findings: Finding, **more: Any) -> Diagnosis:
    run = Run("right", True, False, 3e-7, 1e-4)
    model = {"class": "M", "modules": [], "adapters": [], "hooks": None, "padding_side": "right", "max_seq_length": 8}
    return Diagnosis(tuple(findings), more.pop("runs", (run,)), 1e-4, 6, model, CALL, **more)


def test_the_verdict_of_a_healthy_model_says_how_closely() -> None:
    assert diagnosis()
    assert diagnosis().verdict == "6 embeddings are the same alone and in every batch tried, to 3e-07"


def test_the_verdict_says_that_the_hooks_make_it_right_only_if_that_was_measured() -> None:
    found = only(seen(mask=TEXT))
    assert not diagnosis(found)
    assert diagnosis(found).verdict == "1 finding; see the fixes"
    fixed = replace(found, fix=CALL, fixed=True)
    assert diagnosis(fixed).verdict == f"1 finding; {CALL} fixes this (measured)"


def test_the_verdict_says_what_the_hooks_leave() -> None:
    found = replace(only(seen(mask=TEXT)), fix=CALL, fixed=True)
    rest = replace(found, code="PH008", fix="else", fixed=False)
    assert diagnosis(found, rest, left=("PH008",)).verdict == (
        f"2 findings; {CALL} fixes PH001 (measured). Left: PH008"
    )


def test_the_verdict_says_that_the_hooks_refuse_or_do_not_help() -> None:
    found = only(seen(mask=TEXT))
    assert diagnosis(found, refusal="no").verdict == "1 finding; the hooks refuse this model: see the fixes"
    hooked = Run("right", True, True, 0.1, 1e-4)
    assert diagnosis(found, runs=(hooked,)).verdict == "1 finding; the hooks do not help: see the fixes"


def test_a_run_without_a_number_is_not_the_same_and_fits_into_json() -> None:
    for difference, shown in ((None, "nothing, it raises"), (float("inf"), "NaN"), (0.5, "0.5000")):
        run = Run("left", False, False, difference, 1e-4)
        assert not run.same
        assert run.shown == shown
        assert run.to_dict()["difference"] in (None, 0.5)
